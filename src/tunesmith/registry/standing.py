"""How a run stands: what its status says, and whether the process that wrote it is still there. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.registry import lease

NEVER_SAID = {"status": "interrupted", "step": 0, "message": "stopped before the first step"}
"""The status of a run that was created and never wrote one."""
AGAIN = "start the same command again to go on from there"
_TAIL_BYTES = 1 << 16


def standing(folder: Path, said: Mapping[str, Any] | None) -> dict[str, Any]:
    """The status of a run as it is.

    A run that a process works on is ``running``, whatever the process before left; one that says it is running while no
    living process holds its lease is ``lost``. For both, ``step`` is that of the last line of metrics.

    Args:
        folder: of the run.
        said: what status.json holds; None where there is none.
    """
    values = dict(NEVER_SAID if said is None else said)
    if values.get("status") == "done":
        return values
    if lease.owner(folder) is not None:
        return {**values, "message": "", **_reached(folder), "status": "running"}
    former = lease.named(folder)
    if values.get("status") == "running" or (said is None and former is not None):
        who = f": {former}" if former is not None else ""
        return {
            **values,
            **_reached(folder),
            "status": "lost",
            "message": f"the process that worked on it is gone{who}",
        }
    return values


def said_next(before: Mapping[str, Any], status: str | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a status becomes: earlier values that are not given anew stay; message and cause go with a new status.

    Args:
        before: what was said.
        status: None keeps it.
        values: given anew.
    """
    if status is None:
        return {"status": "running", **before, **values}
    kept = {key: value for key, value in before.items() if key != "diverged"}
    return {**kept, "message": "", "status": status, **values}


def _reached(folder: Path) -> dict[str, int]:
    """``step`` of the last whole line of training in metrics.jsonl; only its end is read."""
    try:
        with (folder / "metrics.jsonl").open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - _TAIL_BYTES))
            lines = stream.read(_TAIL_BYTES).split(b"\n")
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and "learning_rate" in values and isinstance(values.get("step"), int):
            return {"step": values["step"]}
    return {}
