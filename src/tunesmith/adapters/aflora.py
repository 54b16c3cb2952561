"""AFLoRA (Liu et al. 2024, arXiv 2403.13269): low-rank adaptation whose matrices are frozen on the way.

    y = y + scale · b ⊙ B (d ⊙ A x)        A and B random, d 0.1, b 0: the update is 0 at the start

The vectors d and b train to the end. A and B train at first where the section says so, and are frozen one by one by
``engine/scores.py``; elsewhere they stay as they were drawn. In files it is a LoRA: diag(d) A and diag(b) B.

Shapes: T tokens, I inputs, O outputs, R rank. A is RI, B is OR, d is R, b is O.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tunesmith.adapters import lora_layer, peft_layout
from tunesmith.adapters.dropped import dropped_linear
from tunesmith.adapters.linear import LinearAdapter
from tunesmith.adapters.lora_layer import LinearPart
from tunesmith.adapters.sites import Part
from tunesmith.models import names
from tunesmith.recipe.low_rank import LoraSection
from tunesmith.types import ParamGroup

_START_D = 0.1
_MATRICES = (".aflora_A", ".aflora_B")


class AfloraWeights(LinearPart):
    """Matrices and vectors of one adapter at one layer, in fp32 whatever the base's dtype.

    Args:
        A: RI.
        B: OR.
        scale: factor of the update.
        dropout: probability of dropping an input of A while training.
        trains: whether A and B train; the vectors always do.
    """

    def __init__(self, A: Tensor, B: Tensor, scale: float, dropout: float, *, trains: bool) -> None:
        super().__init__()
        self.A: Tensor
        self.B: Tensor
        if trains:
            self.A, self.B = nn.Parameter(A), nn.Parameter(B)
        else:
            self.register_buffer("A", A)
            self.register_buffer("B", B)
        self.d = nn.Parameter(torch.full((A.shape[0],), _START_D))
        self.b = nn.Parameter(torch.zeros(B.shape[0]))
        self.scale = scale
        self.dropout = dropout

    def forward(self, x: Tensor, y: Tensor, base_y: Tensor, site: Any) -> Tensor:
        """Return ``y`` plus the update, in y's dtype; the products run in that dtype too.

        d goes onto the inner values, so that the input is kept for the backward pass only while A trains; b goes onto B,
        which is smaller than anything of y's size.
        """
        dtype = y.dtype
        if self.dropout and self.training:
            h_TR = dropped_linear(x, self.A.to(dtype), self.dropout).flatten(0, -2)
        else:
            h_TR = functional.linear(x.to(dtype), self.A.to(dtype)).flatten(0, -2)
        scaled_TR = h_TR * (self.d * self.scale).to(dtype)
        scaled_RO = (self.B * self.b[:, None]).to(dtype).t()
        return torch.addmm(y.reshape(-1, y.shape[-1]), scaled_TR, scaled_RO).view(y.shape).to(dtype)

    @torch.no_grad()
    def as_lora(self) -> tuple[Tensor, Tensor]:
        """A (RI) and B (OR) of the LoRA whose product, scaled alike, is the update."""
        return self.d[:, None] * self.A, self.b[:, None] * self.B

    def delta(self, weight_OI: Tensor) -> Tensor:
        """The update of the weight, fp32 OI."""
        A, B = self.as_lora()
        return self.scale * (B @ A)

    def named(self) -> dict[str, Tensor]:
        """Matrices and vectors."""
        return {"aflora_A": self.A, "aflora_B": self.B, "aflora_d": self.d, "aflora_b": self.b}

    def extra_repr(self) -> str:
        """Show rank, scale, dropout and what trains in the module's printout."""
        trains = "A, B, d, b" if isinstance(self.A, nn.Parameter) else "d, b"
        return f"rank={self.A.shape[0]}, scale={self.scale:g}, dropout={self.dropout:g}, trains={trains}"


class AfloraAdapter(LinearAdapter):
    """AFLoRA by a recipe's section. Follows ``types.Adapter``."""

    title = "AFLoRA"

    def new_part(self, name: str, site: nn.Module) -> Part:
        """As the base class; A and B train by the layer's place."""
        part = cast(AfloraWeights, super().new_part(name, site))
        if self.section.trains_matrices(names.in_feed_forward(name)):
            return AfloraWeights(part.A, part.B, part.scale, part.dropout, trains=True)
        return part

    def linear_part(self, generator: torch.Generator, layer: nn.Module, rank: int, alpha: float) -> LinearPart:
        """A and B random, d 0.1 and b zero."""
        section = self.section
        num_in, num_out = lora_layer.widths(layer)
        A = lora_layer.uniform_matrix(generator, rank, num_in)
        B = lora_layer.uniform_matrix(generator, num_out, rank)
        scale = alpha / rank if section.scaling == "alpha" else 1.0
        return AfloraWeights(A, B, scale, section.dropout, trains=False)

    def groups(self) -> list[ParamGroup]:
        """As the base class; matrices that may be frozen and vectors of the parts have groups of their own."""
        parts = self.trained_parts()
        split: list[ParamGroup] = []
        for group in super().groups():
            own = [item for item in group.parameters if item[0] in parts]
            matrices = tuple(item for item in own if item[0].endswith(_MATRICES))
            vectors = tuple(item for item in own if not item[0].endswith(_MATRICES))
            beside = tuple(item for item in group.parameters if item[0] not in parts)
            rate = group.rate_factor * self.section.vector_rate
            split += [
                replace(group, name="aflora A and B", parameters=matrices, scored=True),
                replace(group, name="aflora d and b", parameters=vectors, rate_factor=rate),
                replace(group, parameters=beside),
            ]
        return [group for group in split if group.parameters]

    def layout(self) -> peft_layout.Layout:
        """As PEFT's LoRA, the vectors folded into the matrices; its alpha gives the same factor."""
        state = self.state()
        ranks: dict[str, tuple[int, float]] = {}
        for name, site in self._sites.items():
            part = cast(AfloraWeights, self.part_at(site))
            for ending in part.named():
                del state[f"{name}.{ending}"]
            A, B = part.as_lora()
            state |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
            ranks[name] = (A.shape[0], part.scale * A.shape[0])
        section = LoraSection(
            rank=self.section.rank,
            alpha=next(iter(ranks.values()))[1],
            dropout=self.section.dropout,
            targets=self.section.targets,
        )
        return peft_layout.layout(self.model, section, ranks, self._tokens.ids, state)
