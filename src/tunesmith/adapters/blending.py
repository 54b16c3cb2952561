"""Several changes of one tensor into one: weighted sums, TIES (Yadav et al. 2023, arXiv 2306.01708) and DARE (Yu et al. 2023, arXiv
2311.03099).

    linear      Σ w_i δ_i
    ties        δ_i trimmed to its largest entries; per entry the sign of Σ w_i δ_i is elected; the mean of those that agree
    dare        entries of δ_i dropped at random, the others divided by the density; Σ w_i δ_i
    dare-ties   dropped as in DARE; sign and mean as in TIES

δ are changes of the weights themselves, not of an adapter's factors: B A = (B M)(M⁻¹ A) for any M, so that which entry of a factor is
large, and which sign it has, says nothing about the update.

Weights are shares: they are divided by their sum, and the mean of TIES is weighted, over those that agree. Taken as they are
(``normalise`` off), TIES divides by the number of those that agree, as PEFT does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

METHODS = ("linear", "ties", "dare", "dare-ties")


@dataclass(frozen=True)
class Blending:
    """How to blend.

    Attributes:
        method: one of ``METHODS``.
        weights: of each change.
        density: share of entries that TIES and DARE keep.
        normalise: whether weights are shares.
    """

    method: str
    weights: tuple[float, ...]
    density: float = 0.5
    normalise: bool = True

    @property
    def factors(self) -> tuple[float, ...]:
        """The weights as changes are multiplied by them."""
        total = sum(self.weights)
        return tuple(weight / total for weight in self.weights) if self.normalise else self.weights

    @property
    def is_sum(self) -> bool:
        """Whether the result is a weighted sum of the changes as they are."""
        return self.method == "linear"

    def of(self, changes: Sequence[Tensor], draws: Callable[[int], torch.Generator]) -> Tensor:
        """Blend changes of one tensor, fp32 and alike in shape.

        Args:
            changes: one for each weight; zeros where an adapter leaves the tensor alone.
            draws: number of a change -> randomness on the CPU for what DARE drops of it.
        """
        if self.method.startswith("dare"):
            changes = [drop(change, self.density, draws(number)) for number, change in enumerate(changes)]
        elif self.method == "ties":
            changes = [trim(change, self.density) for change in changes]
        if not self.method.endswith("ties"):
            return sum_of(changes, self.factors)
        return agreed(changes, self.factors, weighted=self.normalise)


def trim(change: Tensor, density: float) -> Tensor:
    """Keep the share ``density`` of entries that are largest in size, at least one; zero the others."""
    flat = change.reshape(-1)
    kept = torch.topk(flat.abs(), max(1, int(density * flat.numel()))).indices
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view(change.shape)


def drop(change: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Zero each entry with probability 1 - ``density`` and divide the others by it: the expectation stays."""
    kept = torch.rand(change.shape, generator=generator) < density
    return change * kept.to(change.device) / density


def sum_of(changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ w_i δ_i."""
    total = torch.zeros_like(changes[0])
    for change, weight in zip(changes, weights, strict=True):
        total += weight * change
    return total


def agreed(changes: Sequence[Tensor], weights: Sequence[float], *, weighted: bool) -> Tensor:
    """TIES' elected sign and disjoint mean.

    Args:
        changes: δ_i, trimmed or dropped.
        weights: w_i; all positive where ``weighted``.
        weighted: divide by the sum of weights of those that agree, else by their number.
    """
    elected = sum_of(changes, weights)
    is_up = elected >= 0
    total, divisor = torch.zeros_like(elected), torch.zeros_like(elected)
    for change, weight in zip(changes, weights, strict=True):
        vote = weight * change
        agrees = (vote != 0) & ((vote > 0) == is_up)
        total += vote * agrees
        divisor += agrees * (weight if weighted else 1.0)
    return torch.where(divisor > 0, total / divisor.clamp(min=torch.finfo(divisor.dtype).tiny), 0.0)
