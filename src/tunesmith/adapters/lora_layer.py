"""One linear layer with low-rank parts beside its weight: y = x Wᵀ + b + scale · drop(x) Aᵀ Bᵀ.

The layer is changed in place: it keeps its identity, name, weight, bias and hooks, and gets a subclass of its own type
whose ``forward`` adds the parts that are active. Names of the base's parameters therefore stay as they were, the parts
are called ``LAYER.lora.ADAPTER.A`` and ``.B``, and with no part active the forward is the base's own, bit for bit.

Shapes: T tokens, I inputs, O outputs, R rank. A is RI, B is OR.
"""

from __future__ import annotations

import functools
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D


class LoraWeights(nn.Module):
    """A and B of one adapter at one layer, in fp32 whatever the base's dtype.

    Args:
        A: fp32 RI.
        B: fp32 OR.
        scale: factor of the update.
        dropout: probability of dropping an input of A while training.
    """

    def __init__(self, A: Tensor, B: Tensor, scale: float, dropout: float) -> None:
        super().__init__()
        self.A = nn.Parameter(A)
        self.B = nn.Parameter(B)
        self.scale = scale
        self.dropout = dropout

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``y`` plus the update, in y's dtype; the products run in that dtype too.

        The scale goes onto B, the smallest tensor here, and one addmm sums, so nothing else of y's size is written.
        """
        dtype = y.dtype
        dropped = functional.dropout(x, self.dropout, self.training) if self.dropout else x
        h_TR = functional.linear(dropped.to(dtype), self.A.to(dtype)).flatten(0, -2)
        scaled_RO = (self.B * self.scale).to(dtype).t()
        return torch.addmm(y.reshape(-1, y.shape[-1]), h_TR, scaled_RO).view(y.shape).to(dtype)

    def delta(self) -> Tensor:
        """The update of the weight, scale · B A, fp32 OI."""
        return self.scale * (self.B.detach().float() @ self.A.detach().float())

    def extra_repr(self) -> str:
        """Show rank, scale and dropout in the module's printout."""
        return f"rank={self.A.shape[0]}, scale={self.scale:g}, dropout={self.dropout:g}"


def is_linear(module: nn.Module) -> bool:
    """Whether LoRA knows the layer: ``nn.Linear`` or the transposed ``Conv1D`` of GPT-2, or a subclass."""
    return isinstance(module, nn.Linear | Conv1D)


def widths(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    if isinstance(layer, Conv1D):
        return int(layer.nx), int(layer.nf)
    linear = cast(nn.Linear, layer)
    return linear.in_features, linear.out_features


def initial_weights(generator: torch.Generator, num_in: int, num_out: int, rank: int) -> tuple[Tensor, Tensor]:
    """A uniform within ±1/sqrt(I) (Kaiming with a = sqrt 5, as PEFT), B zero; fp32 on the CPU."""
    A = torch.empty(rank, num_in, dtype=torch.float32)
    nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)
    return A, torch.zeros(num_out, rank, dtype=torch.float32)


def add_part(layer: nn.Module, name: str, part: LoraWeights) -> None:
    """Give ``layer`` an adapter's part; it is inactive until ``set_active``."""
    if not is_wrapped(layer):
        layer.lora = nn.ModuleDict()
        layer.__class__ = _lora_class(cast(Any, type(layer)))
        set_active(layer, ())
    parts(layer)[name] = part.to(cast(Tensor, layer.weight).device).train(layer.training)


def remove_part(layer: nn.Module, name: str) -> None:
    """Take an adapter's part away; with the last one the layer gets its own class back."""
    set_active(layer, tuple(other for other in cast(Any, layer).lora_active if other != name))
    del parts(layer)[name]
    if not len(parts(layer)):
        del layer.lora, layer.lora_active
        layer.__class__ = cast(Any, layer).lora_base_class


def parts(layer: nn.Module) -> nn.ModuleDict:
    """Adapter name -> part of a wrapped layer."""
    return cast(nn.ModuleDict, layer.lora)


def set_active(layer: nn.Module, names: tuple[str, ...]) -> None:
    """Choose the parts that the forward adds, in this order."""
    cast(Any, layer).lora_active = names


def is_wrapped(layer: nn.Module) -> bool:
    """Whether the layer has parts of any adapter."""
    return hasattr(type(layer), "lora_base_class")


@torch.no_grad()
def fold(layer: nn.Module, part: LoraWeights) -> None:
    """Add the part to the layer's weight in place: sum in fp32, then one cast to the weight's dtype."""
    weight = cast(Tensor, layer.weight)
    delta = part.delta()
    weight.copy_((weight.float() + (delta.t() if isinstance(layer, Conv1D) else delta)).to(weight.dtype))


@functools.cache
def _lora_class(base_class: Any) -> type[nn.Module]:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = cast(Tensor, base_class.forward(self, x))
        for name in self.lora_active:
            y = self.lora[name](x, y)
        return y

    members = {"forward": forward, "lora_base_class": base_class, "__module__": base_class.__module__}
    return type(f"Lora{base_class.__name__}", (base_class,), members)
