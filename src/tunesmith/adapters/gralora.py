"""GraLoRA (Jung et al. 2025, arXiv 2505.20355): a weight as k × k blocks, each with a low-rank update of its own.

    y_j = y_j + scale · Σ_n  x_n A_n[:, slice j] B_j[slice n, :]        x in k chunks (n), y in k chunks (j), §3

A block has rank r / k and the whole update up to k · r, with the parameters and the arithmetic of LoRA of rank r. An
outlier among the inputs touches the blocks of its own column only. With k = 1 it is LoRA. A hybrid adds plain LoRA.

Shapes: T tokens, I inputs, O outputs, k blocks a side, r rank, h hybrid rank. A is k·(I/k)·r, B is k·r·(O/k).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tunesmith.adapters import lora_layer, peft_gralora
from tunesmith.adapters.linear import LinearAdapter
from tunesmith.adapters.lora_layer import LinearPart
from tunesmith.adapters.peft_layout import Layout
from tunesmith.errors import RecipeError


class GraloraWeights(LinearPart):
    """The blocks of one adapter at one layer, and its plain path, in fp32.

    Args:
        A: k, I/k, r; chunk n of the inputs has ``A[n]``, whose slice j (r/k columns) is meant for chunk j of the outputs.
        B: k, r, O/k; chunk j of the outputs has ``B[j]``, whose slice n is fed by chunk n of the inputs.
        scale: factor of the update.
        dropout: probability of dropping an input while training.
        general_A: h, I; or None without a plain path.
        general_B: O, h.
    """

    def __init__(
        self,
        A: Tensor,
        B: Tensor,
        scale: float,
        dropout: float,
        general_A: Tensor | None = None,
        general_B: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.A = nn.Parameter(A)
        self.B = nn.Parameter(B)
        self.general_A = None if general_A is None else nn.Parameter(general_A)
        self.general_B = None if general_B is None else nn.Parameter(general_B)
        self.scale = scale
        self.dropout = dropout

    def forward(self, x: Tensor, y: Tensor, base_y: Tensor, site: Any) -> Tensor:
        """Return ``y`` plus the update, in y's dtype; two batched products over the blocks."""
        dtype = y.dtype
        k, chunk, rank = self.A.shape
        dropped = functional.dropout(x, self.dropout, self.training) if self.dropout else x
        x_TI = dropped.to(dtype).flatten(0, -2)
        h_kTr = torch.bmm(x_TI.view(-1, k, chunk).transpose(0, 1), self.A.to(dtype))
        exchanged_kTr = h_kTr.view(k, -1, k, rank // k).permute(2, 1, 0, 3).reshape(k, -1, rank)
        update_kTo = torch.bmm(exchanged_kTr, (self.B * self.scale).to(dtype))
        total = y + update_kTo.transpose(0, 1).reshape(y.shape)
        if self.general_A is not None and self.general_B is not None:
            h_Th = functional.linear(x_TI, self.general_A.to(dtype))
            total = total + functional.linear(h_Th, (self.general_B * self.scale).to(dtype)).view(y.shape)
        return total.to(dtype)

    def delta(self, weight_OI: Tensor) -> Tensor:
        """The update of the weight, fp32 OI."""
        A, B = self.as_lora()
        return self.scale * (B @ A)

    @torch.no_grad()
    def as_lora(self) -> tuple[Tensor, Tensor]:
        """A (rank k·r + h, I) and B (O, rank) of the LoRA that makes the same update."""
        k, chunk, rank = self.A.shape
        inner, wide = rank // k, self.B.shape[2]
        A = torch.zeros(k, rank, k * chunk)
        B = torch.zeros(k * wide, k, rank)
        for n in range(k):  # rows of A for input chunk n: its r directions, slice j of which goes to output chunk j
            A[n, :, n * chunk : (n + 1) * chunk] = self.A[n].float().cpu().t()
            for j in range(k):
                piece = self.B[j, n * inner : (n + 1) * inner].float().cpu()
                B[j * wide : (j + 1) * wide, n, j * inner : (j + 1) * inner] = piece.t()
        flat_A, flat_B = A.reshape(k * rank, -1).to(self.A.device), B.reshape(-1, k * rank).to(self.A.device)
        if self.general_A is None or self.general_B is None:
            return flat_A, flat_B
        return torch.cat([flat_A, self.general_A.float()]), torch.cat([flat_B, self.general_B.float()], 1)

    def named(self) -> dict[str, Tensor]:
        """The blocks and the plain path by PEFT's endings."""
        found: dict[str, Tensor] = {"gralora_A": self.A, "gralora_B": self.B}
        if self.general_A is not None and self.general_B is not None:
            found |= {"gralora_A_general.weight": self.general_A, "gralora_B_general.weight": self.general_B}
        return found

    def extra_repr(self) -> str:
        """Show blocks, ranks, scale and dropout in the module's printout."""
        hybrid = 0 if self.general_A is None else self.general_A.shape[0]
        return f"blocks={self.A.shape[0]}, rank={self.A.shape[2]}, hybrid={hybrid}, scale={self.scale:g}, dropout={self.dropout:g}"


class GraloraAdapter(LinearAdapter):
    """GraLoRA by a recipe's section. Follows ``types.Adapter``."""

    title = "GraLoRA"

    def choose_sites(self, model: nn.Module) -> dict[str, nn.Module]:
        """As LoRA; the blocks must divide each layer's widths."""
        chosen = super().choose_sites(model)
        for name, layer in chosen.items():
            require_divides(name, lora_layer.widths(layer), self.section.blocks)
        return chosen

    def linear_part(self, generator: torch.Generator, layer: nn.Module, rank: int, alpha: float) -> LinearPart:
        """A random, B zero, in the blocks and in the plain path."""
        k, hybrid = self.section.blocks, self.section.hybrid_rank
        num_in, num_out = lora_layer.widths(layer)
        A = torch.stack([lora_layer.uniform_matrix(generator, rank, num_in // k).t() for _ in range(k)]).contiguous()
        B = torch.zeros(k, rank, num_out // k)
        scale = alpha / (rank + hybrid)
        if not hybrid:
            return GraloraWeights(A, B, scale, self.section.dropout)
        general_A = lora_layer.uniform_matrix(generator, hybrid, num_in)
        return GraloraWeights(A, B, scale, self.section.dropout, general_A, torch.zeros(num_out, hybrid))

    def layout(self) -> Layout:
        """As PEFT's own method."""
        return peft_gralora.layout(self.model, self.section, self.ranks, self._tokens.ids, self.state())


def require_divides(name: str, widths: tuple[int, int], blocks: int) -> None:
    """Raise RecipeError where a layer cannot be cut into that many blocks a side."""
    for width, what in zip(widths, ("inputs", "outputs"), strict=True):
        if width % blocks:
            fitting = [k for k in range(1, 17) if all(side % k == 0 for side in widths)]
            raise RecipeError(
                f"`blocks` is {blocks}, which does not divide the {width} {what} of `{name}`",
                where="adapter.blocks",
                hint=f"take one of {', '.join(map(str, fitting))} for this layer, or leave it out of `targets`",
            )
