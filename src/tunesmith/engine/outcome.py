"""How a run of the loop ended."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """How a run ended. ``loss`` is that of the last step, in nats per unit; ``times`` seconds by part."""

    steps: int
    tokens: int
    loss: float
    seconds: float
    stopped_early: str | None = None
    times: dict[str, float] = field(default_factory=dict)
