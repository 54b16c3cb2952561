"""Runs as processes: how each ends, and what is not run again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import Interrupted, RunError
from tunesmith.planning.machine import threads_each
from tunesmith.progress import SilentProgress
from tunesmith.workshop import trials as trials_module
from tunesmith.workshop.trials import Ended, Trial, Trials

_SCRIPT = "import sys, time; print(sys.argv[2]); time.sleep(float(sys.argv[1])); sys.exit(int(sys.argv[3]))"


def _stopped(folder: Path, name: str, **values: Any) -> None:
    """The status that a guard leaves."""
    run = folder / "runs" / f"{name}--0.001--0"
    run.mkdir(parents=True)
    status = {"status": "stopped", "step": 3, "message": "it went wrong", "at": 0.0, **values}
    (run / "status.json").write_text(json.dumps(status), encoding="utf-8")


def _diverges(folder: Path) -> str:
    """A script that ends as a run does whose numbers went wrong."""
    run = folder / "runs" / "wild--0.001--0"
    status = json.dumps({"status": "stopped", "message": "", "diverged": True})
    return f"""
import pathlib, sys
run = pathlib.Path({str(run)!r})
run.mkdir(parents=True)
(run / "status.json").write_text({status!r})
print("error: the loss is not finite", flush=True)
sys.exit(4)
"""


def _trial(name: str, code: int = 0, seconds: float = 0.0, said: str = "", script: str = _SCRIPT) -> Trial:
    return Trial(name, 1e-3, 0, (str(seconds), said, str(code), script))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stand-ins for ``tunesmith train``: processes that say a word, sleep and end with a code."""
    commands: list[list[str]] = []
    real = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        commands.append(command)
        words = command[command.index("train") + 1 :]
        return real([sys.executable, "-c", words[3], *words[:3]], **options)

    monkeypatch.setattr(trials_module.subprocess, "Popen", popen)
    return commands


def test_each_runs_once_and_says_how_it_ended(tmp_path: Path, started: list[list[str]]) -> None:
    progress = SilentProgress()
    work = Trials(tmp_path, 2, None, progress)
    ended = work.run([_trial("good"), _trial("wild", script=_diverges(tmp_path))])
    assert ended["good--0.001--0"] == Ended("done")
    assert ended["wild--0.001--0"] == Ended("stopped", "the loss is not finite")
    assert "the loss is not finite" in progress.notes[0]
    work.run([_trial("good")])
    assert len(started) == 2
    assert started[0][-2:] == ["--run", str(tmp_path / "runs" / "good--0.001--0")]
    assert (tmp_path / "logs" / "good--0.001--0.txt").read_text().startswith("tunesmith train")


def test_they_run_side_by_side(tmp_path: Path, started: list[list[str]]) -> None:
    """Three sleepers of 1.5 s, together under 4 s where one after the other takes 4.5 s and more."""
    begun = time.monotonic()
    Trials(tmp_path, 3, 1, SilentProgress()).run([_trial(f"s{n}", seconds=1.5) for n in range(3)])
    assert time.monotonic() - begun < 4
    assert "machine.threads=1" in started[0]


def test_a_refusal_names_its_log(tmp_path: Path, started: list[list[str]]) -> None:
    with pytest.raises(RunError, match="exit code 2: the recipe is wrong") as error:
        Trials(tmp_path, 1, None, SilentProgress()).run(
            [_trial("bad", 2, said="error: the recipe is wrong\nhint: mend it")]
        )
    assert error.value.hint.startswith("mend it; then the same command goes on")
    assert error.value.where == str(tmp_path / "logs" / "bad--0.001--0.txt")


def test_an_interrupted_run_interrupts_all(tmp_path: Path, started: list[list[str]]) -> None:
    with pytest.raises(Interrupted, match="was interrupted"):
        Trials(tmp_path, 2, None, SilentProgress()).run([_trial("cut", 130), _trial("slow", seconds=60)])
    assert len(started) == 2


def test_a_run_that_diverged_before_is_not_tried_again(tmp_path: Path, started: list[list[str]]) -> None:
    _stopped(tmp_path, "wild", diverged=True)
    ended = Trials(tmp_path, 1, None, SilentProgress()).run([_trial("wild")])
    assert ended["wild--0.001--0"] == Ended("stopped", "it went wrong")
    assert started == []


def test_a_run_that_a_full_disk_stopped_is_tried_again(tmp_path: Path, started: list[list[str]]) -> None:
    _stopped(tmp_path, "full")
    ended = Trials(tmp_path, 1, None, SilentProgress()).run([_trial("full")])
    assert ended["full--0.001--0"] == Ended("done")
    assert len(started) == 1


def test_a_full_disk_is_no_verdict_on_a_rate(tmp_path: Path, started: list[list[str]]) -> None:
    _stopped(tmp_path, "full")
    with pytest.raises(RunError, match="exit code 4: the disk is full"):
        Trials(tmp_path, 1, None, SilentProgress()).run([_trial("full", 4, said="error: the disk is full")])


def test_a_run_that_the_system_killed_is_no_interruption(tmp_path: Path, started: list[list[str]]) -> None:
    script = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(RunError, match="was killed by SIGKILL") as error:
        Trials(tmp_path, 1, None, SilentProgress()).run([_trial("big", script=script)])
    assert "fewer --jobs" in error.value.hint


def test_what_the_terminal_signals_reaches_no_run(tmp_path: Path, started: list[list[str]]) -> None:
    """Ctrl-C signals the whole group: a run in it would hear that and the request of its parent, and leave without saving."""
    script = "import os; print('group', os.getpgid(0) == os.getpid(), flush=True)"
    work = Trials(tmp_path, 1, None, SilentProgress())
    work.run([_trial("apart", script=script)])
    assert "group True" in (tmp_path / "logs" / "apart--0.001--0.txt").read_text()


def test_a_second_signal_is_passed_on(tmp_path: Path) -> None:
    """The first asks to save and end, the second to leave at once."""

    class Stubborn:
        asked = 0

        def poll(self) -> None:
            return None

        def terminate(self) -> None:
            self.asked += 1

        def wait(self) -> int:
            raise KeyboardInterrupt

    process: Any = Stubborn()
    with pytest.raises(KeyboardInterrupt):
        trials_module._end([process])
    assert process.asked == 2


def test_threads_are_shared_out() -> None:
    assert threads_each(1) is None
    assert threads_each(10_000) == 1
