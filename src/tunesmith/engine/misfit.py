"""Whether a checkpoint fits what it is to be put into; asked before any of it is: half a restored run is none.

A seal proves that bytes are those that were written, not by whom.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, Protocol

from tunesmith.engine.checkpoint import Checkpoint, trained_of
from tunesmith.engine.optim import Optimiser
from tunesmith.engine.options import TrainerOptions
from tunesmith.engine.pace import Pace
from tunesmith.engine.ranks import Ranks
from tunesmith.engine.state_form import state_fault
from tunesmith.engine.tensor_form import trained_fault
from tunesmith.engine.verdict import Judge
from tunesmith.types import Adapter, Objective

_UNFIT = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Going(Protocol):
    """What a checkpoint is put into: the parts of a trainer."""

    adapter: Adapter
    objective: Objective
    stream: Any
    options: TrainerOptions
    optimiser: Optimiser
    judge: Judge
    pace: Pace
    hooks: Any
    ranks: Ranks


def plain_fault(checkpoint: Checkpoint) -> str | None:
    """What is wrong with a checkpoint by itself, whatever it is to be put into; None where nothing is."""
    return state_fault(checkpoint.state, checkpoint.step)


def misfit(checkpoint: Checkpoint, trainer: Going) -> str | None:
    """Why a trainer cannot go on from a checkpoint, or None. Neither is changed."""
    if fault := plain_fault(checkpoint):
        return fault
    if checkpoint.step > trainer.options.total_steps:
        return f"it is of step {checkpoint.step}, and the run has {trainer.options.total_steps}"
    if fault := trained_fault(checkpoint.trained, trained_of(trainer.adapter, trainer.objective.parts)):
        return fault
    if fault := trainer.optimiser.fault(checkpoint.optimiser):
        return f"optimiser.safetensors: {fault}"
    if not checkpoint.optimiser and _has_moved(checkpoint, trainer):
        return "optimiser.safetensors holds nothing, although steps were made"
    return _state_misfit(checkpoint.state, trainer)


def _has_moved(checkpoint: Checkpoint, trainer: Going) -> bool:
    """Whether some step since the optimiser began must have left a state of it. The main rank knows where that was."""
    options = trainer.options
    if not trainer.ranks.is_main or (options.optimiser == "sgd" and options.momentum == 0):
        return False
    steps = range(trainer.optimiser.began, checkpoint.step)
    return len(steps) > len(set(checkpoint.state["recovery"]["left_out"]).intersection(steps))


def _state_misfit(state: Mapping[str, Any], trainer: Going) -> str | None:
    judge, saved = trainer.judge, state["judge"]
    hooks = trainer.hooks if trainer.ranks.is_main else []
    if len(judge.controls) != len(saved["controls"]) or (hooks and len(hooks) != len(state["hooks"])):
        return "state.json is of a run with other hooks or guards"
    if fault := trainer.pace.fault(state["pace"], int(state["step"])):
        return f"state.json.pace: {fault}"
    parts: list[tuple[str, _Stateful, Any]] = [
        ("stream", trainer.stream, state["stream"]), ("judge.clipping", judge.clipping, saved["clipping"]),
        *((f"judge.controls[{at}]", part, saved["controls"][at]) for at, part in enumerate(judge.controls)),
        *((f"hooks[{at}]", part, state["hooks"][at]) for at, part in enumerate(hooks)),
    ]  # fmt: skip
    bad = next((name for name, part, value in parts if not _goes_in(part, value)), None)
    return bad and f"state.json.{bad} is none that this run saves"


def _goes_in(part: _Stateful, saved: Mapping[str, Any]) -> bool:
    """Whether a part takes a state and gives the same back; it has its own again afterwards."""
    before = copy.deepcopy(part.state_dict())
    try:
        part.load_state_dict(saved)
        same: bool = _plain(part.state_dict()) == saved
    except _UNFIT:
        return False
    finally:
        part.load_state_dict(before)
    return same


def _plain(state: Mapping[str, Any]) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(state))
