"""Spikes of the loss and of the gradient norm, found on the device by how far they stand out of their own history."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tunesmith.types import ParamGroup, Refusal

_MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution as a multiple of its median absolute deviation."""


@dataclass(frozen=True)
class SpikeOptions:
    """When a step is a spike, and what is done about it."""

    action: Refusal = "skip"
    window: int = 128
    threshold: float = 6.0
    statistic: Literal["mean", "median"] = "mean"


class SpikeGuard:
    """Refuses a step whose loss or gradient norm is above its window's centre by ``threshold`` deviations.

    ``mean``: mean and standard deviation, the rule of OLMo-core's SkipStepOptimizer. ``median``: median and 1.4826 times the
    median absolute deviation, which an earlier spike does not widen. Judged once half the window is filled; refused values
    enter the window too, so that a lasting shift of level is accepted in time. Values that are not finite do not.

    Args:
        options: see there.
        device: where loss and norm are computed.
    """

    name = "spike"

    def __init__(self, options: SpikeOptions, device: torch.device) -> None:
        self.options = options
        self.on_refusal: Refusal = options.action
        self._window_2W = torch.full((2, options.window), float("nan"), dtype=torch.float64, device=device)
        self._taken = 0

    def after_backward(self, step: int, loss: Tensor, grad_norm: Tensor, groups: Sequence[ParamGroup]) -> Tensor:
        """1 where the step is a spike, else 0; a scalar on the device."""
        now_2 = torch.stack([loss.detach(), grad_norm.detach()]).to(torch.float64)
        centre_2, deviation_2 = self._spread()
        judged = self._taken >= max(2, self.options.window // 2)
        spike = ((now_2 - centre_2) > self.options.threshold * deviation_2).any() & judged
        finite = torch.isfinite(now_2).all()
        place = self._taken % self.options.window
        self._window_2W[:, place] = torch.where(finite, now_2, torch.nan)
        self._taken += 1
        return (spike & finite).float()

    def after_step(self, step: int, groups: Sequence[ParamGroup]) -> None:
        """Nothing to do."""

    def _spread(self) -> tuple[Tensor, Tensor]:
        if self.options.statistic == "median":
            centre_2 = _median(self._window_2W)
            return centre_2, _median((self._window_2W - centre_2[:, None]).abs()) * _MAD_TO_SIGMA
        centre_2 = self._window_2W.nanmean(dim=1)
        count_2 = (~self._window_2W.isnan()).sum(dim=1)
        squares_2 = (self._window_2W - centre_2[:, None]).square().nansum(dim=1)
        return centre_2, (squares_2 / (count_2 - 1).clamp(min=1)).sqrt()

    def state_dict(self) -> dict[str, Any]:
        """The window; an empty place is null, which JSON can hold."""
        rows = [[None if math.isnan(value) else value for value in row] for row in self._window_2W.tolist()]
        return {"window": rows, "taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        rows = [[float("nan") if value is None else value for value in row] for row in state["window"]]
        self._window_2W.copy_(torch.tensor(rows, dtype=torch.float64))
        self._taken = int(state["taken"])


def _median(values_2W: Tensor) -> Tensor:
    """Lower median of each row without its NaNs; by sorting, which has deterministic kernels everywhere."""
    last_2 = ((~values_2W.isnan()).sum(dim=1) - 1).clamp(min=0)
    return values_2W.sort(dim=1).values.gather(1, (last_2 // 2)[:, None])[:, 0]
