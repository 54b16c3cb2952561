"""Tiny random image and audio encoders, saved as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel, Wav2Vec2Config, Wav2Vec2Model

_SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32
}  # fmt: skip
BUILDERS: dict[str, Any] = {
    "resnet": lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
    "vit": lambda: ViTModel(ViTConfig(**_SMALL, image_size=16, patch_size=8)),
    "wav2vec2": lambda: Wav2Vec2Model(
        Wav2Vec2Config(
            **_SMALL, conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2, vocab_size=10,
        )
    ),
}  # fmt: skip


def media_model(folder: Path, name: str, seed: int = 0) -> Any:
    """Save a random encoder and return it."""
    torch.manual_seed(seed)
    model = BUILDERS[name]().eval()
    model.save_pretrained(folder)
    return model
