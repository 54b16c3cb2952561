"""A linear layer on dropped inputs that keeps neither the mask nor the dropped inputs for the backward pass: both are drawn again.

An adapter on each of the linear layers that read one hidden state would otherwise keep a copy of it each.
Shapes: T tokens, I inputs, R outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def dropped_linear(x: Tensor, A_RI: Tensor, dropout: float) -> Tensor:
    """``linear(dropout(x), A)`` in A's dtype, with the same draws and the same bits as the two functions one after the other.

    Args:
        x: inputs ``[..., I]``.
        A_RI: the weight.
        dropout: probability of dropping an input.
    """
    return cast(Tensor, _DroppedLinear.apply(x, A_RI, dropout))  # type: ignore[no-untyped-call]


class _DroppedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, A_RI: Tensor, dropout: float) -> Tensor:
        ctx.random, ctx.dropout = _random_state(x.device), dropout
        ctx.save_for_backward(x, A_RI)
        return functional.linear(functional.dropout(x, dropout).to(A_RI.dtype), A_RI)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, A_RI = ctx.saved_tensors
        with _drawing_from(ctx.random, x.device):
            mask = functional.dropout(torch.ones_like(x), ctx.dropout)
        grad_x = grad_A = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ A_RI).to(x.dtype) * mask
        if ctx.needs_input_grad[1]:
            dropped_TI = (x * mask).to(A_RI.dtype).flatten(0, -2)
            grad_A = grad.flatten(0, -2).t() @ dropped_TI
        return grad_x, grad_A, None


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def _drawing_from(state: Tensor, device: torch.device) -> Iterator[None]:
    """Draw as from ``state``, and leave the device's stream where it was."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if on_cuda else [], enabled=True):
        if on_cuda:
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
        yield
