"""The linear layer on dropped inputs against dropout and linear one after the other."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tunesmith.adapters.dropped import dropped_linear
from tunesmith.adapters.lora_layer import LoraWeights

P = 0.3


def _plain(x: torch.Tensor, A: torch.Tensor, dropout: float) -> torch.Tensor:
    return functional.linear(functional.dropout(x, dropout).to(A.dtype), A)


def _run(function, x_dtype, a_dtype, seed=5):
    torch.manual_seed(1)
    x = torch.randn(3, 7, 32, dtype=x_dtype).requires_grad_()
    A = torch.randn(4, 32, dtype=a_dtype).requires_grad_()
    torch.manual_seed(seed)
    h = function(x, A, P)
    after = torch.rand(1)
    (h.float().sin().sum()).backward()
    return h.detach(), x.grad, A.grad, after


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("a_dtype", [torch.float32, torch.bfloat16])
def test_values_gradients_and_draws_are_the_same_to_the_bit(x_dtype, a_dtype):
    for mine, theirs in zip(_run(dropped_linear, x_dtype, a_dtype), _run(_plain, x_dtype, a_dtype), strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def test_it_drops_and_scales():
    """Of 40,000 inputs 30 % are dropped, give or take 5 standard deviations, the others grow by 1 / 0.7."""
    torch.manual_seed(0)
    kept = dropped_linear(torch.ones(1, 40_000), torch.eye(1).expand(1, 40_000), P)
    share = float(kept) * 0.7 / 40_000
    assert abs(share - 0.7) < 5 * (0.3 * 0.7 / 40_000) ** 0.5


def test_the_backward_pass_leaves_the_random_stream_alone():
    x, A = torch.randn(5, 8).requires_grad_(), torch.randn(2, 8).requires_grad_()
    h = dropped_linear(x, A, P)
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    h.sum().backward()
    assert torch.equal(torch.rand(3), expected)


def test_only_what_is_wanted_is_computed():
    x, A = torch.randn(5, 8), torch.randn(2, 8).requires_grad_()
    dropped_linear(x, A, P).sum().backward()
    assert x.grad is None
    assert A.grad is not None
    x = torch.randn(5, 8).requires_grad_()
    frozen = torch.randn(2, 8)
    dropped_linear(x, frozen, P).sum().backward()
    assert x.grad is not None


def test_recomputation_draws_the_same_mask():
    def grads(wrap):
        torch.manual_seed(2)
        x, A = torch.randn(6, 8).requires_grad_(), torch.randn(3, 8).requires_grad_()
        torch.manual_seed(3)
        wrap(lambda: dropped_linear(x.sin(), A, P)).square().sum().backward()
        return x.grad, A.grad

    plain = grads(lambda function: function())
    again = grads(lambda function: checkpoint(function, use_reentrant=False))
    assert all(torch.equal(one, two) for one, two in zip(plain, again, strict=True))


def test_three_adapters_on_one_state_keep_it_once():
    """Kept for backward beside the weights: the state [64, 256] in fp32 once and three h of [64, 4]; not a copy and a mask each."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    state = torch.randn(64, 256).requires_grad_()
    parts = [LoraWeights(torch.randn(4, 256), torch.randn(16, 4), 2.0, P) for _ in range(3)]
    weights = 3 * 4 * (4 * 256 + 2 * 16 * 4)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = sum(part(state, torch.zeros(64, 16), torch.zeros(64, 16), None).sum() for part in parts)
    assert sum(kept.values()) <= state.nbytes + 3 * 64 * 4 * 4 + weights
    total.backward()
