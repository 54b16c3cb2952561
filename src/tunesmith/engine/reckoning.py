"""Past steps as the host learns of them: what was applied, what was refused and what follows, and the word to the hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tunesmith.engine.diagnosis import find_cause, name_rows
from tunesmith.engine.hooks import Hook, StepFacts
from tunesmith.engine.numbers import Numbers
from tunesmith.engine.precision import Precision
from tunesmith.engine.recovery import GiveUp, Recovery
from tunesmith.engine.verdict import Judge
from tunesmith.errors import Diverged
from tunesmith.types import Objective, Step

LEFT_OUT = "left_out"
_METRIC = "metric:"


class Reckoning:
    """Takes in the numbers of steps, in order.

    Args:
        model: the facade, asked again when a cause is looked for.
        objective: what is minimised.
        precision: of the forward pass.
        judge: knows which guard refused.
        recovery: decides what follows.
        hooks: told of each step.
        name_row: how errors name a row.
        rate: peak learning rate, for advice.
    """

    def __init__(
        self,
        model: Any,
        objective: Objective,
        precision: Precision,
        judge: Judge,
        recovery: Recovery,
        hooks: Sequence[Hook],
        name_row: Callable[[int], str],
        rate: float,
    ) -> None:
        self.model = model
        self.objective = objective
        self.precision = precision
        self.judge = judge
        self.recovery = recovery
        self.hooks = hooks
        self.name_row = name_row
        self.rate = rate
        self.updates = 0
        self.last_loss = math.nan

    def take_in(self, item: Numbers) -> None:
        """One step.

        Raises:
            Diverged: training cannot go on.
            RollBack: it goes on from a checkpoint.
        """
        scalars, index = item.scalars, item.facts.pop("index")
        loss, grad_norm = scalars["loss"], scalars["grad_norm"]
        refused_by = LEFT_OUT if LEFT_OUT in scalars else self.judge.refused_by(scalars)
        atoms: Step = item.facts.pop("atoms")
        try:
            if refused_by is None:
                self.updates += 1
                self.last_loss = loss
                self.recovery.applied(index, loss)
            elif refused_by not in (LEFT_OUT, "overflow"):
                what = f"loss {loss:.4g}, gradient norm {grad_norm:.4g}"
                self.recovery.refused(index, refused_by, self.judge.policy(refused_by), what)
        except GiveUp as end:
            raise self._stopped(end, atoms) from end
        metrics = {name.removeprefix(_METRIC): value for name, value in scalars.items() if name.startswith(_METRIC)}
        told = StepFacts(
            step=index + 1, loss=loss, grad_norm=grad_norm, applied=refused_by is None, refused_by=refused_by,
            metrics=metrics, **{"seconds": 0.0, **item.facts},
        )  # fmt: skip
        for hook in self.hooks:
            hook.after_step(told)

    def _stopped(self, end: GiveUp, atoms: Step) -> Diverged:
        rises = end.by == "divergence" or self.recovery.level.rises()
        cause = find_cause(self.model, self.objective, self.precision, atoms, loss_rises=rises, rate=self.rate)
        rows = cause.rows or tuple(row for batch in atoms for row in batch.rows)
        said = "; that step was not applied" if end.by not in ("divergence", "spoilt") else ""
        named = "" if end.by == "divergence" else f", rows {name_rows(rows, self.name_row)}"
        return Diverged(
            f"{end.why}{said}. {cause.what[0].upper()}{cause.what[1:]}",
            where=f"step {end.index + 1}{named}",
            hint=cause.hint,
        )
