"""Tiny random encoders for tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    ModernBertConfig,
    RobertaConfig,
)

from tests.tiny import VOCABULARY
from tunesmith.embedded import DEFAULT_MODEL, ROOT

ENCODERS = ("bert", "roberta", "modernbert")
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip


def encoder(name: str, seed: int = 0, **changes: Any) -> Any:
    """A random masked language model of a family, in fp32, on two layers; ``changes`` go into its configuration."""
    torch.manual_seed(seed)
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    builders: dict[str, Any] = {
        "bert": lambda: BertConfig(**{**_SHAPE, **special, **quiet, "max_position_embeddings": 128, **changes}),
        "roberta": lambda: RobertaConfig(**{**_SHAPE, **special, **quiet, "max_position_embeddings": 130, **changes}),
        "modernbert": lambda: ModernBertConfig(
            **{
                **_SHAPE, **special, "max_position_embeddings": 128, "local_attention": 8, "global_attn_every_n_layers": 2,
                **changes,
            }
        ),
    }  # fmt: skip
    model = AutoModelForMaskedLM.from_config(builders[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15)
    return model.eval()


def write_encoder(folder: Path, name: str, **changes: object) -> Path:
    """Save a random encoder with the embedded model's tokenizer and return its folder."""
    encoder(name, vocab_size=8192, **changes).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ROOT / DEFAULT_MODEL / file, folder / file)
    return folder
