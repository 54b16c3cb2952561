"""``tunesmith schema``."""

from __future__ import annotations

import click

from tunesmith.cli.command import Verb
from tunesmith.cli.terminal import Terminal
from tunesmith.recipe import codec


@click.command(cls=Verb)
@click.pass_obj
def schema(terminal: Terminal) -> None:
    """Print the JSON schema of a recipe.

    Save it as recipe.schema.json and begin a recipe with the line
    `# yaml-language-server: $schema=recipe.schema.json`: editors then complete and check its keys.
    """
    terminal.emit(codec.schema())
