"""How a run of the loop ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Outcome:
    """How a run ended. ``loss`` is that of the last step, in nats per unit."""

    steps: int
    tokens: int
    loss: float
    seconds: float
    stopped_early: str | None = None
