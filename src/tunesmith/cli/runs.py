"""``tunesmith runs list``, ``show``, ``compare`` and ``reproduce``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from tunesmith.cli import doors
from tunesmith.cli.arguments import run_argument
from tunesmith.cli.command import Verb, VerbGroup
from tunesmith.cli.progress import open_progress
from tunesmith.cli.scores import comparison_lines, measure_name, scorecard_lines
from tunesmith.cli.terminal import Terminal, table
from tunesmith.errors import GateRefused
from tunesmith.registry.compare import compare_runs, curves
from tunesmith.registry.lineage import lineage_line, read_lineage
from tunesmith.registry.runs import RUNS, RunFolder, RunSummary, list_runs, summarise
from tunesmith.reports.measures import read_score, show_interval, show_value
from tunesmith.reports.wording import as_mapping, count, duration, number

_SPARKS = "▁▂▃▄▅▆▇█"
_SPARK_POINTS = 32


@click.group(cls=VerbGroup, no_args_is_help=True)
def runs() -> None:
    """List, show, compare and reproduce what was run."""


@runs.command("list", cls=Verb)
@click.option(
    "--root", type=click.Path(path_type=Path), default=RUNS, show_default=True, help="Folder of the run folders."
)
@click.pass_obj
def list_(terminal: Terminal, root: Path) -> None:
    """List the runs of a folder, newest first."""
    found = list_runs(root)
    head: tuple[str, ...] = ("run", "status", "step", "model", "scope", "score", "age")
    rows = [_row(run) for run in found]
    if any(run.forked_from for run in found):
        head, rows = (*head, "forked from"), [(*row, run.forked_from) for row, run in zip(rows, found, strict=True)]
    lines = table(rows, head=head, right=(2,)) if found else [f"no runs in {root}"]
    for line in lines:
        terminal.show(line)
    for run in found:
        if run.why:
            terminal.show(f"{run.name}: {run.why}")
        elif run.status == "lost":
            terminal.show(f"{run.name}: {run.message}; {run.go_on}")
    if terminal.as_json:
        terminal.emit({"runs": [run.to_json() for run in found]})


def _row(run: RunSummary) -> tuple[str, ...]:
    of = f"/{count(run.steps)}" if run.steps else ""
    scope = " ".join(filter(None, (run.objective, run.adapter)))
    step = f"{count(run.step)}{of}"
    return (run.name, run.status, step, run.model, scope, _score(run.score), duration(run.age_seconds))


def _score(score: Mapping[str, Any] | None) -> str:
    if not score:
        return ""
    metric = str(score["metric"])
    return f"{measure_name(str(score['task']), metric)} {show_value(metric, read_score(score))}"


@runs.command(cls=Verb)
@run_argument("run")
@click.pass_obj
def show(terminal: Terminal, run: Path) -> None:
    """Show one run: status, scores against the base, curve."""
    folder = RunFolder.open(run)
    summary, curve = summarise(folder), curves(folder)
    cards, comparison, lineage = folder.scorecards(), folder.comparison(), read_lineage(folder)
    for line in table([*_facts(summary), *_descent(lineage)]):
        terminal.show(line)
    for line in _curve_lines(curve):
        terminal.show(line)
    if comparison:
        for line in comparison_lines(comparison):
            terminal.show(line)
    elif "tuned" in cards:
        for line in scorecard_lines(cards["tuned"]):
            terminal.show(line)
    if terminal.as_json:
        recipe = folder.recipe().model_dump(mode="json")
        values = {"recipe": recipe, "scorecards": cards, "comparison": comparison, "curves": curve, "lineage": lineage}
        terminal.emit({**summary.to_json(), **values})


def _facts(run: RunSummary) -> list[tuple[str, str]]:
    steps = f"{count(run.step)} of {count(run.steps)} steps" if run.steps else f"{count(run.step)} steps"
    why = run.why or run.message
    facts = [
        ("run", str(run.path)),
        ("status", f"{run.status}, {steps}, {duration(run.age_seconds)} ago" + (f": {why}" if why else "")),
        ("to go on", run.go_on),
        ("model", run.model),
        ("scope", " ".join(filter(None, (run.objective, run.adapter)))),
    ]
    return [(name, value) for name, value in facts if value or name != "to go on"]


def _descent(lineage: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if lineage is None:
        return []
    return [("forked from", lineage_line(lineage)), ("", lineage["parent"]["path"])]


def _curve_lines(curve: Mapping[str, Sequence[float]]) -> list[str]:
    lines = []
    for name, losses in (("loss", curve["losses"]), ("validation loss", curve["validation_losses"])):
        if losses:
            lines.append((name, number(losses[0], 4), sparkline(losses), number(losses[-1], 4)))
    return table(lines)


def sparkline(values: Sequence[float], num_points: int = _SPARK_POINTS) -> str:
    """A curve in one line of text: means of equal stretches, from the lowest to the highest."""
    num_points = min(num_points, len(values))
    edges = [position * len(values) // num_points for position in range(num_points + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_SPARKS[round((mean - low) * scale)] for mean in means)


@runs.command(cls=Verb)
@run_argument("a")
@run_argument("b", "OTHER")
@click.pass_obj
def compare(terminal: Terminal, a: Path, b: Path) -> None:
    """Set two runs side by side: what their recipes change, scores, curves.

    Each score keeps its own interval; `tunesmith eval MODEL SUITE --against MODEL` tests the difference row by row.
    """
    found = compare_runs(a, b)
    names = (str(found["a"]["name"]), str(found["b"]["name"]))
    if names[0] == names[1]:
        names = (str(a), str(b))
    for side, name in zip(("a", "b"), names, strict=True):
        if found["lineage"][side]:
            terminal.show(f"{name} was forked from {lineage_line(found['lineage'][side])}")
    differences = found["recipe"]
    terminal.show(f"recipes differ in ({names[0]} -> {names[1]}):" if differences else "the recipes are equal")
    for line in table([(line,) for line in differences]):
        terminal.show(line)
    for part in ("scores", "probes"):
        for line in table(_beside(found[part]), head=(part, *names)):
            terminal.show(line)
    for side, name in zip(("a", "b"), names, strict=True):
        for line in _curve_lines(found["curves"][side]):
            terminal.show(f"{name} {line.strip()}")
    if terminal.as_json:
        terminal.emit(found)


def _beside(scores: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for task, metrics in scores.items():
        for metric, sides in as_mapping(metrics).items():
            rows.append((measure_name(task, metric), *(_cell(metric, sides[side]) for side in ("a", "b"))))
    return [(row[0], row[1], row[2]) for row in rows]


def _cell(metric: str, value: Any) -> str:
    score = read_score(value)
    interval = show_interval(metric, score)
    return show_value(metric, score) + (f" ({interval})" if interval else "")


@runs.command(cls=Verb)
@run_argument("run")
@click.option(
    "--into", type=click.Path(path_type=Path), default=None,
    help="Folder of the repetition, which is kept; else RUN-reproduced, which is removed where all is equal.",
)  # fmt: skip
@click.pass_obj
def reproduce(terminal: Terminal, run: Path, into: Path | None) -> None:
    """Train a finished run again from what it recorded, and compare every step to the bit.

    Losses, gradient norms, rates, tokens, validation losses and the trained tensors are compared; nothing is scored. It stops
    at the first number that differs (exit 3). An interrupted repetition goes on with the same call.
    """
    progress = open_progress()
    try:
        found = doors.reproduce(run, into, progress=progress)
    finally:
        progress.close()
    if terminal.as_json:
        terminal.emit(found.to_json())
    if found.first is None:
        terminal.show(f"equal: {count(found.steps)} steps, their validation losses and the trained tensors, to the bit")
        if found.folder is not None:
            terminal.show(f"run: {found.folder}")
        return
    explained = [f"  {line}" for line in [*found.environment, *found.notes]]
    head = "what may explain it (run -> here):" if explained else "the environment is the one that the run recorded"
    for line in [head, *explained]:
        terminal.tell(line)
    raise GateRefused(
        f"the run is not reproduced: the first difference is at {found.first}",
        where=str(run),
        hint=f"`tunesmith runs compare {run} {found.folder}` shows the curves of both",
    )
