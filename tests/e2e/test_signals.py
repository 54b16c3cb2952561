"""Signals to whole processes: saved, said, no traceback, and the rest of the run as if nothing had been."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.desk import Call, Write, torn
from tests.e2e.processes import ended, events, hold_at, lines, metrics, result, started, wait_for
from tunesmith.models.scoring import PackScorer
from tunesmith.registry import run_folder

RUN, WHOLE = Path("runs/desk"), Path("whole")
SLOW_DISK = """
import time
import tunesmith.disk
class Slow(tunesmith.disk.Disk):
    def open(self, path, mode):
        if "00000005" in str(path):
            Path("saving").touch()
            time.sleep(30)
        return super().open(path, mode)
tunesmith.disk._current = Slow()
"""


def _recipe(write: Write, **more: Any) -> str:
    training = {
        "max_steps": 8,
        "checkpoint_every": 3,
        "evaluate_every": 2,
        "samples": 2,
        "batch_size": 4,
        "learning_rate": 1e-3,
    }
    return write(training={**training, **more})


def _is_as_whole(call: Call, recipe: str) -> None:
    """The same call finishes the run; all that it wrote equals the unbroken run's."""
    assert call("train", recipe).code == 0
    assert result(RUN) == result(WHOLE)
    assert metrics(RUN) == metrics(WHOLE)
    assert lines(RUN / "samples.jsonl") == lines(WHOLE / "samples.jsonl")
    assert events(RUN, "best_taken") == events(WHOLE, "best_taken")
    assert torn(Path()) == []


@pytest.mark.parametrize(
    ("place", "number"), [("losses", signal.SIGINT), ("line", signal.SIGTERM), ("sample", signal.SIGINT)]
)
def test_a_signal_within_an_evaluation_leaves_no_line_twice(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch, place: str, number: signal.Signals
) -> None:
    """While the losses are computed, once their line is written, and between two samples; with early stopping."""
    recipe = _recipe(write, early_stopping={"patience": 2, "min_delta": 10.0})
    assert call("train", recipe, "--run", WHOLE).code == 0
    assert len(events(WHOLE, "best_taken")) == 1
    seen: list[int] = []

    def at_the_second(owner: Any, name: str, counts: Any = lambda *_: True) -> None:
        really = getattr(owner, name)

        def signalled(*arguments: Any, **more: Any) -> Any:
            found = really(*arguments, **more)
            seen.append(1) if counts(*arguments) else None
            if len(seen) == 2:
                seen.append(1)
                signal.raise_signal(number)
            return found

        monkeypatch.setattr(owner, name, signalled)

    if place == "losses":
        at_the_second(PackScorer, "row_losses", lambda self, rows: RUN.joinpath("metrics.jsonl").exists())
    elif place == "line":
        at_the_second(run_folder.RunFolder, "append_metric", lambda self, line: "validation_loss" in line)
    else:
        at_the_second(run_folder.RunFolder, "append_sample")
    said = call("train", recipe, "--json").refuses(130, "a checkpoint is saved", "same command")
    assert said.json["status"] == "interrupted"
    monkeypatch.undo()
    monkeypatch.chdir(desk)
    monkeypatch.setenv("TUNESMITH_CACHE", str(desk / "cache"))
    _is_as_whole(call, recipe)


@pytest.mark.slow
@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_to_a_process_saves_and_exits_with_130(
    desk: Path, call: Call, write: Write, number: signal.Signals
) -> None:
    recipe = _recipe(write)
    with started(desk, "train", recipe, "--json", code=hold_at(5)) as process:
        wait_for((desk / "arrived").exists, process)
        process.send_signal(number)
        time.sleep(0.1)
        (desk / "go").touch()
        code, out, err = ended(process)
    assert code == 130, err
    assert json.loads(out)["status"] == "interrupted"
    assert f"stopped by signal {number.name} after step 5 of 8; a checkpoint is saved" in err
    assert "Traceback" not in err
    assert (RUN / "checkpoints" / "00000005" / "manifest.json").exists()
    assert call("runs", "show", RUN, "--json").json["status"] == "interrupted"


