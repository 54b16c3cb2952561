"""``tunesmith doctor``."""

from __future__ import annotations

import sys

import click

from tunesmith.cli.command import Verb
from tunesmith.cli.terminal import Terminal, has_colour, table
from tunesmith.workshop.doctor import Check, examine

_MARKS = {"ok": "ok", "note": "note", "bad": "BAD"}
_COLOURS = {"ok": "green", "note": "yellow", "bad": "red"}


@click.command(cls=Verb)
@click.pass_obj
def doctor(terminal: Terminal) -> None:
    """Say what this machine has, what is missing, and how to mend it.

    Exit code 3 where something is bad: training would fail.
    """
    checks = examine()
    for line in table([(_MARKS[check.state], check.name, _words(check)) for check in checks]):
        terminal.show(_painted(line))
    is_fit = all(check.state != "bad" for check in checks)
    terminal.show("ready to train" if is_fit else "something must be mended before training")
    if terminal.as_json:
        terminal.emit({"ready": is_fit, "checks": [check.to_json() for check in checks]})
    if not is_fit:
        click.get_current_context().exit(3)


def _words(check: Check) -> str:
    return f"{check.found} ({check.hint})" if check.hint else check.found


def _painted(line: str) -> str:
    if not has_colour(sys.stdout):
        return line
    for state, mark in _MARKS.items():
        if line.startswith(f"  {mark} "):
            return line.replace(mark, click.style(mark, fg=_COLOURS[state]), 1)
    return line
