"""``tunesmith export``."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli import doors
from tunesmith.cli.arguments import run_argument
from tunesmith.cli.command import Verb
from tunesmith.cli.terminal import Terminal
from tunesmith.workshop.exportable import check_export

DTYPES = ("bfloat16", "float16", "float32")


@click.command(cls=Verb)
@run_argument("run")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--merge", is_flag=True, help="Fold the adapter into the base: a whole model in Hugging Face layout.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default=None,
    help="Number format of a whole model's weights; else the base's.",
)
@click.pass_obj
def export(terminal: Terminal, run: Path, out: Path, merge: bool, dtype: str | None) -> None:
    """Write what the run folder RUN trained into the new folder OUT, reload it, and hold it against the parity gates.

    Without --merge: an adapter, in PEFT's layout where PEFT has the method. Exit code 3 where a gate refuses.
    """
    check_export(run, out, merge=merge, dtype=dtype)
    result = doors.export(run, out, merge=merge, dtype=dtype)
    for gate in result.gates:
        terminal.show(gate.sentence)
    for note in result.notes:
        terminal.show(f"note: {note}")
    terminal.show(f"written: {result.folder}")
    if terminal.as_json:
        gates = [gate.to_json() for gate in result.gates]
        terminal.emit(
            {
                "folder": str(result.folder),
                "merged": merge,
                "dtype": result.dtype,
                "gates": gates,
                "notes": result.notes,
            }
        )