def test_a_second_signal_leaves_at_once_and_whole(desk: Path, call: Call, write: Write) -> None:
    """The disk takes half a minute for the first one's checkpoint."""
    recipe = _recipe(write)
    assert call("train", recipe, "--run", WHOLE).code == 0
    with started(desk, "train", recipe, "--json", code=hold_at(5) + SLOW_DISK) as process:
        wait_for((desk / "arrived").exists, process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        (desk / "go").touch()
        wait_for((desk / "saving").exists, process)
        began = time.monotonic()
        code, out, err = ended(process, signal.SIGINT)
        assert time.monotonic() - began < 15
    assert code == 130, err
    assert "Traceback" not in err
    assert "hint: start the same command again" in err
    assert json.loads(out)["status"] == "interrupted"
    assert not (RUN / "checkpoints" / "00000005").exists()
    assert not (RUN / "lease.json").exists()
    _is_as_whole(call, recipe)
    assert "resumed from the checkpoint of step 3 of 8" in events(RUN, "resumed")


def _on_a_terminal(desk: Path, recipe: str, *, ignoring: bool) -> tuple[subprocess.Popen[bytes], int]:
    """A run whose session is that of a terminal of its own; returns it with the terminal's other end."""
    master, slave = pty.openpty()

    def begin() -> None:
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if ignoring:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    command = [sys.executable, "-c", hold_at(5) + "from tunesmith.cli.main import main\nmain()\n", "train", recipe]
    process = subprocess.Popen(command, cwd=desk, stdin=slave, stdout=slave, stderr=slave, preexec_fn=begin)  # noqa: PLW1509
    os.close(slave)
    return process, master


def _wait_reading(path: Path, master: int) -> None:
    """A terminal that nobody reads fills up."""
    os.set_blocking(master, False)

    def arrived() -> bool:
        with contextlib.suppress(OSError):
            os.read(master, 65536)
        return path.exists()

    wait_for(arrived)


@pytest.mark.parametrize("ignoring", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["heard", "ignored"])
@pytest.mark.usefixtures("hears_hangups")
def test_a_terminal_that_hangs_up(desk: Path, call: Call, write: Write, ignoring: bool) -> None:
    """The run saves and leaves; where it was told to ignore that, as by nohup, it goes on though nobody hears it."""
    process, master = _on_a_terminal(desk, _recipe(write), ignoring=ignoring)
    try:
        _wait_reading(desk / "arrived", master)
        os.close(master)
        time.sleep(0.1)
        (desk / "go").touch()
        assert process.wait(60) == (0 if ignoring else 130)
    finally:
        process.kill()
        process.wait()
    status = call("runs", "show", RUN, "--json").json
    if ignoring:
        assert status["status"] == "done"
    else:
        assert (status["status"], status["step"]) == ("interrupted", 5)
        assert "signal SIGHUP after step 5 of 8; a checkpoint is saved" in status["message"]


@pytest.mark.slow
def test_who_reads_the_progress_may_leave(desk: Path, call: Call, write: Write) -> None:
    """As in ``tunesmith train … 2>&1 | head -1``."""
    with started(desk, "train", _recipe(write), code=hold_at(3)) as process:
        wait_for((desk / "arrived").exists, process)
        assert process.stderr is not None
        process.stderr.close()
        (desk / "go").touch()
        assert process.wait(60) == 0
    assert call("runs", "show", RUN, "--json").json["status"] == "done"


@pytest.mark.parametrize("seconds", [0.4, 2.0])
def test_ctrl_c_while_it_starts_shows_no_traceback(desk: Path, write: Write, seconds: float) -> None:
    """From the loading of the command line to the first steps, which are many."""
    recipe = _recipe(write, max_steps=100_000)
    command = [sys.executable, "-m", "tunesmith", "train", recipe, "--json"]
    with subprocess.Popen(command, cwd=desk, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert process.returncode in (130, -signal.SIGINT), err
    assert out.count("\n") <= 1
    if process.returncode == 130:
        json.loads(out)
    assert torn(desk) == []


@pytest.mark.slow
def test_a_third_signal_while_it_ends_shows_no_traceback(desk: Path, write: Write) -> None:
    recipe = _recipe(write)
    code = (
        hold_at(5)
        + SLOW_DISK
        + (
            "from tunesmith.workshop import endings\n"
            "record = endings._record\n"
            "def slowly(*a):\n    record(*a)\n    Path('ending').touch()\n    time.sleep(30)\n"
            "endings._record = slowly\n"
        )
    )
    with started(desk, "train", recipe, "--json", code=code) as process:
        wait_for((desk / "arrived").exists, process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        (desk / "go").touch()
        wait_for((desk / "saving").exists, process)
        process.send_signal(signal.SIGINT)
        wait_for((desk / "ending").exists, process)
        code_, out, err = ended(process, signal.SIGINT)
    assert code_ == 130, err
    assert "Traceback" not in err
    assert out.count("\n") == 1
