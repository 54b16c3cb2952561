"""Small model folders to spoil."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tunesmith import embedded

_FOUND = embedded.model_folder(embedded.DEFAULT_MODEL)
assert _FOUND is not None
EMBEDDED: Path = _FOUND
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "num_attention_heads": 2,
    "num_key_value_heads": 1, "num_hidden_layers": 1, "intermediate_size": 12, "vocab_size": 20,
    "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES = {
    "model.embed_tokens.weight": (20, 8), "model.norm.weight": (8,), "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8), "model.layers.0.self_attn.v_proj.weight": (4, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8), "model.layers.0.mlp.gate_proj.weight": (12, 8),
    "model.layers.0.mlp.up_proj.weight": (12, 8), "model.layers.0.mlp.down_proj.weight": (8, 12),
    "model.layers.0.input_layernorm.weight": (8,), "model.layers.0.post_attention_layernorm.weight": (8,),
}  # fmt: skip


def write_model(folder: Path, **changes: Any) -> Path:
    """A Llama of 20 words and one layer; ``changes`` go into its config. No tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes), encoding="utf-8")
    tensors = {name: np.full(shape, 0.01, np.float32) for name, shape in SHAPES.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def copy_embedded(folder: Path) -> Path:
    """The embedded model's tokenizer and template without its weights, to be spoilt."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        (folder / name).write_bytes((EMBEDDED / name).read_bytes())
    return folder


def header(values: Mapping[str, Any] | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header; ``length`` is what it claims to be long."""
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body
