"""Every ending of a call: words, stream, exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from tunesmith.cli import doors
from tunesmith.errors import GateRefused, GuardStopped, HardwareMissing, Interrupted, RecipeError, TunesmithError

Call = Callable[..., Any]


def _raises(error: BaseException) -> Callable[..., None]:
    def _fail(*_: object, **__: object) -> None:
        raise error

    return _fail


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecipeError("wrong", where="here", hint="so"), 2),
        (GateRefused("wrong", where="here", hint="so"), 3),
        (HardwareMissing("wrong", where="here", hint="so"), 3),
        (GuardStopped("wrong", where="here", hint="so"), 4),
        (Interrupted("wrong", where="here", hint="so"), 130),
    ],
)
def test_errors_have_three_parts_and_a_code(
    call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch, error: TunesmithError, code: int
) -> None:
    monkeypatch.setattr(doors, "plan_recipe", _raises(error), raising=False)
    said = call("plan", str(recipe))
    assert said.code == code
    assert said.out == ""
    assert said.err == "error: wrong\n  at here\nhint: so\n"


def test_json_error_is_one_object(call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "plan_recipe", _raises(GateRefused("wrong", where="here", hint="so")), raising=False)
    said = call("plan", str(recipe), "--json")
    assert said.json == {"error": {"what": "wrong", "where": "here", "hint": "so", "exit_code": 3}}
    assert "error: wrong" in said.err


@pytest.mark.parametrize("arguments", [("--debug", "plan", "recipe.yaml"), ("plan", "recipe.yaml", "--debug")])
def test_debug_shows_the_traceback(
    call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(doors, "plan_recipe", _raises(RecipeError("wrong")), raising=False)
    said = call(*arguments)
    assert said.code == 2
    assert "Traceback" in said.err
    assert "Traceback" not in call("plan", str(recipe)).err


def test_a_fault_of_ours_is_one_line(call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "plan_recipe", _raises(ZeroDivisionError("by nothing")), raising=False)
    said = call("plan", str(recipe))
    assert said.code == 1
    assert "ZeroDivisionError: by nothing" in said.err
    assert "--debug" in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), click.Abort()])
def test_interruption(call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException) -> None:
    monkeypatch.setattr(doors, "plan_recipe", _raises(stop), raising=False)
    assert call("plan", str(recipe)).code == 130


def test_disk_trouble_is_no_traceback(call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "plan_recipe", _raises(OSError(28, "No space left on device", "runs/x")), raising=False)
    said = call("plan", str(recipe))
    assert said.code == 2
    assert said.err.startswith("error: no space left on device\n  at runs/x\nhint: ")


def test_unknown_verb(call: Call) -> None:
    said = call("trian")
    assert said.code == 2
    assert "did you mean `tunesmith train`?" in said.err


def test_unknown_inner_verb(call: Call) -> None:
    said = call("data", "chek")
    assert said.code == 2
    assert "did you mean `tunesmith data check`?" in said.err


def test_unknown_option(call: Call) -> None:
    said = call("schema", "--jsn")
    assert said.code == 2
    assert said.err.splitlines() == [
        "error: no such option '--jsn'",
        "  at command line: tunesmith schema",
        "hint: did you mean `--json`?",
    ]


@pytest.mark.parametrize(
    "arguments", [("plan",), ("data", "show", "recipe.yaml"), ("export", "run"), ("data", "show", "r", "--row", "x")]
)
def test_missing_or_wrong_arguments(call: Call, arguments: tuple[str, ...]) -> None:
    said = call(*arguments)
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert "--help` shows what it takes" in said.err


@pytest.mark.parametrize(("group", "words"), [("data", "and its tokens, trained or not."), ("runs", "scores, curves.")])
def test_help_tells_each_command_to_its_end(call: Call, group: str, words: str) -> None:
    said = " ".join(call(group, "--help").out.split())
    assert words in said
    assert "..." not in said.partition("Commands:")[2]


@pytest.mark.parametrize("arguments", [(), ("data",), ("runs",)])
def test_no_arguments_shows_help(call: Call, arguments: tuple[str, ...]) -> None:
    said = call(*arguments)
    assert said.code == 2
    assert "Usage: tunesmith" in said.err


@pytest.mark.parametrize(
    "arguments", [("--help",), ("-h",), ("train", "--help"), ("data", "show", "-h"), ("--version",)]
)
def test_help_and_version(call: Call, arguments: tuple[str, ...]) -> None:
    said = call(*arguments)
    assert said.code == 0
    assert "tunesmith" in said.out
    assert said.err == ""


def test_colour_only_on_a_terminal(call: Call) -> None:
    assert "\x1b[" not in call("trian").err


def _shell(*arguments: str, **more: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tunesmith", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)  # type: ignore[call-overload, no-any-return]


def test_a_reader_that_leaves_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "tunesmith", "schema"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=30, check=False)
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == b""


def test_output_survives_a_narrow_encoding() -> None:
    process = _shell("doctor", "--json", env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert json.loads(out)["checks"]
