"""Early stopping on one measure of validation; remembers the best step so that its checkpoint becomes the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class EarlyStopping:
    """Patience over evaluations: the measure must get better by more than ``min_delta`` to count.

    ``name`` is what is measured, in words; with ``higher`` more of it is better.
    """

    patience: int
    min_delta: float = 0.0
    name: str = "validation loss"
    higher: bool = False
    best: float | None = None
    best_step: int = 0
    waited: int = 0

    def see(self, step: int, value: float) -> str | None:
        """Take one evaluation; return a sentence once patience has run out. ``value`` is finite."""
        if self.best is None or self._gain(value) > self.min_delta:
            self.best, self.best_step, self.waited = value, step, 0
            return None
        self.waited += 1
        if self.waited < self.patience:
            return None
        best = f"the best was {self.best:.4f} at step {self.best_step}"
        return f"{self.name} has not improved for {self.waited} evaluations; {best}"

    def _gain(self, value: float) -> float:
        assert self.best is not None
        return value - self.best if self.higher else self.best - value

    def state_dict(self) -> dict[str, Any]:
        """Best value and step, and how long it has waited."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self.best = None if state["best"] is None else float(state["best"])
        self.best_step, self.waited = int(state["best_step"]), int(state["waited"])
