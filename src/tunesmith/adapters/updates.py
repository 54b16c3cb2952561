"""What an adapter changes of each weight, as numbers to add: by its factors where it has them, so that no dense matrix is made.

    ΔW = B A        A: rank × inputs, B: outputs × rank; the scale is in B

Everything about size and directions comes from the factors: with B = Q_B R_B and Aᵀ = Q_A R_A the singular values of ΔW are those of
the small R_B R_Aᵀ. DoRA changes lengths of rows, which is of no low rank: its update is a whole matrix.

Shapes: O outputs, I inputs, R rank of the factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tunesmith.adapters import lora_layer
from tunesmith.adapters.added import AddedAdapter
from tunesmith.adapters.dora import DoraWeights
from tunesmith.adapters.gralora import GraloraWeights
from tunesmith.adapters.lora_layer import LinearPart, LoraWeights

LARGEST_EXACT = 1024
"""Smaller side of a dense matrix whose singular values are all computed."""
_MOST_VALUES = 64
_POWER_ITERATIONS = 4


class Directions(NamedTuple):
    """Singular value decomposition: left ``[O, k]``, values ``[k]`` in falling order, right ``[k, I]``."""

    left: Tensor
    values: Tensor
    right: Tensor


@dataclass(frozen=True)
class Update:
    """The change of one weight, fp32: two factors, or a whole matrix."""

    A: Tensor | None = None
    B: Tensor | None = None
    whole: Tensor | None = None

    @property
    def rank(self) -> int | None:
        """Inner width of the factors; None where there are none."""
        return None if self.A is None else int(self.A.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        if self.whole is not None:
            return int(self.whole.shape[0]), int(self.whole.shape[1])
        A, B = self.factors()
        return int(B.shape[0]), int(A.shape[1])

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B. Raises ValueError where there are none."""
        if self.A is None or self.B is None:
            raise ValueError("this update is of no low rank")
        return self.A, self.B

    def dense(self) -> Tensor:
        """The update as a matrix ``[O, I]``."""
        if self.whole is not None:
            return self.whole
        A, B = self.factors()
        return B @ A

    def norm(self) -> float:
        """Frobenius norm."""
        if self.whole is not None:
            return float(torch.linalg.norm(self.whole.double()))
        return float(torch.linalg.norm(_core(*self.factors())[1]))

    def directions(self) -> Directions:
        """All singular values and vectors; of a dense matrix larger than ``LARGEST_EXACT`` the first 64, by power iteration."""
        return self._directions

    @cached_property
    def _directions(self) -> Directions:
        if self.whole is not None:
            return _of_dense(self.whole)
        Q_B, core, Q_A = _core(*self.factors())
        left, values, right = torch.linalg.svd(core)
        return Directions((Q_B @ left).float(), values.float(), (right @ Q_A.T).float())

    def inner(self, other: Update) -> float:
        """Sum of products of like entries, ⟨ΔW, ΔW′⟩."""
        if self.whole is None and other.whole is None:
            (A, B), (C, D) = self.factors(), other.factors()
            return float(((B.double().T @ D.double()) * (A.double() @ C.double().T)).sum())
        if self.whole is None:
            return other.inner(self)
        if other.whole is not None:
            return float((self.whole.double() * other.whole.double()).sum())
        A, B = other.factors()
        return float(((B.T @ self.whole).double() * A.double()).sum())


def update_of(site: nn.Module, part: LinearPart) -> Update:
    """The update of one layer by one adapter's part."""
    with torch.no_grad():
        if isinstance(part, GraloraWeights):
            A, B = part.as_lora()
            return Update(A, part.scale * B)
        if isinstance(part, LoraWeights) and not isinstance(part, DoraWeights):
            A, B = part.factors()
            return Update(A.detach().float(), part.scale * B.detach().float())
        return Update(whole=part.delta(lora_layer.weight_of(site)))


def update_at(adapter: AddedAdapter, name: str) -> Update | None:
    """The update that an attached adapter makes of a layer; None where it makes none."""
    site = adapter.carriers().get(name)
    if site is None or not isinstance(part := adapter.part_at(site), LinearPart):
        return None
    return update_of(site, part)


def updates_of(adapter: AddedAdapter) -> dict[str, Update]:
    """The updates of an attached adapter by layer; empty for one whose parts are no change of weights."""
    return {name: found for name in adapter.carriers() if (found := update_at(adapter, name)) is not None}


def summed(updates: Sequence[Update], weights: Sequence[float]) -> Update:
    """Σ w ΔW: factors side by side, so exact; a whole matrix where one of them is."""
    if all(update.whole is None for update in updates):
        pairs = [update.factors() for update in updates]
        A = torch.cat([A for A, _ in pairs])
        return Update(A, torch.cat([weight * B for (_, B), weight in zip(pairs, weights, strict=True)], 1))
    total = torch.zeros(updates[0].shape, dtype=torch.float32, device=updates[0].dense().device)
    for update, weight in zip(updates, weights, strict=True):
        total += weight * update.dense()
    return Update(whole=total)


def reduced(update: Update, rank: int) -> tuple[Update, float]:
    """The best update of at most this rank (Eckart and Young), and the Frobenius norm of what it leaves out.

    The singular values are shared out evenly over both factors.
    """
    left, values, right = update.directions()
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    found = Update((root[:, None] * right[:kept]).contiguous(), (left[:, :kept] * root).contiguous())
    if update.whole is None:
        return found, float(torch.linalg.norm(values[kept:].double()))
    return found, float(torch.linalg.norm((update.whole - found.dense()).double()))


def _core(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal bases of both sides and the small matrix between them, in fp64."""
    Q_B, R_B = torch.linalg.qr(B.double())
    Q_A, R_A = torch.linalg.qr(A.double().T)
    return Q_B, R_B @ R_A.T, Q_A


def _of_dense(whole_OI: Tensor) -> Directions:
    if min(whole_OI.shape) <= LARGEST_EXACT:
        return Directions(*torch.linalg.svd(whole_OI, full_matrices=False))
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(whole_OI.shape[1], 2 * _MOST_VALUES, generator=generator).to(whole_OI.device)
    Q, _ = torch.linalg.qr(whole_OI @ start)
    for _ in range(_POWER_ITERATIONS):
        Q, _ = torch.linalg.qr(whole_OI.T @ Q)
        Q, _ = torch.linalg.qr(whole_OI @ Q)
    left, values, right = torch.linalg.svd(Q.T @ whole_OI, full_matrices=False)
    return Directions((Q @ left)[:, :_MOST_VALUES], values[:_MOST_VALUES], right[:_MOST_VALUES])
