"""``tunesmith init``."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.command import Verb
from tunesmith.cli.terminal import Terminal
from tunesmith.errors import UserError
from tunesmith.files import write_bytes

STARTER = Path(__file__).parent / "starter"
FILES = ("recipe.yaml", "messages.jsonl")


@click.command(cls=Verb)
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), default=Path())
@click.pass_obj
def init(terminal: Terminal, folder: Path) -> None:
    """Write a commented recipe and a small sample data file into DIR (else the current folder).

    The recipe trains as it stands. Nothing is overwritten.
    """
    present = [name for name in FILES if (folder / name).exists()]
    if present:
        raise UserError(
            f"`{present[0]}` exists already and is not overwritten",
            where=str(folder / present[0]),
            hint="name another folder: `tunesmith init DIR`",
        )
    if folder.exists() and not folder.is_dir():
        raise UserError("this is a file, a folder is wanted", where=str(folder), hint="name a new folder")
    for name in FILES:
        write_bytes(folder / name, (STARTER / name).read_bytes())
        terminal.show(f"written: {folder / name}")
    recipe = folder / FILES[0]
    terminal.show(f"next: tunesmith data check {recipe}, then tunesmith train {recipe}")
    if terminal.as_json:
        terminal.emit({"folder": str(folder), "files": [str(folder / name) for name in FILES]})
