"""``tunesmith plan``."""

from __future__ import annotations

import click

from tunesmith.cli import doors
from tunesmith.cli.arguments import read_recipe, recipe_argument
from tunesmith.cli.command import Verb
from tunesmith.cli.terminal import Terminal, table
from tunesmith.planning.plan import Plan, plan_rows, require_fit


@click.command(cls=Verb)
@recipe_argument
@click.pass_obj
def plan(terminal: Terminal, recipe: str, overrides: tuple[str, ...]) -> None:
    """Say what RECIPE will do here: every derived value with its reason, memory by part, steps, tokens, time.

    Loads no weights. With a token cache (`tunesmith data check`) the counts are exact, else estimates.
    Exit code 3 where it does not fit.
    """
    made = doors.plan_recipe(read_recipe(terminal, recipe, overrides))
    for line in plan_lines(made):
        terminal.show(line)
    if terminal.as_json:
        terminal.emit(made.to_json())
    require_fit(made)


def plan_lines(made: Plan) -> list[str]:
    """The plan as text, section by section, then the notes that no row says."""
    sections: dict[str, list[tuple[str, ...]]] = {}
    said = set()
    for section, *row in plan_rows(made):
        sections.setdefault(section, []).append(tuple(row))
        said.add(row[-1])
    lines: list[str] = []
    for section, rows in sections.items():
        lines += [f"{section}:", *table(rows)]
    return lines + [f"note: {note}" for note in made.notes if note not in said]
