"""How large an update is, in how many directions, and how much two of them have in common. From factors, without dense matrices.

    effective rank     exp(−Σ p ln p), p = σ / Σσ            (Roy and Vetterli 2007)
    overlap of spaces  ‖V_kᵀ V′_k‖² / k, 0 to 1               (Hu et al. 2021, equation 4); chance gives k / width
    cosine             ⟨ΔW, ΔW′⟩ / (‖ΔW‖ ‖ΔW′‖)

V are singular vectors: right ones are directions of the input that an update reads, left ones directions of the output it writes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.adapters.updates import Directions, Update

SHARES = (1, 2, 4, 8, 16)
_SHOWN = 16
_DIRECTIONS = 8
_LEAST = 1e-6


@dataclass(frozen=True)
class Spectrum:
    """One update.

    Attributes:
        shape: outputs and inputs.
        rank: inner width of its factors; None where it has none.
        norm: Frobenius norm.
        relative: norm over that of the base's weight; None where there is no such weight.
        values: the largest singular values, at most 16.
        effective_rank: over all values that were computed.
        shares: k -> share of the squared norm in the first k directions.
    """

    shape: tuple[int, int]
    rank: int | None
    norm: float
    relative: float | None
    values: tuple[float, ...]
    effective_rank: float
    shares: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "shape": list(self.shape),
            "rank": self.rank,
            "norm": self.norm,
            "relative": self.relative,
            "values": list(self.values),
            "effective_rank": self.effective_rank,
            "energy": {str(k): share for k, share in self.shares.items()},
        }


@dataclass(frozen=True)
class Overlap:
    """Two updates of one weight.

    Attributes:
        cosine: of the updates; None where one of them is zero.
        directions: k, how many of each are compared.
        reads: overlap of the input directions.
        writes: overlap of the output directions.
        chance: what random directions would have in common, of inputs and outputs.
        angle: smallest principal angle of the input directions, in degrees.
    """

    cosine: float | None
    directions: int
    reads: float
    writes: float
    chance: tuple[float, float]
    angle: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "cosine": self.cosine,
            "directions": self.directions,
            "reads": self.reads,
            "writes": self.writes,
            "chance_reads": self.chance[0],
            "chance_writes": self.chance[1],
            "smallest_angle_degrees": self.angle,
        }


def spectrum(update: Update, base_norm: float | None) -> Spectrum:
    """Measure an update.

    Args:
        update: of one weight.
        base_norm: Frobenius norm of the base's weight; None where there is none.
    """
    values = update.directions().values.double()
    norm, total = update.norm(), float(values.sum())
    shares, effective = dict.fromkeys(SHARES, 0.0), 0.0
    if total > 0:
        parts = values[values > 0] / total
        effective = float(torch.exp(-(parts * parts.log()).sum()))
        shares = {k: min(1.0, float(values[:k].square().sum()) / norm**2) for k in SHARES}
    relative = None if base_norm is None else norm / base_norm if base_norm else math.inf
    return Spectrum(update.shape, update.rank, norm, relative, tuple(values[:_SHOWN].tolist()), effective, shares)


def overlap(first: Update, second: Update) -> Overlap | None:
    """Compare two updates of one weight; None where one of them changes nothing."""
    one, other = first.directions(), second.directions()
    count = min(_DIRECTIONS, _numerical_rank(one), _numerical_rank(other))
    if count == 0:
        return None
    reads = torch.linalg.svdvals((one.right[:count] @ other.right[:count].T).double()).clamp(max=1.0)
    writes = torch.linalg.svdvals((one.left[:, :count].T @ other.left[:, :count]).double())
    outputs, inputs = first.shape
    return Overlap(
        cosine=first.inner(second) / (first.norm() * second.norm()),
        directions=count,
        reads=_mean_square(reads),
        writes=_mean_square(writes),
        chance=(count / inputs, count / outputs),
        angle=math.degrees(math.acos(float(reads[0]))),
    )


def _mean_square(cosines: Tensor) -> float:
    return min(1.0, float(cosines.square().mean()))


def _numerical_rank(found: Directions) -> int:
    """Directions whose singular value is more than rounding."""
    return int((found.values > _LEAST * found.values[:1]).sum())
