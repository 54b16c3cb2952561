"""The first checkpoint of a child run, made from one of its parent's: what is carried over, and what starts anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tunesmith.engine.checkpoint import Checkpoint
from tunesmith.engine.optim import is_beside


@dataclass(frozen=True)
class Carried:
    """What a child takes over beside the weights.

    Attributes:
        position: step, counts and the place in the data.
        optimiser: its moments.
        loss_scale: of fp16.
        clipping: the history that ZClip clips by.
        spikes: the windows of the guards.
        freezing: what is frozen, and what its rule has seen.
    """

    position: bool = False
    optimiser: bool = False
    loss_scale: bool = False
    clipping: bool = False
    spikes: bool = False
    freezing: bool = False


def first_checkpoint(parent: Checkpoint, fresh: Mapping[str, Any], carried: Carried) -> Checkpoint:
    """The parent's checkpoint as the start of a child.

    Hooks (early stopping among them), what rollbacks left out, measures against lack of memory and the level of the loss
    start anew: they speak of the parent's own course.

    Args:
        parent: what the parent saved.
        fresh: state of the child's trainer before its first step.
        carried: what else is taken over.
    """
    state = dict(fresh)
    if carried.position:
        state |= {key: parent.state[key] for key in ("step", "updates", "tokens", "loss")}
        state["stream"] = {**fresh["stream"], **parent.state["stream"]}
    if carried.loss_scale:
        state["precision"] = parent.state["precision"]
    judge = dict(fresh["judge"])
    if carried.clipping:
        judge["clipping"] = parent.state["judge"]["clipping"]
    if carried.spikes:
        judge["controls"] = parent.state["judge"]["controls"]
    state["judge"] = judge
    if carried.freezing:
        state["pace"] = parent.state["pace"]
    optimiser = {
        name: tensor
        for name, tensor in (parent.optimiser if carried.optimiser else {}).items()
        if carried.freezing or not is_beside(name)
    }
    return Checkpoint(int(state["step"]), parent.trained, optimiser, state)


def tensor_differences(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names whose shape or type differ, as ``name: before -> after`` lines."""
    names = [*before, *(name for name in after if name not in before)]
    shown = {name: (_shown(before.get(name)), _shown(after.get(name))) for name in names}
    return [f"{name.partition('/')[2]}: {one} -> {other}" for name, (one, other) in shown.items() if one != other]


def _shown(tensor: Tensor | None) -> str:
    if tensor is None:
        return "none"
    shape = " x ".join(map(str, tensor.shape)) or "scalar"
    return f"{shape} {str(tensor.dtype).removeprefix('torch.')}"
