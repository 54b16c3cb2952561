"""Whether a recipe is the one that a run was started with, and what to do where it is not. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError
from tunesmith.recipe.fingerprint import differences, identity
from tunesmith.recipe.root import Recipe

_MOST_LINES = 12


def other_recipe(run: Path, before: Recipe, now: Recipe, derived: Mapping[str, str]) -> RunError | None:
    """An error that lists the keys that differ, or None.

    Args:
        run: folder of the run.
        before: resolved, as the run was started with it.
        now: resolved in the same way; what may change on resume is not compared.
        derived: dotted key -> why, for values of ``now`` that the written recipe leaves to the plan.
    """
    started_with = identity(before)
    changed = differences(started_with, identity(now))
    if not changed:
        return None
    reasons = {line: derived.get(_key(line), "") for line in changed}
    lines = [f"  {line}" + (f" (not set: {why})" if why else "") for line, why in reasons.items()]
    more = [f"  and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    return RunError(
        "\n".join(["this folder holds a run of another recipe (run -> recipe):", *lines[:_MOST_LINES], *more]),
        where=str(run),
        hint=_way_out(run, started_with, reasons),
    )


def _way_out(run: Path, started_with: Mapping[str, Any], reasons: Mapping[str, str]) -> str:
    """How to go on: where only values differ that the recipe leaves open, they can be stated."""
    if all(reasons.values()):
        stated = " ".join(f"{_key(line)}={_at(started_with, _key(line))}" for line in reasons)
        return f"to go on with the run, state what it was started with: `{stated}`"
    ways = ["name another folder with --run", "take the recipe back to what this run was started with"]
    if any((run / "checkpoints").glob("[0-9]*/manifest.json")):
        ways.append(f"start a child run from its checkpoint with `--fork {run}`")
    return ", or ".join(ways)


def _key(line: str) -> str:
    return line.partition(":")[0]


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values
