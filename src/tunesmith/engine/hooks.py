"""Hooks observe: they log, evaluate, sample; they may ask to stop. They never steer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class StepFacts:
    """What one step did. Times are of the wall clock; tokens count the whole step over all ranks."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    trained_tokens: int
    trained_parameters: int
    seconds: float
    tokens_total: int
    applied: bool
    refused_by: str | None
    metrics: Mapping[str, float]


class Hook(Protocol):
    """An observer of the loop. ``step`` counts finished steps."""

    def after_step(self, facts: StepFacts) -> None:
        """Called for each step that is logged."""
        ...

    def at_interval(self, step: int) -> str | None:
        """Called every ``evaluate_every`` steps and at the end; a sentence asks to stop and says why."""
        ...

    def rewind(self, step: int) -> None:
        """Training goes back to the end of ``step``: what was told of later steps did not happen."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state that must survive a resume."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        ...
