"""Learning-rate schedules as pure functions of the step: the factor on the peak rate, 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable

from tunesmith.engine.options import TrainerOptions

_SLANT_CUT = 0.1
_SLANT_RATIO = 32.0


def rate_factor(step: int, options: TrainerOptions) -> float:
    """Factor for the update of step ``step`` (from 0) of ``total_steps``.

    Warm-up is linear and reaches 1 at its last step. ``slanted`` has its own rise and ignores ``warmup_steps``.
    """
    if options.schedule == "slanted":
        return _slanted(step, options.total_steps)
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    rest = max(1, options.total_steps - options.warmup_steps)
    done = min(1.0, (step - options.warmup_steps) / rest)
    return _SHAPES[options.schedule](done, options.decay_share)


def _cosine(done: float, _share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _linear(done: float, _share: float) -> float:
    return 1 - done


def _constant(_done: float, _share: float) -> float:
    return 1.0


def _stable_then_decay(done: float, share: float) -> float:
    """Warm-up, stable, decay (Hu et al. 2024, MiniCPM §4): linear fall in the last ``share`` of the steps."""
    return 1.0 if done <= 1 - share else max(0.0, (1 - done) / share)


def _slanted(step: int, total: int) -> float:
    """Slanted triangle (Howard and Ruder 2018, §3.2): cut 0.1, ratio 32."""
    cut = max(1, math.floor(total * _SLANT_CUT))
    share = step / cut if step < cut else 1 - (step - cut) / max(1, cut * (1 / _SLANT_CUT - 1))
    return (1 + max(0.0, share) * (_SLANT_RATIO - 1)) / _SLANT_RATIO


_SHAPES: dict[str, Callable[[float, float], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
    "wsd": _stable_then_decay,
}
