"""The likeliest cause of a step that was not finite, found by looking at weights and rows again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunesmith.engine.precision import Precision
from tunesmith.types import Batch, Objective

_MOST_NAMED = 4


@dataclass(frozen=True)
class Cause:
    """A sentence, the rows it points at (empty: the whole step), and how to mend it."""

    what: str
    rows: tuple[int, ...]
    hint: str


@torch.no_grad()
def find_cause(
    model: Any, objective: Objective, precision: Precision, step: Sequence[Batch], *, loss_rises: bool, rate: float
) -> Cause:
    """Look for weights that are not finite, then for rows that are not by themselves, then at the curve.

    The refused step changed nothing, so the model stands where it stood.

    Args:
        model: the facade.
        objective: what was minimised.
        precision: of the forward pass.
        step: the passes of the step.
        loss_rises: whether the loss went up before.
        rate: peak learning rate of the run, for advice.
    """
    if names := _damaged(model):
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        named = ", ".join(name.removeprefix("hf.") for name in names[:_MOST_NAMED]) + (
            f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        )
        if set(names) <= trained:
            return Cause(f"trained weights are not finite: {named}", (), _slower(rate))
        return Cause(
            f"weights of the base are not finite: {named}", (),
            "the model's files are damaged or were saved from a run that diverged: copy them again",
        )  # fmt: skip
    rows = _bad_rows(model, objective, precision, step)
    if rows and len(rows) < sum(len(batch.rows) for batch in step):
        return Cause(
            f"{len(rows)} of the step's rows are not finite by themselves", tuple(rows),
            "look at them with `tunesmith data show RECIPE --row N`, or go around them in a run of its own: `training.guards.non_finite=skip --run NAME`",
        )  # fmt: skip
    if loss_rises:
        return Cause("the loss was rising: the learning rate is too high", (), _slower(rate))
    if precision.scales:
        return Cause(
            "values exceed what fp16 can hold, at the smallest loss scale too", (),
            "set `training.precision` to fp32, or bf16 where the hardware has it",
        )  # fmt: skip
    return Cause("the likeliest cause is a learning rate that is too high", (), _slower(rate))


_LARGEST_RATE = 1.0
"""No method trains with more; a tenth of something absurd is no advice."""


def _slower(rate: float) -> str:
    if rate / 10 > _LARGEST_RATE:
        return "leave `training.learning_rate` out: the plan derives one; in a run of its own (`--run NAME`)"
    return f"try a tenth of the rate: `training.learning_rate={rate / 10:.1e}`, in a run of its own (`--run NAME`)"


def _damaged(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if not bool(torch.isfinite(parameter).all())]


def _bad_rows(model: Any, objective: Objective, precision: Precision, step: Sequence[Batch]) -> list[int]:
    """Rows whose own loss is not finite."""
    bad = []
    was_training = model.training
    model.eval()
    for batch in step:
        for index, row in enumerate(batch.rows):
            alone = batch.part(index, index + 1).to(model.device)
            with precision.autocast():
                totals = objective(model, alone, {}).totals
            if not all(bool(torch.isfinite(value)) for value in totals.values()):
                bad.append(row)
    model.train(was_training)
    return bad


def name_rows(rows: Sequence[int], name_row: Callable[[int], str], most: int = 8) -> str:
    """Rows in words, the first few by name."""
    named = ", ".join(name_row(row) for row in rows[:most])
    return named + (f" and {len(rows) - most} more" if len(rows) > most else "")
