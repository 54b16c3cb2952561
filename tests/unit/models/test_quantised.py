"""Packed layers: what is multiplied is the unpacked weight, forward and backward, in every type, before and after use."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from tests.tiny import family
from tunesmith.errors import ModelError
from tunesmith.models import quantised
from tunesmith.models.quantised import KINDS, QuantisedLinear, dequantise, quantise

pytest.importorskip("bitsandbytes", reason="needs the extra `quantise`")
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(96, 128, generator=GENERATOR) * 0.02
ERRORS = {"nf4": 0.11, "int8": 0.012, "fp8": 0.04}
"""Relative root mean square error of normal weights: 0.092 was measured for NF4; one step of int8 is max/127, max about 2.7
deviations of 128 numbers, and its error step/sqrt(12) = 0.0062; e4m3 has 3 bits, steps of 1/8 to 1/16 of a value: 0.027."""


@pytest.fixture(params=KINDS)
def layer(request: pytest.FixtureRequest) -> QuantisedLinear:
    return QuantisedLinear(WEIGHT, nn.Parameter(torch.randn(96, generator=GENERATOR)), request.param, torch.float32)


def test_the_error_is_that_of_the_kind(layer: QuantisedLinear) -> None:
    error = (layer.weight - WEIGHT).square().mean().sqrt() / WEIGHT.square().mean().sqrt()
    assert 0 < error < ERRORS[layer.kind]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forward_and_backward_are_those_of_the_unpacked_weight(layer: QuantisedLinear, dtype: torch.dtype) -> None:
    x = torch.randn(4, 7, 128, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    y = layer(x)
    expected = functional.linear(x, layer.unpacked(dtype)) + layer.bias.to(dtype)
    assert y.dtype == dtype
    assert torch.equal(y, expected)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    (found,) = torch.autograd.grad(y, x, grad, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(found, wanted, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-4)


def test_use_does_not_change_it(layer: QuantisedLinear) -> None:
    """A forward without gradient and in eval mode, then one with: no repacking in place."""
    before = layer.weight
    x = torch.randn(3, 128)
    with torch.no_grad():
        first = layer.eval()(x)
    second = layer.train()(x.clone().requires_grad_())
    second.sum().backward()
    assert torch.equal(first, second)
    assert torch.equal(layer.weight, before)


def test_autocast_multiplies_in_its_type(layer: QuantisedLinear) -> None:
    x = torch.randn(3, 128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, functional.linear(x.bfloat16(), layer.unpacked(torch.bfloat16)) + layer.bias.bfloat16())


def test_it_holds_no_trained_weight_and_few_bytes(layer: QuantisedLinear) -> None:
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    size = sum(item.numel() * item.element_size() for item in (layer.packed, layer.scales))
    assert size <= WEIGHT.numel() * {"nf4": 0.52, "int8": 1.05, "fp8": 1.05}[layer.kind]


def test_nf4_has_the_levels_of_the_paper() -> None:
    """Equation 4: quantiles of a normal distribution, with an exact zero, seven levels below and eight above it."""
    layer = QuantisedLinear(WEIGHT, None, "nf4", torch.float32)
    levels = layer.levels.tolist()
    assert len(levels) == 16
    assert levels[7] == 0
    assert levels[0] == -1
    assert levels[15] == 1
    offset = 0.9677083
    normal = torch.distributions.Normal(0.0, 1.0)
    above = normal.icdf(torch.linspace(offset, 0.5, 9)[:-1])
    below = -normal.icdf(torch.linspace(offset, 0.5, 8)[:-1])
    values = torch.cat([above, below, torch.zeros(1)]).sort().values
    torch.testing.assert_close(torch.tensor(levels), values / values.max(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_a_model_is_packed_but_for_head_embedding_and_norms(name: str, kind: str) -> None:
    hf = family(name)
    plain = {key: module for key, module in hf.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    count = quantise(hf, kind, torch.float32)
    packed = {key: module for key, module in hf.named_modules() if isinstance(module, QuantisedLinear)}
    assert set(packed) == {key for key in plain if "lm_head" not in key}
    assert count == sum(plain[key].weight.numel() for key in packed)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        expected = hf(ids).logits
        dequantise(hf)
        found = hf(ids).logits
    assert {key for key, module in hf.named_modules() if isinstance(module, nn.Linear | Conv1D)} == set(plain)
    assert {key: type(hf.get_submodule(key)) for key in plain} == {key: type(module) for key, module in plain.items()}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_nothing_to_pack_is_said() -> None:
    with pytest.raises(ModelError, match="no linear layers"):
        quantise(nn.Sequential(nn.LayerNorm(3)), "int8", torch.float32)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match="bitsandbytes") as caught:
        quantised.bits()
    assert "tunesmith[quantise]" in caught.value.hint
