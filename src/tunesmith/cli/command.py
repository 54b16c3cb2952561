"""What every verb shares: the switches ``--debug`` and, where it reports, ``--json``."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any, cast

import click

from tunesmith.cli.table import VerbEntry
from tunesmith.cli.terminal import Terminal
from tunesmith.errors import UserError
from tunesmith.launcher import num_ranks

_WHOLE_SENTENCE = 1000
"""Characters of a summary: more than any has, so that click does not cut it."""
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _switch(attribute: str) -> Any:
    def turn_on(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            setattr(context.ensure_object(Terminal), attribute, True)

    return turn_on


def debug_option() -> click.Option:
    """``--debug``, before or after the verb."""
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_switch("debug"),
        help="Show the traceback of an error.",
    )


def json_option() -> click.Option:
    """``--json``."""
    return click.Option(
        ["--json"], is_flag=True, expose_value=False, is_eager=True, callback=_switch("as_json"),
        help="One JSON object on stdout and nothing else there.",
    )  # fmt: skip


class Verb(click.Command):
    """A verb; ``reports`` gives it ``--json``, ``ranks`` lets several processes do it together."""

    def __init__(self, *args: Any, reports: bool = True, ranks: bool = False, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", SETTINGS)
        super().__init__(*args, **kwargs)
        self.ranks = ranks
        if reports:
            self.params.append(json_option())
        self.params.append(debug_option())

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; under ``--json`` its stdout holds one object alone. Raises UserError where a launcher started many."""
        if num_ranks() > 1 and not self.ranks:
            raise UserError(
                f"`{ctx.command_path}` works in one process, and a launcher started {num_ranks()}",
                where="environment variable WORLD_SIZE",
                hint="start it without torchrun, which is for `tunesmith train`",
            )
        with ctx.ensure_object(Terminal).answering():
            return super().invoke(ctx)


class VerbGroup(click.Group):
    """A group whose commands are a table of ``module:function`` (or given); an unknown one is answered with the nearest."""

    def __init__(self, *args: Any, table: dict[str, VerbEntry] | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", SETTINGS)
        super().__init__(*args, **kwargs)
        self.table = table or {}
        self.params.append(debug_option())

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return [*self.table, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command."""
        if cmd_name not in self.table:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self.table[cmd_name].target.partition(":")
        return cast("click.Command", getattr(import_module(module), attribute))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments name.

        Raises:
            UserError: there is none; the hint names the nearest.
        """
        name = args[0]
        names = self.list_commands(ctx)
        if name not in names and not name.startswith("-"):
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean `{ctx.command_path} {close[0]}`?" if close else f"one of: {', '.join(names)}"
            raise UserError(f"`{name}` is not a command of `{ctx.command_path}`", where="command line", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without loading any of the table."""
        rows = [(name, entry.does) for name, entry in self.table.items()]
        rows += [(name, command.get_short_help_str(_WHOLE_SENTENCE)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
