"""What the trainer must know; plain values, nothing of a method."""

from __future__ import annotations

from dataclasses import dataclass, field

from tunesmith.engine.clipping import ZClipOptions
from tunesmith.engine.recovery import GuardOptions
from tunesmith.engine.spikes import SpikeOptions
from tunesmith.engine.windows import ScoreRule, Timetable


@dataclass(frozen=True)
class TrainerOptions:
    """Budget, optimiser, schedule, precision and cadence of one run. Steps count from 0; cadences are in steps."""

    total_steps: int
    learning_rate: float
    warmup_steps: int
    schedule: str = "cosine"
    decay_share: float = 0.2
    optimiser: str = "adamw"
    offload_optimiser: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    weight_decay: float = 0.01
    clip: float | None = 1.0
    precision: str = "fp32"
    seed: int = 0
    log_every: int = 1
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    evaluate_every: int = 100
    recompute: bool = False
    has_dropout: bool = False
    save_in_background: bool = True
    max_failed_saves: int = 3
    zclip: ZClipOptions | None = None
    spikes: SpikeOptions | None = None
    guards: GuardOptions = field(default_factory=GuardOptions)
    timetable: Timetable | None = None
    score_rule: ScoreRule | None = None
