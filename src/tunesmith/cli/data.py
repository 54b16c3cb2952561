"""``tunesmith data check`` and ``tunesmith data show``."""

from __future__ import annotations

import click

from tunesmith.cli import doors
from tunesmith.cli.arguments import read_recipe, recipe_argument
from tunesmith.cli.command import Verb, VerbGroup
from tunesmith.cli.row_view import RowView, find_row
from tunesmith.cli.terminal import Terminal, table
from tunesmith.data.ledger import Ledger
from tunesmith.data.prepared import Prepared
from tunesmith.reports.wording import count, percent, plain
from tunesmith.visible import visible


@click.group(cls=VerbGroup, no_args_is_help=True)
def data() -> None:
    """Check what becomes of every row; show one as the model sees it."""


@data.command(cls=Verb)
@recipe_argument
@click.option("--verify", is_flag=True, help="Hash every file again instead of trusting path, size and time.")
@click.pass_obj
def check(terminal: Terminal, recipe: str, overrides: tuple[str, ...], verify: bool) -> None:
    """Read, render and count all data of RECIPE: rows in = trained + held out + rejected.

    The token cache that this builds is the one that training reads.
    """
    read = read_recipe(terminal, recipe, overrides)
    prepared, _, notes = doors.open_data(read, notify=terminal.tell, verify=verify)
    for line in ledger_lines(prepared):
        terminal.show(line)
    for note in notes:
        terminal.show(f"note: {note}")
    if terminal.as_json:
        values = {**prepared.ledger.to_json(), "notes": notes, "labels": prepared.labels, "cache": str(prepared.folder)}
        terminal.emit(values)


def ledger_lines(prepared: Prepared) -> list[str]:
    """The account of a data set as text."""
    ledger = prepared.ledger
    rejected = sum(ledger.rejected.values())
    lines = ["what became of every row:"]
    lines += table(
        [
            ("rows in", count(ledger.rows_in), ""),
            (
                "trained",
                count(ledger.trained),
                f"in {count(ledger.windows)} pieces" if ledger.windows > ledger.trained else "",
            ),
            (
                "held out",
                count(ledger.held_out),
                f"{count(ledger.validation_rows)} validation, {count(ledger.test_rows)} test",
            ),
            ("rejected", count(rejected), f"see {prepared.rejected_path}" if rejected else ""),
            *((f"  {reason}", count(rows), "") for reason, rows in ledger.rejected.items()),
        ],
        right=(1,),
    )
    return lines + _token_lines(ledger) + _source_lines(ledger) + _label_lines(prepared)


def _token_lines(ledger: Ledger) -> list[str]:
    in_all = {"tokens": ledger.tokens, "trained": ledger.trained_tokens}
    rows = [
        (role, count(part["tokens"]), count(part["trained"]), percent(part["trained"] / part["tokens"]), "")
        for role, part in [*ledger.tokens_by_role.items(), ("in all", in_all)]
    ]
    lengths = ledger.lengths
    spread = f"shortest {count(lengths.min)}, median {count(lengths.median)}, 95 % up to {count(lengths.p95)}, longest {count(lengths.max)}"
    return [
        "tokens of the training rows, and which of them are targets of the loss:",
        *table(rows, head=("role", "tokens", "trained", "share", ""), right=(1, 2, 3)),
        f"  a row: {spread}",
    ]


def _source_lines(ledger: Ledger) -> list[str]:
    rows = [
        (item.role, item.path, ", ".join(item.formats), count(item.rows_in), count(item.rejected))
        for item in ledger.per_source
    ]
    return ["sources:", *table(rows, head=("role", "path", "format", "rows", "rejected"), right=(3, 4))]


def _label_lines(prepared: Prepared) -> list[str]:
    if prepared.labels is None:
        return []
    counts = sorted(prepared.label_counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{label} ({count(rows)})" for label, rows in counts[:8])
    more = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
    return [f"answers are {len(counts)} labels: {shown}{more}"]


@data.command(cls=Verb)
@recipe_argument
@click.option("--row", type=click.IntRange(min=0), required=True, help="Number of the row in its split, from 0.")
@click.option(
    "--split",
    type=click.Choice(("train", "validation", "test")),
    default="train",
    show_default=True,
    help="Where to look.",
)
@click.pass_obj
def show(terminal: Terminal, recipe: str, overrides: tuple[str, ...], row: int, split: str) -> None:
    """Show one row: as it stood in the file, as the template renders it, and its tokens, trained or not."""
    read = read_recipe(terminal, recipe, overrides)
    prepared, renderer, notes = doors.open_data(read, notify=terminal.tell)
    view = find_row(read, prepared, renderer, split, row)
    for note in notes:
        terminal.tell(f"note: {note}")
    if terminal.as_json:
        terminal.emit(view.to_json())
    else:
        print_view(view, f"row {row} of {plain(split)}")


def print_view(view: RowView, title: str) -> None:
    """The row on the terminal: colour marks what is trained; without colour brackets do."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    console.rule(Text(visible(f"{title}: {view.origin}"), "rule.text"), align="left")
    for part in view.renderables(has_colour=console.color_system is not None):
        console.print(part, markup=False)
