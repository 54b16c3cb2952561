"""Whether training went down at all: the last look at a run before its result is written.

The loop's own guard compares medians of 32 steps; a run of fewer steps may end before it has seen that many.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from tunesmith.errors import Diverged
from tunesmith.registry.runs import RunFolder

_HELD_OUT_FACTOR, _HELD_OUT_NATS = 1.1, 0.5
_FIRST_STEPS, _LAST_SHARE = 3, 4


def check_descent(run: RunFolder, policy: str, step: int, say: Callable[[str, str], None]) -> None:
    """Act on a result that is worse than the base both on held-out rows and on the rows that trained it.

    A model that learnt its rows by heart may be worse on held-out ones; its training loss has fallen. One that is worse on
    both has learnt nothing and lost what it knew.

    Args:
        run: with its metrics whole.
        policy: ``stop``, ``warn`` or ``off``.
        step: whose weights are the result.
        say: kind of event and sentence.

    Raises:
        Diverged: it is, and the policy is to stop.
    """
    found = None if policy == "off" else risen(list(run.metrics()), step)
    if found is None:
        return
    if policy == "warn":
        say("diverging", f"{found}; `training.guards.divergence: warn` writes the result all the same")
        return
    raise Diverged(
        f"training has diverged: {found}; no result is written",
        where=f"step {step} of {run.path}",
        hint="the usual cause is a learning rate that is too high: leave `training.learning_rate` out, or try a tenth of it, "
        "in a run of its own (`--run NAME`); `training.guards.divergence: off` takes such results",
    )


def risen(metrics: list[dict[str, Any]], step: int) -> str | None:
    """A clause where the held-out loss at ``step`` lies far above the first one and the training loss rose as well."""
    held_out = {line["step"]: line["validation_loss"] for line in metrics if line.get("validation_loss") is not None}
    losses = [line["loss"] for line in metrics if line.get("loss") is not None and line["step"] <= step]
    if step not in held_out or len(held_out) < 2 or len(losses) < 2 * _FIRST_STEPS:
        return None
    first, last = held_out[min(held_out)], held_out[step]
    began = statistics.median(losses[:_FIRST_STEPS])
    ended = statistics.median(losses[-max(_FIRST_STEPS, len(losses) // _LAST_SHARE) :])
    if last <= first * _HELD_OUT_FACTOR + _HELD_OUT_NATS or ended <= began:
        return None
    return f"the held-out loss rose from {first:.3g} to {last:.3g}, that of training from {began:.3g} to {ended:.3g}"
