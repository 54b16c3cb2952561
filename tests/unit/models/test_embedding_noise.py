"""NEFTune's noise: its bound and size, for each document by its own length, in training passes alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import batch, family
from tunesmith.models.causal_lm import CausalLM
from tunesmith.types import Batch

ALPHA = 5.0


def embedded(model: CausalLM, pack: Batch, seed: int = 0) -> Tensor:
    """What the layers read: ``[T, H]``."""
    seen: list[Tensor] = []
    handle = model.hf.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"])[0]), with_kwargs=True
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        model.hidden(pack)
    handle.remove()
    return seen[0]


def noise_of(lengths: list[int], alpha: float = ALPHA, **changes: Any) -> Tensor:
    model, pack = CausalLM(family("llama", **changes)), batch(lengths)
    plain = embedded(model, pack)
    model.add_embedding_noise(alpha)
    model.train()
    return embedded(model, pack) - plain


def test_each_document_has_the_bound_and_the_size_of_its_own_length() -> None:
    """Uniform in ±α/sqrt(L·d): the bound is nearly reached, the variance is a third of its square."""
    lengths, width = [100, 25, 4], 32
    noise_TH = noise_of(lengths)
    for length, part in zip(lengths, noise_TH.split(lengths), strict=True):
        bound = ALPHA / math.sqrt(length * width)
        assert part.abs().max() <= bound * (1 + 1e-5)
        assert part.abs().max() > 0.93 * bound
        spread = 4 * math.sqrt(4 / 45 / part.numel()) * bound**2  # var(u²) of u in ±1 is 4/45
        assert part.square().mean().item() == pytest.approx(bound**2 / 3, abs=spread)
        assert part.mean().item() == pytest.approx(0.0, abs=4 * bound / math.sqrt(3 * part.numel()))


def test_the_expected_length_of_a_documents_noise_is_alpha_over_root_three() -> None:
    noise_TH = noise_of([90, 30])
    for part in noise_TH.split([90, 30]):
        assert part.norm().item() == pytest.approx(ALPHA / math.sqrt(3), rel=0.05)


def test_noise_is_a_function_of_the_seed_and_grows_with_alpha() -> None:
    assert torch.equal(noise_of([7, 12]), noise_of([7, 12]))
    torch.testing.assert_close(noise_of([7, 12], 10.0), 2 * noise_of([7, 12], 5.0), rtol=1e-4, atol=1e-6)


def test_evaluation_and_generation_read_no_noise() -> None:
    model, pack = CausalLM(family("llama")), batch([9, 4])
    plain = embedded(model, pack)
    model.add_embedding_noise(ALPHA)
    assert torch.equal(embedded(model.eval(), pack), plain)
    model.train()
    assert not torch.equal(embedded(model, pack), plain)
    with model.plain_attention() as hf, torch.no_grad():
        noisy = hf(input_ids=pack.input_ids_T[None, :9]).logits
        torch.manual_seed(5)
        assert torch.equal(hf(input_ids=pack.input_ids_T[None, :9]).logits, noisy)


def test_recomputed_activations_see_the_same_noise() -> None:
    gradients = []
    for again in (False, True):
        model, pack = CausalLM(family("llama")).train(), batch([9, 4, 13])
        model.add_embedding_noise(ALPHA)
        if again:
            model.recompute_activations()
        torch.manual_seed(2)
        model(pack).logprob_S.sum().backward()
        gradients.append(model.hf.model.embed_tokens.weight.grad)
    assert torch.equal(*gradients)


def test_16_bit_embeddings_stay_16_bit() -> None:
    model, pack = CausalLM(family("llama").to(torch.bfloat16)).train(), batch([9, 4])
    model.add_embedding_noise(ALPHA)
    assert embedded(model, pack).dtype == torch.bfloat16
