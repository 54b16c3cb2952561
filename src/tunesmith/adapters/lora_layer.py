"""One linear layer with low-rank parts beside its weight: y = x Wᵀ + b + scale · drop(x) Aᵀ Bᵀ.

Shapes: T tokens, I inputs, O outputs, R rank. A is RI, B is OR.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters.dropped import dropped_linear
from tunesmith.adapters.sites import Part


class LinearPart(Part):
    """A part whose effect on a linear layer is a change of its weight."""

    def delta(self, weight_OI: Tensor) -> Tensor:
        """What the part adds to the weight, fp32 OI.

        Args:
            weight_OI: the base's weight in fp32.
        """
        raise NotImplementedError


class LoraWeights(LinearPart):
    """A and B of one adapter at one layer, in fp32 whatever the base's dtype.

    Args:
        A: fp32 RI.
        B: fp32 OR.
        scale: factor of the update.
        dropout: probability of dropping an input of A while training.
        starts: whether A and B as given are a start that the update leaves out, so that it is 0 there:
            scale · (B A - B₀ A₀). So PiSSA starts from a base that stays as it is.
    """

    def __init__(self, A: Tensor, B: Tensor, scale: float, dropout: float, *, starts: bool = False) -> None:
        super().__init__()
        self.A = nn.Parameter(A)
        self.B = nn.Parameter(B)
        self.start_A: Tensor | None
        self.start_B: Tensor | None
        self.register_buffer("start_A", A.detach().clone() if starts else None)
        self.register_buffer("start_B", B.detach().clone() if starts else None)
        self.scale = scale
        self.dropout = dropout

    def forward(self, x: Tensor, y: Tensor, base_y: Tensor, site: Any) -> Tensor:
        """Return ``y`` plus the update, in y's dtype; the products run in that dtype too.

        The scale goes onto B, the smallest tensor here, and one addmm sums, so nothing else of y's size is written.
        """
        dtype = y.dtype
        A, B = self.factors()
        if self.dropout and self.training:
            h_TR = dropped_linear(x, A.to(dtype), self.dropout).flatten(0, -2)
        else:
            h_TR = functional.linear(x.to(dtype), A.to(dtype)).flatten(0, -2)
        scaled_RO = (B * self.scale).to(dtype).t()
        return torch.addmm(y.reshape(-1, y.shape[-1]), h_TR, scaled_RO).view(y.shape).to(dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B whose product, scaled, is the update; with a start left out they have twice the rank."""
        if self.start_A is None or self.start_B is None:
            return self.A, self.B
        return torch.cat([self.A, self.start_A]), torch.cat([self.B, -self.start_B], 1)

    def delta(self, weight_OI: Tensor) -> Tensor:
        """The update of the weight, scale · B A, fp32 OI."""
        A, B = self.factors()
        return self.scale * (B.detach().float() @ A.detach().float())

    def named(self) -> dict[str, Tensor]:
        """A and B by PEFT's endings, and a start that is left out."""
        found: dict[str, Tensor] = {"lora_A.weight": self.A, "lora_B.weight": self.B}
        if self.start_A is not None and self.start_B is not None:
            found |= {"start_A": self.start_A, "start_B": self.start_B}
        return found

    def extra_repr(self) -> str:
        """Show rank, scale and dropout in the module's printout."""
        return f"rank={self.A.shape[0]}, scale={self.scale:g}, dropout={self.dropout:g}"


def is_linear(module: nn.Module) -> bool:
    """Whether adapters know the layer: ``nn.Linear`` or the transposed ``Conv1D`` of GPT-2, or a subclass."""
    return isinstance(module, nn.Linear | Conv1D)


def widths(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    if isinstance(layer, Conv1D):
        return int(layer.nx), int(layer.nf)
    linear = cast(nn.Linear, layer)
    return linear.in_features, linear.out_features


def is_transposed(layer: nn.Module) -> bool:
    """Whether the layer is a ``Conv1D``, or was one before its weight was packed."""
    return isinstance(layer, Conv1D) or getattr(layer, "was_transposed", False) is True


def own_weight(layer: nn.Module) -> nn.Parameter | None:
    """The layer's weight where it is a parameter; a packed layer has none, and unpacks one for whoever asks for ``weight``."""
    return next((item for name, item in layer.named_parameters(recurse=False) if name == "weight"), None)


def weight_of(layer: nn.Module) -> Tensor:
    """The layer's weight in fp32, OI whatever way it is stored."""
    weight = cast(Tensor, layer.weight).detach().float()
    return weight.t() if isinstance(layer, Conv1D) else weight


def uniform_matrix(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    """Uniform within ±1/sqrt(columns) (Kaiming with a = sqrt 5, as PEFT), fp32 on the CPU."""
    matrix = torch.empty(rows, columns, dtype=torch.float32)
    nn.init.kaiming_uniform_(matrix, a=math.sqrt(5), generator=generator)
    return matrix


@torch.no_grad()
def fold(layer: nn.Module, part: LinearPart) -> None:
    """Add the part to the layer's weight in place: sum in fp32, then one cast to the weight's dtype."""
    weight = cast(Tensor, layer.weight)
    merged_OI = weight_of(layer) + part.delta(weight_of(layer))
    weight.copy_((merged_OI.t() if isinstance(layer, Conv1D) else merged_OI).to(weight.dtype))
