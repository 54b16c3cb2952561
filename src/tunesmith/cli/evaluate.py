"""``tunesmith eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tunesmith.cli import doors
from tunesmith.cli.arguments import against_option, model_argument, read_recipe
from tunesmith.cli.command import Verb
from tunesmith.cli.progress import open_progress
from tunesmith.cli.scores import comparison_lines, scorecard_lines
from tunesmith.cli.terminal import Terminal
from tunesmith.models.locate import open_model


@click.command("eval", cls=Verb)
@model_argument
@click.argument("suite", metavar="SUITE")
@against_option("Score this one too, and compare them row by row.")
@click.pass_obj
def evaluate(terminal: Terminal, model: str, suite: str, against: str | None) -> None:
    """Score MODEL on SUITE: a recipe file, whose evaluation and data sections are used.

    MODEL is an embedded name, a model folder, a run folder or an adapter folder. Scores carry a 95 % interval.
    """
    read_recipe(terminal, suite)
    for name in filter(None, (model, against)):
        open_model(name)
    progress = open_progress()
    try:
        result = doors.measure(model, Path(suite), against=against, progress=progress).to_json()
    finally:
        progress.close()
    for line in result_lines(result):
        terminal.show(line)
    if terminal.as_json:
        terminal.emit(result)


def result_lines(result: dict[str, Any]) -> list[str]:
    """A scorecard, and where there are two the comparison."""
    lines = [f"{result.get('model', 'model')}:", *scorecard_lines(result)]
    other = result.get("against")
    if isinstance(other, dict):
        lines += [f"{other.get('model', 'against')}:", *scorecard_lines(other)]
    lines += [f"note: {note}" for note in result.get("notes", ())]
    comparison = result.get("comparison")
    if isinstance(comparison, dict):
        lines += ["", *comparison_lines(comparison)]
    return lines
