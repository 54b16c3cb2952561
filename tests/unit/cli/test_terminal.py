"""Streams, tables, and numbers that JSON has no name for."""

from __future__ import annotations

import io
import json
import sys

import pytest

from tunesmith.cli.terminal import Terminal, has_colour, table, width


def test_json_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.as_json = True
    with terminal.answering():
        print("a library's chatter")
        terminal.show("for people")
        terminal.write("word")
        terminal.emit({"value": "ü"})
    said = capsys.readouterr()
    assert json.loads(said.out) == {"value": "ü"}
    assert said.err == "a library's chatter\n"


def test_numbers_without_a_name_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().emit({"loss": float("nan"), "list": [float("inf"), (1.5, -float("inf"))], "whole": 3})
    assert json.loads(capsys.readouterr().out) == {"loss": None, "list": [None, [1.5, None]], "whole": 3}


def test_people_read_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    with terminal.answering():
        terminal.show("line")
        terminal.tell("work")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("line\n", "work\n")


class _Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("name", "value", "expected"), [("NO_COLOR", "1", False), ("TERM", "dumb", False), ("TERM", "xterm", True)]
)
def test_colour(monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: bool) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    assert has_colour(_Tty()) is expected
    assert has_colour(io.StringIO()) is False


def test_errors_are_red_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _Tty()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    Terminal().fail("wrong", hint="so")
    assert stream.getvalue() == "\x1b[31m\x1b[1merror:\x1b[0m wrong\n\x1b[36m\x1b[1mhint:\x1b[0m so\n"


def test_table_aligns_and_wraps_the_last_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = table([("a", "1", "one two three four five six seven"), ("long", "22", "")], right=(1,))
    assert lines == ["  a      1  one two three four five six", "            seven", "  long  22"]
    assert max(map(len, lines)) <= width()


def test_table_without_rows() -> None:
    assert table([]) == []
