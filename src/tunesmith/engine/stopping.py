"""Early stopping on a validation loss; remembers the best step so that its checkpoint becomes the result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class EarlyStopping:
    """Patience over evaluations: the loss must fall by more than ``min_delta`` to count."""

    patience: int
    min_delta: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    waited: int = 0

    def see(self, step: int, loss: float) -> str | None:
        """Take one evaluation; return a sentence once patience has run out."""
        if loss < self.best_loss - self.min_delta:
            self.best_loss, self.best_step, self.waited = loss, step, 0
            return None
        self.waited += 1
        if self.waited < self.patience:
            return None
        return f"validation loss has not improved for {self.waited} evaluations; the best was {self.best_loss:.4f} at step {self.best_step}"

    def state_dict(self) -> dict[str, Any]:
        """Best loss and step, and how long it has waited. An infinite best is null, which JSON can hold."""
        best = None if math.isinf(self.best_loss) else self.best_loss
        return {"best_loss": best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self.best_loss = math.inf if state["best_loss"] is None else float(state["best_loss"])
        self.best_step, self.waited = int(state["best_step"]), int(state["waited"])
