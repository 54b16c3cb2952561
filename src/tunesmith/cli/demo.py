"""``tunesmith demo``."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli import doors
from tunesmith.cli.command import Verb
from tunesmith.cli.progress import open_progress
from tunesmith.cli.terminal import Terminal
from tunesmith.reports.wording import duration

FOLDER = Path("runs") / "demo"


@click.command(cls=Verb)
@click.option(
    "--run", "folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True, help="Folder of the run."
)
@click.pass_obj
def demo(terminal: Terminal, folder: Path) -> None:
    """Do the main job on the embedded model and the tickets of an embedded help desk; offline, in minutes.

    Plans, trains with LoRA, scores base and tuned model on held-out tickets, and writes the report.
    """
    progress = open_progress()
    try:
        result = doors.demo(folder, progress=progress)
    finally:
        progress.close()
    for line in result.headline:
        terminal.show(line)
    terminal.show(f"time: {duration(result.seconds)}")
    terminal.show(f"report: {result.report}")
    if terminal.as_json:
        values = {
            "run": str(folder),
            "report": str(result.report),
            "headline": list(result.headline),
            "seconds": result.seconds,
        }
        terminal.emit(values)
