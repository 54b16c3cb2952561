"""Tiny random models of several families."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

VOCAB = 48


def llama(tied: bool = False) -> nn.Module:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def qwen3() -> nn.Module:
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


FAMILIES = {"llama": llama, "llama-tied": lambda: llama(tied=True), "gpt2": gpt2, "qwen3": qwen3}


@pytest.fixture
def make() -> Callable[..., nn.Module]:
    """make(family, dtype) -> the same random model each time, in eval mode."""

    def build(family: str = "llama", dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(7)
        model = FAMILIES[family]().to(dtype).eval()
        with torch.no_grad():  # biases and norms start at 0 and 1; make them matter
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        return model

    return build


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def stir() -> Callable[..., None]:
    """stir(adapter): give everything that trains random values, as training would."""

    def apply(adapter, seed: int = 3, size: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(seed)
        for group in adapter.groups():
            for _, parameter in group.parameters:
                parameter.data.add_((torch.randn(parameter.shape, generator=generator) * size).to(parameter.dtype))

    return apply
