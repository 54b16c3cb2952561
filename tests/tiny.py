"""Tiny random models and packs for tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tunesmith.data.loader import make_batch
from tunesmith.types import Batch

VOCABULARY = 97
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "resid_pdrop": 0.0,
         "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
FAMILIES = ("llama", "qwen3", "mistral", "gemma", "phi", "phi3", "gpt2")


def family(name: str, seed: int = 0, **changes: Any) -> Any:
    """A random model of a family, in fp32, on two layers; ``changes`` go into its configuration."""
    torch.manual_seed(seed)
    shape, gpt2 = {**_SHAPE, **changes}, {**_GPT2, **changes}
    builders: dict[str, Any] = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**shape)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=8)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**{"sliding_window": 8, **shape})),
        "gemma": lambda: GemmaForCausalLM(GemmaConfig(**shape, head_dim=8)),
        "phi": lambda: PhiForCausalLM(PhiConfig(**shape)),
        "phi3": lambda: Phi3ForCausalLM(Phi3Config(**shape)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**gpt2)),
    }
    model = builders[name]()
    with torch.no_grad():  # the usual start is so small that wrong attention would hardly show
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15)
    return model.eval()


def documents(lengths: Sequence[int], seed: int = 0, trained_from: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random documents; tokens from ``trained_from`` on are targets."""
    generator = np.random.default_rng(seed)
    found = []
    for length in lengths:
        trained = np.zeros(length, dtype=np.bool_)
        trained[trained_from:] = True
        found.append((generator.integers(3, VOCABULARY, length).astype(np.uint32), trained))
    return found


def batch(lengths: Sequence[int], seed: int = 0, trained_from: int = 1) -> Batch:
    """A pack of random documents."""
    return make_batch(documents(lengths, seed, trained_from), range(len(lengths)))


def desk_model(folder: Path, like: Path, *, seed: int = 0, **changes: Any) -> None:
    """Save a random Llama of two layers with another model's tokenizer and template; ``changes`` go into its config."""
    torch.manual_seed(seed)
    vocabulary = json.loads((like / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    shape = _SHAPE | {"vocab_size": vocabulary, "tie_word_embeddings": True} | changes
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (like / name).is_file():
            shutil.copyfile(like / name, folder / name)
