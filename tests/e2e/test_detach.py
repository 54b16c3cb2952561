"""`train --detach`: refused at once where that is known, else a process that outlives the terminal, and can be watched and stopped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.desk import Call, Write, remains, torn, write_rows
from tests.e2e.processes import events, result, wait_for
from tunesmith.cli import detach, doors

RUN = Path("runs/desk")


def _recipe(write: Write, steps: int, **more: Any) -> str:
    return write(
        training__max_steps=steps, training__checkpoint_every=steps, training__evaluate_every=100_000,
        evaluation__tasks=[{"type": "loss", "data": "validation"}], **more,
    )  # fmt: skip


@contextlib.contextmanager
def _no_survivor(pids: list[int]) -> Iterator[None]:
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _ended(pid: int) -> int:
    """Wait for a child of this process; its exit code."""
    limit = time.monotonic() + 60
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        assert time.monotonic() < limit
        time.sleep(0.02)


def _read_to_end(master: int) -> str:
    """What a terminal was shown, until nobody writes to it."""
    said = b""
    with contextlib.suppress(OSError):
        while more := os.read(master, 65536):
            said += more
    return said.decode()


def test_the_run_outlives_its_terminal(desk: Path, call: Call, write: Write) -> None:
    """A terminal of its own, in which the command is given, and which is then closed."""
    master, slave = pty.openpty()

    def begin() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    command = [sys.executable, "-m", "tunesmith", "train", _recipe(write, 400), "--detach"]
    pids: list[int] = []
    with _no_survivor(pids):
        process = subprocess.Popen(command, cwd=desk, stdin=slave, stdout=slave, stderr=slave, preexec_fn=begin)  # noqa: PLW1509
        os.close(slave)
        said = _read_to_end(master)
        assert process.wait(60) == 0, said
        os.close(master)
        assert "running: process " in said
        pid = int(said.split("running: process ")[1].split()[0])
        pids.append(pid)
        assert f"stop it: kill {pid} (it saves a checkpoint" in said
        assert "log: runs/desk/log.txt" in said
        assert "watch it: tail -f runs/desk/log.txt, or tunesmith runs show runs/desk" in said
        assert os.getsid(pid) == pid
        shown = call("runs", "show", RUN, "--json").json
        assert shown["status"] == "running"
        wait_for(lambda: "report: " in (RUN / "log.txt").read_text(encoding="utf-8"))
    log = (RUN / "log.txt").read_text(encoding="utf-8")
    assert "tunesmith train recipe.yaml\n" in log.splitlines(keepends=True)[0]
    assert "training: step 400 of 400" in log
    assert "done: 400 steps" in log
    assert call("runs", "show", RUN, "--json").json["step"] == 400


def test_it_is_watched_refused_a_second_time_and_stopped(desk: Path, call: Call, write: Write) -> None:
    recipe = _recipe(write, 100_000)
    said = call("train", recipe, "--detach", "--json")
    assert said.code == 0, said.err
    pid = said.json["pid"]
    with _no_survivor([pid]):
        assert said.json == {
            "run": "runs/desk", "status": "running", "pid": pid, "log": "runs/desk/log.txt",
            "watch": "tail -f runs/desk/log.txt", "show": "tunesmith runs show runs/desk", "stop": f"kill {pid}",
        }  # fmt: skip
        assert os.getsid(pid) == pid
        for option in ("--detach", "--restart"):
            call("train", recipe, option).refuses(
                2, f"another process works on this run: process {pid}", f"`kill {pid}`"
            )
        wait_for(lambda: call("runs", "show", RUN, "--json").json["step"] > 0)
        os.kill(pid, signal.SIGHUP)
        time.sleep(0.2)
        assert call("runs", "show", RUN, "--json").json["status"] == "running", "it does not hear that"
        os.kill(pid, signal.SIGTERM)
        assert _ended(pid) == 130
    shown = call("runs", "show", RUN, "--json").json
    assert shown["status"] == "interrupted"
    assert "a checkpoint is saved" in shown["message"]
    assert shown["go_on"] == "`tunesmith train recipe.yaml` goes on from there"
    assert torn(desk) == []


def test_it_goes_on_where_a_run_stopped_and_a_finished_one_is_not_started(desk: Path, call: Call, write: Write) -> None:
    recipe = _recipe(write, 6)
    assert call("train", recipe, "--run", "whole").code == 0
    assert call("train", recipe).code == 0
    for path in (*(RUN / "adapter").iterdir(), RUN / "report.html", RUN / "status.json"):
        path.unlink()
    said = call("train", recipe, "--detach", "--json")
    with _no_survivor([said.json["pid"]]):
        assert _ended(said.json["pid"]) == 0
    assert events(RUN, "resumed") == ["resumed from the checkpoint of step 6 of 6"]
    assert result(RUN) == result(Path("whole"))
    assert not (RUN / "lease.json").exists()
    before = (RUN / "log.txt").read_bytes()
    again = call("train", recipe, "--detach", "--json")
    assert (again.code, again.json["status"]) == (0, "done")
    assert "nothing to do" in again.err
    assert (RUN / "log.txt").read_bytes() == before


def test_what_is_known_at_once_is_refused_in_the_foreground(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(write, 2)
    assert call("train", recipe, "--run", "other").code == 0
    monkeypatch.setattr(detach, "_spawn", lambda *_: pytest.fail("it was started"))
    call("train", write("wrong.yaml", adapter__rnak=2), "--detach").refuses(2, "did you mean", "wrong.yaml")
    call("train", write(machine={"memory_gib": 0.05}), "--detach", "--json").refuses(3, "GiB of memory")
    call("train", recipe, "--detach", "training.batch_size=3", "--run", "other").refuses(2, "batch_size: 4 -> 3")
    (desk / "mine").mkdir()
    (desk / "mine" / "thesis.txt").write_text("")
    call("train", recipe, "--detach", "--run", "mine").refuses(2, "holds other files", "at mine")
    assert not (desk / "runs").exists()


def test_what_is_known_soon_is_told_too(desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that cannot be used are found by the process itself, before there is a run: here they change in between."""
    recipe = _recipe(write, 2)
    unusable = [{"text": 5}, {"other": 1}]
    monkeypatch.setattr(doors, "check_start", lambda *_: write_rows(desk / "rows.jsonl", unusable), raising=False)
    said = call("train", recipe, "--detach", "--json")
    said.refuses(2, "the run ended before it began, with exit code 2: ", "at runs/desk/log.txt", "its log says more")
    assert said.json["error"]["exit_code"] == 2
    assert "error: " in (RUN / "log.txt").read_text(encoding="utf-8")
    assert [path.name for path in RUN.iterdir()] == ["log.txt"]
    write_rows(desk / "rows.jsonl", [{"text": f"case {number}", "label": "ab"[number % 2]} for number in range(20)])
    assert call("train", recipe).code == 0, "the log in the folder is no other file"


def test_a_run_that_begins_late_is_left_alone(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detach, "_SECONDS", 0.0)
    said = call("train", _recipe(write, 100_000), "--detach", "--json")
    with _no_survivor([said.json["pid"]]):
        assert said.json["status"] == "preparing"
        os.kill(said.json["pid"], 0)


def test_ctrl_c_while_it_starts_takes_the_process_along(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[subprocess.Popen[bytes]] = []

    def interrupted(process: subprocess.Popen[bytes], *_: object) -> bool:
        seen.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(detach, "_wait", interrupted)
    call("train", _recipe(write, 100_000), "--detach", "--json").refuses(130, "interrupted")
    assert seen[0].wait(60) in (130, -signal.SIGTERM)
    assert torn(desk) == []
    assert remains(desk) == ["runs"]
