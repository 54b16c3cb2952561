"""Where words go: answers to stdout, progress and logs to stderr, and under ``--json`` one object alone on stdout."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import click

from tunesmith.visible import visible

_RED, _CYAN = "red", "cyan"
_LONGEST_PART = 4_000
_LATE_CONTROLS = re.compile(r"[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Terminal:
    """The state of one command line: its switches and its two streams."""

    def __init__(self) -> None:
        self.debug = False
        self.as_json = False
        self.wants_json = False
        self.given: list[str] = []
        self.locate: Callable[[str], str] = str
        self.has_emitted = False
        self._answers: TextIO | None = None

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Under ``--json`` send whatever anybody prints to stderr, so that stdout holds the object and nothing else."""
        if not self.as_json:
            yield
            return
        self._answers = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            yield

    def emit(self, value: Any) -> None:
        """Write the one JSON object, on one line. Numbers that JSON has no name for become null."""
        stream = self._answers or sys.stdout
        is_unicode = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
        text = json.dumps(_finite(value), ensure_ascii=not is_unicode, allow_nan=False)
        # JSON escapes control characters up to U+001F; the terminal obeys some beyond.
        stream.write(_LATE_CONTROLS.sub(lambda found: f"\\u{ord(found.group()):04x}", text) + "\n")
        stream.flush()
        self.has_emitted = True

    def show(self, text: str = "") -> None:
        """A line of the answer for people; nothing under ``--json``."""
        if not self.as_json:
            print(visible(text), flush=True)

    def write(self, text: str) -> None:
        """Part of a line of the answer, at once: for streams of words. A file gets them as they are."""
        if not self.as_json:
            sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
            sys.stdout.flush()

    def tell(self, text: str) -> None:
        """A line about the work, to stderr."""
        print(visible(text), file=sys.stderr, flush=True)

    def fail(self, what: str, where: str = "", hint: str = "") -> None:
        """The three parts of an error, to stderr."""
        lines = [f"{_paint('error:', _RED)} {_part(what)}"]
        if where:
            lines.append(f"  at {_part(where)}")
        if hint:
            lines.append(f"{_paint('hint:', _CYAN)} {_part(hint)}")
        print("\n".join(lines), file=sys.stderr, flush=True)


def _part(text: str) -> str:
    """A part of an error, as long as a person reads."""
    return visible(text if len(text) <= _LONGEST_PART else f"{text[:_LONGEST_PART]}…")


def width(widest: int = 100) -> int:
    """Columns to write in."""
    return max(40, min(widest, shutil.get_terminal_size((80, 24)).columns))


def has_colour(stream: TextIO) -> bool:
    """Whether colour helps there: a terminal, and nobody asked for none (``NO_COLOR``)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _paint(text: str, colour: str) -> str:
    return click.style(text, fg=colour, bold=True) if has_colour(sys.stderr) else text


def table(
    rows: Sequence[Sequence[str]], *, head: Sequence[str] = (), indent: str = "  ", right: Sequence[int] = ()
) -> list[str]:
    """Aligned columns. The last one wraps under itself on a narrow terminal; columns in ``right`` are right-aligned."""
    every = [list(head), *map(list, rows)] if head else [list(row) for row in rows]
    if not every:
        return []
    num_columns = max(len(row) for row in every)
    every = [row + [""] * (num_columns - len(row)) for row in every]
    widths = [max(len(row[column]) for row in every) for column in range(num_columns - 1)]
    room = max(24, width() - len(indent) - sum(widths) - 2 * len(widths))
    lines = []
    for row in every:
        cells = [
            cell.rjust(size) if position in right else cell.ljust(size)
            for position, (cell, size) in enumerate(zip(row, widths, strict=False))
        ]
        first, *rest = _wrapped(row[-1], room)
        lines.append((indent + "  ".join([*cells, first])).rstrip())
        hanging = len(indent) + sum(widths) + 2 * len(widths)
        lines += [" " * hanging + line for line in rest]
    return lines


def _wrapped(text: str, room: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > room:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
