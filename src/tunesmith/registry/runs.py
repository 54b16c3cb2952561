"""Runs: one folder each (``RunFolder``), all of a folder, newest first, each in one line. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError
from tunesmith.registry.lineage import parent_of, read_lineage
from tunesmith.registry.run_folder import RunFolder
from tunesmith.registry.standing import AGAIN
from tunesmith.visible import is_inert

__all__ = [
    "RUNS",
    "UNREADABLE",
    "RunFolder",
    "RunSummary",
    "find_run",
    "headline",
    "how_to_go_on",
    "list_runs",
    "summarise",
]

RUNS = Path("runs")
"""Where runs lie that are given no folder of their own."""
UNREADABLE = "unreadable"
_HEADLINE_ORDER = (
    ("exact_match", "accuracy"),
    ("exact_match", "exact_match"),
    ("label_ranking", "accuracy"),
    ("loss", "perplexity"),
    ("loss", "loss"),
)


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Attributes:
        path: its folder.
        name: name of the folder.
        status: ``running``, ``done``, ``interrupted``, ``stopped``, ``lost`` or ``unreadable``.
        why: what is broken in an unreadable run; else empty.
        message: why it ended before its time, as the run itself or its lost process tells; else empty.
        go_on: how to go on with a run that is unfinished; else empty.
        model: name of the base model.
        objective: type of the objective.
        adapter: type of the adapter.
        step: optimiser steps done.
        steps: optimiser steps of the budget, where known.
        forked_from: ``NAME@STEP`` of the parent of a child run; else empty.
        score: ``{"task", "metric", "value", "low", "high", "n"}`` of the tuned model, where it was scored.
        age_seconds: since the run last said something.
    """

    path: Path
    name: str
    status: str
    age_seconds: float
    why: str = ""
    message: str = ""
    go_on: str = ""
    model: str = ""
    objective: str = ""
    adapter: str = ""
    step: int = 0
    steps: int | None = None
    forked_from: str = ""
    score: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "path": str(self.path)}


def find_run(path: Path) -> Path:
    """The folder that a person means: ``path``, or where there is none, the run of that name in ``runs/``."""
    named = RUNS / path
    return named if not path.exists() and named.parent == RUNS and RunFolder(named).exists else path


def list_runs(root: Path) -> list[RunSummary]:
    """Runs in the folders of ``root``, newest first. Folders that are no runs are passed over.

    A run with a torn file is listed as ``unreadable`` with the reason.
    """
    if not root.is_dir():
        return []
    now = time.time()
    folders = [RunFolder(path) for path in sorted(root.iterdir()) if path.is_dir()]
    runs = [summarise(run, now) for run in folders if run.exists]
    return sorted(runs, key=lambda run: (run.age_seconds, run.name))


def summarise(run: RunFolder, now: float | None = None) -> RunSummary:
    """One run in a line; torn files make it ``unreadable``.

    Args:
        run: the run.
        now: seconds since 1970 that ages are counted to; the clock's where it is not given.
    """
    spoken = (run.recipe_path, run.status_path, run.metrics_path, run.events_path)
    marks = [path.stat().st_mtime for path in spoken if path.exists()]
    age = max(0.0, (time.time() if now is None else now) - max(marks, default=0.0))
    try:
        recipe, status = run.recipe(), run.status()
        return RunSummary(
            path=run.path,
            name=run.name,
            status=str(status["status"]),
            age_seconds=age,
            message=str(status.get("message") or ""),
            go_on=how_to_go_on(run, str(status["status"])),
            model=recipe.model.name,
            objective=recipe.objective.type,
            adapter=recipe.adapter.type,
            step=int(status.get("step") or 0),
            steps=status.get("steps"),
            forked_from=parent_of(read_lineage(run)),
            score=headline(run),
        )
    except (RunError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"{error.what} ({error.where})" if isinstance(error, RunError) else str(error)
        return RunSummary(path=run.path, name=run.name, status=UNREADABLE, age_seconds=age, why=why)


def how_to_go_on(run: RunFolder, status: str) -> str:
    """The words that resume a run of this status: its own command where it is known, nothing where there is nothing to do."""
    if status in ("running", "done"):
        return ""
    try:
        command = str(run.environment().get("command", ""))
    except (RunError, OSError):
        command = ""
    return f"`{command}` goes on from there" if is_inert(command) else AGAIN


def headline(run: RunFolder) -> dict[str, Any] | None:
    """The score that speaks for the run: the measure its comparison claims on, else the first of a fixed order."""
    tasks: Mapping[str, Mapping[str, Any]] = run.scorecards().get("tuned", {}).get("tasks", {})
    claimed = (run.comparison() or {}).get("claimed_on")
    if isinstance(claimed, str):
        task, _, metric = claimed.rpartition(".")
        if metric in tasks.get(task, {}):
            return {"task": task, "metric": metric, **tasks[task][metric]}
    for kind, metric in _HEADLINE_ORDER:
        for task, scores in tasks.items():
            if task.startswith(kind) and metric in scores:
                return {"task": task, "metric": metric, **scores[metric]}
    for task, scores in tasks.items():
        for metric, score in scores.items():
            return {"task": task, "metric": metric, **score}
    return None
