"""Low-rank adaptation (Hu et al. 2021) on the linear layers of a model: W + scale · B A, base frozen. And its variants.

rsLoRA (Kalajdzievski 2023) scales by alpha / sqrt(rank); LoRA+ (Hayou et al. 2024) gives B a higher rate; PiSSA (Meng et
al. 2024) and orthogonal matrices are other starts; DoRA (Liu et al. 2024) is in ``dora``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tunesmith.adapters import lora_layer, peft_layout
from tunesmith.adapters.dora import DoraWeights
from tunesmith.adapters.linear import LinearAdapter
from tunesmith.adapters.lora_layer import LinearPart, LoraWeights
from tunesmith.types import ParamGroup

_LARGEST_EXACT = 1024
_POWER_ITERATIONS = 8
_OVERSAMPLED = 8


class LoraAdapter(LinearAdapter):
    """LoRA by a recipe's section. Follows ``types.Adapter``."""

    title = "LoRA"

    def linear_part(self, generator: torch.Generator, layer: nn.Module, rank: int, alpha: float) -> LinearPart:
        """A and B by the section's start, so that the update is zero."""
        section = self.section
        scale = alpha / (math.sqrt(rank) if section.rslora else rank)
        num_in, num_out = lora_layer.widths(layer)
        if section.init == "pissa":
            A, B = principal(lora_layer.weight_of(layer), rank, scale, generator)
            return LoraWeights(A, B, scale, section.dropout, starts=True)
        if section.init == "orthogonal":
            A, B = orthogonal(generator, num_in, num_out, rank)
        else:
            A, B = lora_layer.uniform_matrix(generator, rank, num_in), torch.zeros(num_out, rank)
        if section.dora:
            weight_OI = lora_layer.weight_of(layer)
            return DoraWeights(A.to(weight_OI.device), B.to(weight_OI.device), scale, section.dropout, weight_OI)
        return LoraWeights(A, B, scale, section.dropout)

    def groups(self) -> list[ParamGroup]:
        """As the base class; with ``rate_ratio`` B has groups of its own, with that factor."""
        groups = super().groups()
        ratio = self.section.rate_ratio
        if ratio == 1:
            return groups
        split: list[ParamGroup] = []
        for group in groups:
            fast = tuple(item for item in group.parameters if item[0].endswith(".lora_B.weight"))
            slow = tuple(item for item in group.parameters if not item[0].endswith(".lora_B.weight"))
            split += [ParamGroup(group.name, slow, group.rate_factor, group.decay)] if slow else []
            split += [ParamGroup(f"{group.name} B", fast, group.rate_factor * ratio, group.decay)] if fast else []
        return split

    def layout(self) -> peft_layout.Layout:
        """As PEFT's LoRA. A start that is left out goes into A and B of twice the rank: the same scale needs another alpha."""
        ranks = dict(self.ranks)
        state = self.state()
        for name, site in self._sites.items():
            part = self.part_at(site)
            if isinstance(part, LoraWeights) and state.pop(f"{name}.start_A", None) is not None:
                del state[f"{name}.start_B"]
                A, B = part.factors()
                state |= {f"{name}.lora_A.weight": A.detach(), f"{name}.lora_B.weight": B.detach()}
                rank, alpha = ranks[name]
                ranks[name] = (2 * rank, alpha * (math.sqrt(2) if self.section.rslora else 2))
        return peft_layout.layout(self.model, self.section, ranks, self._tokens.ids, state)


def principal(weight_OI: Tensor, rank: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A (RI) and B (OR) whose product times ``scale`` is the weight's best approximation of that rank (PiSSA, §3).

    Exact where the smaller side is at most 1,024; beyond, by power iteration (Halko et al. 2011, algorithm 4.4) where
    the weight lies, from a start drawn from ``generator``.
    """
    if min(weight_OI.shape) <= _LARGEST_EXACT:
        U, S, Vh = torch.linalg.svd(weight_OI.cpu(), full_matrices=False)
    else:
        start = torch.randn(weight_OI.shape[1], rank + _OVERSAMPLED, generator=generator)
        Q, _ = torch.linalg.qr(weight_OI @ start.to(weight_OI.device))
        for _ in range(_POWER_ITERATIONS):
            Q, _ = torch.linalg.qr(weight_OI.t() @ Q)
            Q, _ = torch.linalg.qr(weight_OI @ Q)
        small, S, Vh = torch.linalg.svd(Q.t() @ weight_OI, full_matrices=False)
        U = Q @ small
    root_R = (S[:rank] / scale).sqrt()
    return (root_R[:, None] * Vh[:rank]).contiguous(), (U[:, :rank] * root_R).contiguous()


def orthogonal(generator: torch.Generator, num_in: int, num_out: int, rank: int) -> tuple[Tensor, Tensor]:
    """A and B in orthogonal halves of the rank, so that B A is zero though neither is (as PEFT's ``orthogonal``)."""
    Q_RR, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator))
    A = torch.randn(num_in, rank // 2, generator=generator) @ Q_RR[0::2]
    B = torch.randn(num_out, rank // 2, generator=generator) @ Q_RR[1::2]
    return (A.t() / 10).contiguous(), (B / 10).contiguous()
