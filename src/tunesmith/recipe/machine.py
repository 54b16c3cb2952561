"""The machine a plan is for, where it differs from this one, and what it costs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.recipe.section import Section


class MachineSection(Section):
    """Hardware and prices. Not part of a run's identity except ``device``."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes CUDA where it is; ``cuda`` without a GPU is refused."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads; unset is the number of cores this process may use."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Memory to plan for; unset is what this machine has."""
    tflops: float | None = Field(default=None, gt=0)
    """Sustained training speed to plan with, in TFLOP/s; unset uses what was measured here before."""
    watts: float | None = Field(default=None, gt=0)
    """Power drawn while training, for the energy estimate."""
    price_per_hour: float | None = Field(default=None, ge=0)
    """Cost of an hour of this machine, in your currency."""
    deterministic: bool | None = None
    """Same bits twice; unset is on for CPU and off for CUDA."""


class LoggingSection(Section):
    """Where metrics go beside metrics.jsonl; each sink is an extra."""

    sinks: list[Literal["trackio", "tensorboard", "wandb", "mlflow"]] = Field(default_factory=list)
    """Additional sinks."""
    project: str = "tunesmith"
    """Project name at the sinks."""
