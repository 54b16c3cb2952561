"""What happens when numbers, memory, disk or time go wrong while training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.recipe.section import Section

RefusalName = Literal["stop", "skip", "rollback"]


class SpikeSection(Section):
    """A loss or gradient norm that stands out from the last steps."""

    action: RefusalName = "skip"
    """``skip`` leaves the step out, ``rollback`` goes back to the newest checkpoint and around it, ``stop`` ends the run."""
    window: int = Field(default=128, ge=8)
    """Steps that it is compared with; it is judged once half of them are there."""
    threshold: float = Field(default=6.0, gt=0.0)
    """Deviations above the centre that make a spike."""
    statistic: Literal["mean", "median"] = "mean"
    """``mean`` and standard deviation, or ``median`` and 1.4826 times the median absolute deviation, which spikes do not widen."""


class ZClipSection(Section):
    """ZClip (Kumar et al. 2025): clip a gradient norm that stands out from its own running mean."""

    threshold: float = Field(default=2.5, gt=0.0)
    """Deviations above the running mean that are clipped."""
    decay: float = Field(default=0.97, gt=0.0, lt=1.0)
    """Weight of the past in running mean and variance."""
    warmup: int = Field(default=25, ge=2)
    """Steps that start mean and variance; only ``clip`` holds in them."""
    mode: Literal["adaptive", "mean", "percentile"] = "adaptive"
    """What a norm is clipped to: closer to the mean the further it stands out, the mean, or the threshold."""


class GuardsSection(Section):
    """Policies. Whatever they do is an event; a step that is refused changes nothing."""

    non_finite: RefusalName = "stop"
    """A loss or gradient that is not a number: ``stop`` (exit 4), ``skip`` the step, or ``rollback``."""
    max_skipped: int = Field(default=10, gt=0)
    """Steps skipped in a row that end the run."""
    max_rollbacks: int = Field(default=3, gt=0)
    """Rollbacks that end the run."""
    rollback_window: int = Field(default=2, ge=0)
    """Steps before the offending one that a rollback leaves out with it (PaLM's rule)."""
    spikes: SpikeSection | None = None
    """Watch for spikes; unset does not."""
    divergence: Literal["stop", "warn", "off"] = "stop"
    """The loss of the last 32 steps is half above that of the first 8 and more: the run is lost."""
    max_failed_saves: int = Field(default=3, gt=0)
    """Checkpoints in a row that the disk does not take before the run stops. Free on resume."""
    stall_minutes: float | None = Field(default=None, gt=0.0)
    """Minutes without a step after which the run is stopped with a checkpoint; unset only says so. The first step, which may
    compile, evaluations and saves have ten times as long. Free on resume."""
