"""DoRA (Liu et al. 2024, arXiv 2402.09353): length and direction of each row of a weight apart.

    W' = m · (W + scale · B A) / ‖W + scale · B A‖      norms over each row's inputs, taken as constants by the gradient (§4.3)

Shapes: T tokens, I inputs, O outputs, R rank. A is RI, B is OR, m is O.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters.lora_layer import LoraWeights, weight_of


class DoraWeights(LoraWeights):
    """LoRA's A and B, and the length m of each row, which starts as that of the base.

    Args:
        A: fp32 RI.
        B: fp32 OR; B A may be anything at the start, the length is that of the base plus it.
        scale: factor of the update.
        dropout: probability of dropping an input of A, and of the base where the direction is changed, while training.
        weight_OI: the base's weight, fp32, where A and B lie.
    """

    def __init__(self, A: Tensor, B: Tensor, scale: float, dropout: float, weight_OI: Tensor) -> None:
        super().__init__(A, B, scale, dropout)
        self.squares_O: Tensor
        self.register_buffer("squares_O", weight_OI.square().sum(1), persistent=False)
        self.magnitude = nn.Parameter(self.row_lengths(weight_OI))
        self._holds = False
        self._held: Tensor | None = None

    def forward(self, x: Tensor, y: Tensor, base_y: Tensor, site: Any) -> Tensor:
        """Return ``y`` plus what turns the base's output into that of W'."""
        dtype = y.dtype
        gain_O = self.magnitude / self._lengths_at(site)
        bias = site.bias
        if self.dropout and self.training:
            x = functional.dropout(x, self.dropout)
            straight = x @ site.weight if isinstance(site, Conv1D) else functional.linear(x, site.weight)
        else:
            straight = base_y if bias is None else base_y - bias
        h_TR = functional.linear(x.to(dtype), self.A.to(dtype))
        update = functional.linear(h_TR, (self.B * self.scale * gain_O[:, None]).to(dtype))
        return (y + (gain_O - 1).to(dtype) * straight + update).to(dtype)

    def hold(self, on: bool) -> None:
        """Keep the rows' lengths from the next pass on, or take them in each pass again."""
        self._holds, self._held = on, None

    def _lengths_at(self, site: Any) -> Tensor:
        if self._held is not None:
            return self._held
        weight = site.weight.detach()
        lengths_O = self.row_lengths(weight.t() if isinstance(site, Conv1D) else weight)
        if self._holds:
            self._held = lengths_O
        return lengths_O

    @torch.no_grad()
    def row_lengths(self, weight_OI: Tensor) -> Tensor:
        """‖W + scale · B A‖ of each row, fp32, without a second matrix of W's size.

        Its square is ‖W‖² + 2 scale · ⟨W Aᵀ, B⟩ + scale² · ⟨B (A Aᵀ), B⟩.
        """
        A, B = self.A.float(), self.B.float() * self.scale
        cross_OR = (weight_OI @ A.to(weight_OI.dtype).t()).float()
        squares_O = self.squares_O + ((2 * cross_OR + B @ (A @ A.t())) * B).sum(1)
        return squares_O.clamp(min=0).sqrt()

    def rebase(self, site: nn.Module) -> None:
        """Take the rows' lengths anew."""
        self.squares_O.copy_(weight_of(site).square().sum(1))

    def delta(self, weight_OI: Tensor) -> Tensor:
        """W' - W, fp32 OI."""
        lengths_O = torch.linalg.norm(weight_OI + super().delta(weight_OI), dim=1)
        gain_O = self.magnitude.detach() / lengths_O
        delta_OI: Tensor = gain_O[:, None] * (weight_OI + super().delta(weight_OI)) - weight_OI
        return delta_OI

    def named(self) -> dict[str, Tensor]:
        """A, B and the lengths by PEFT's endings."""
        return super().named() | {"lora_magnitude_vector": cast(Tensor, self.magnitude)}
