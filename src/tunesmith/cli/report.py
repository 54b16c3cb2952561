"""``tunesmith report``."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli import doors
from tunesmith.cli.arguments import run_argument
from tunesmith.cli.command import Verb
from tunesmith.cli.terminal import Terminal


@click.command(cls=Verb)
@run_argument("run")
@click.pass_obj
def report(terminal: Terminal, run: Path) -> None:
    """Write the report of the run folder RUN again, as one self-contained HTML page."""
    page = doors.report(run).path
    terminal.show(str(page))
    if terminal.as_json:
        terminal.emit({"run": str(run), "report": str(page)})
