"""The level of the loss over a run: whether it has risen far above where it was, and stayed there."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

_RECENT_STEPS = 32
_FIRST = ((3, 3.0, 2.0), (8, 2.0, 1.0))
"""Steps whose median is a reference; the factor and the nats above it that count as risen: fewer steps, more doubt."""
_LATER_STEPS, _LATER_FACTOR, _LATER_NATS = 128, 1.5, 1.0


class LossLevel:
    """Compares the median of the last 32 losses with the lowest level before.

    References are the medians of the first 3 and of the first 8 steps, and the lowest median of each 128 steps on end: medians
    at every step would find a low stretch by chance sooner or later. The bounds are wide enough for losses of single
    rows, whose logarithms vary by 0.7.
    """

    def __init__(self) -> None:
        self._first: list[float] = []
        self._recent: deque[float] = deque(maxlen=_LATER_STEPS)
        self._lowest: float | None = None
        self._taken = 0

    def see(self, loss: float) -> str | None:
        """Take the loss of an applied step; a clause where the level has risen."""
        if len(self._first) < _FIRST[-1][0]:
            self._first.append(loss)
            return None
        self._recent.append(loss)
        self._taken += 1
        if len(self._recent) < _RECENT_STEPS:
            return None
        level = statistics.median(list(self._recent)[-_RECENT_STEPS:])
        for reference, bound in self._bounds():
            if level > bound:
                return f"the loss rose from {reference:.3g} to {level:.3g} (median of the last {_RECENT_STEPS} steps)"
        if self._taken % _LATER_STEPS == 0:
            median = statistics.median(self._recent)
            self._lowest = median if self._lowest is None else min(self._lowest, median)
        return None

    def _bounds(self) -> list[tuple[float, float]]:
        """References and what lies too far above them."""
        found = []
        for steps, factor, nats in _FIRST:
            reference = statistics.median(self._first[:steps])
            found.append((reference, reference * factor + nats))
        if self._lowest is not None:
            found.append((self._lowest, self._lowest * _LATER_FACTOR + _LATER_NATS))
        return found

    def rises(self) -> bool:
        """Whether the loss went up lately: the mark of a rate that is too high."""
        losses = [*self._first, *self._recent]
        return len(losses) >= 3 and statistics.median(losses[-3:]) > 1.2 * min(losses)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"first": list(self._first), "recent": list(self._recent), "lowest": self._lowest, "taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self._first, self._lowest, self._taken = list(state["first"]), state["lowest"], int(state["taken"])
        self._recent = deque(state["recent"], maxlen=_LATER_STEPS)
