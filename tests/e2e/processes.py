"""Runs in processes of their own that stop where a test wants them, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 60.0
"""How long anything is waited for."""

MAIN = "from tunesmith.cli.main import main\nmain()\n"
HOLD = """
import time
from pathlib import Path
from tunesmith.workshop.watching import {hook}
really = {hook}.{method}
def held(self, seen):
    found = really(self, seen)
    step = seen if isinstance(seen, int) else seen.step
    if step == {step}:
        Path("arrived").touch()
        while not Path("go").exists():
            time.sleep(0.01)
    return found
{hook}.{method} = held
"""
"""Python that makes a run wait at a step, until there is a file ``go``; ``arrived`` says that it does."""


def hold_at(step: int, *, evaluation: bool = False) -> str:
    """Code for ``started``: wait after this step, or within its evaluation."""
    hook, method = ("ValidationHook", "at_interval") if evaluation else ("MetricsHook", "after_step")
    return HOLD.format(hook=hook, method=method, step=step)


@contextmanager
def started(folder: Path, *arguments: object, code: str = "", **options: Any) -> Iterator[subprocess.Popen[str]]:
    """``tunesmith`` with arguments as a process in ``folder``, after ``code`` has run there; killed at the end if it lives."""
    command = [sys.executable, "-c", code + MAIN, *map(str, arguments)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    with subprocess.Popen(command, text=True, cwd=folder, **streams) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> None:
    """Wait until something is so; a process that ended meanwhile ends the waiting."""
    limit = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < limit, "nothing came"
        if process is not None and process.poll() is not None and not condition():
            raise AssertionError(f"it ended with {process.returncode}: {process.stderr and process.stderr.read()}")
        time.sleep(0.01)


def ended(process: subprocess.Popen[str], number: signal.Signals | None = None) -> tuple[int, str, str]:
    """Send a signal, wait for the end: exit code, stdout, stderr."""
    if number is not None:
        process.send_signal(number)
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def is_gone(pid: int) -> bool:
    """Whether no process has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics without what a clock says."""
    return [{key: line[key] for key in line if "second" not in key} for line in lines(run / "metrics.jsonl")]


def events(run: Path, kind: str) -> list[str]:
    """Messages of the events of a kind."""
    return [line["message"] for line in lines(run / "events.jsonl") if line["kind"] == kind]


def result(run: Path) -> bytes:
    """Bytes of the trained adapter."""
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()
