"""``tunesmith inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli import doors
from tunesmith.cli.arguments import adapters_argument
from tunesmith.cli.command import Verb
from tunesmith.cli.inspected import inspection_lines
from tunesmith.cli.terminal import Terminal
from tunesmith.errors import UserError
from tunesmith.workshop.inspectable import adapters_of_names, read_texts


@click.command(cls=Verb)
@adapters_argument
@click.option(
    "--texts", type=click.Path(path_type=Path), default=None, help="A file of texts to compare on, one a line."
)
@click.option("--text", multiple=True, help="A text to compare predictions on; may be given several times.")
@click.option(
    "--top", type=click.IntRange(1, 100), default=8, show_default=True, help="Moved positions and tokens to list."
)
@click.option("--base", metavar="MODEL", default=None, help="The base, where an adapter's name for it leads nowhere.")
@click.pass_obj
def inspect(
    terminal: Terminal, adapters: tuple[str, ...], texts: Path | None, text: tuple[str, ...], top: int, base: str | None
) -> None:
    """Show what is in ADAPTERs: sizes and directions of updates, moved predictions, and what several have in common.

    ADAPTER is an adapter folder or a run. Predictions are compared on the answers of a run's held-out rows and on general
    texts, unless texts are given.
    """
    adapters_of_names(adapters, base)
    given = [*(read_texts(texts) if texts is not None else []), *text]
    if any(not item.strip() for item in text):
        raise UserError("a text is empty", where="--text", hint="give words to compare predictions on")
    result = doors.inspect_adapters(adapters, texts=given or None, base=base, top=top).to_json()
    for line in inspection_lines(result):
        terminal.show(line)
    if terminal.as_json:
        terminal.emit(result)
