"""``tunesmith train --detach``: the run in a session of its own, which outlives the terminal that started it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.cli.terminal import Terminal
from tunesmith.disk import disk
from tunesmith.errors import GateRefused, GuardStopped, Interrupted, RunError, TunesmithError, UserError
from tunesmith.files import make_folders
from tunesmith.launcher import own_command
from tunesmith.registry import lease
from tunesmith.registry.runs import RunFolder

_SECONDS = 30.0
"""How long the start is watched: a run that prepares much data begins later, and says so in its log."""
_LOOK_SECONDS = 0.05
_LEFT_OUT = ("--detach", "--json")
_ENDINGS: dict[int, type[TunesmithError]] = {3: GateRefused, 4: GuardStopped, 130: Interrupted}


def detach(terminal: Terminal, folder: Path) -> None:
    """Start the command that was given once more, in a session of its own, and say how to watch and to stop it.

    Its output is added to ``log.txt`` in the run folder; it reads nothing, and does not hear that a terminal hangs up.

    Raises:
        UserError: this system has no sessions.
        RunError: the run folder cannot be written.
        TunesmithError: it ended before it began; the exit code is its own.
    """
    if os.name != "posix":
        raise UserError(
            "--detach needs a POSIX system", where="command line", hint="leave it out, and keep the terminal open"
        )
    run = RunFolder(folder)
    before = _marked(run)
    process, start = _spawn(run, [item for item in terminal.given if item not in _LEFT_OUT])
    try:
        has_begun = _wait(process, run, before)
    except BaseException:
        process.terminate()
        raise
    code = process.poll()
    if code not in (None, 0):
        raise _ended_early(code or 0, run.log_path, start)
    process.returncode = code or 0  # nobody waits for it any more
    _tell(terminal, run, process.pid, "done" if code == 0 else "running" if has_begun else "preparing")


def _spawn(run: RunFolder, arguments: Sequence[str]) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and how long the log was before it."""
    try:
        make_folders(run.path)
        with disk().open(run.log_path, "ab") as log:
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            disk().write(log, f"{when} {shlex.join(['tunesmith', *arguments])}\n".encode())
            start = log.seek(0, os.SEEK_END)
            with _hangups_ignored():
                process = subprocess.Popen(
                    own_command(arguments), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
    except OSError as error:
        raise RunError(
            f"the run folder cannot be written: {error.strerror or error}",
            where=str(run.log_path),
            hint="free some space, or name a folder on another disk with --run",
        ) from error
    return process, start


@contextmanager
def _hangups_ignored() -> Iterator[None]:
    """What is ignored here is ignored in processes started within."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _marked(run: RunFolder) -> int:
    """Changes whenever the run writes its status."""
    return run.status_path.stat().st_mtime_ns if run.status_path.exists() else 0


def _wait(process: subprocess.Popen[bytes], run: RunFolder, before: int) -> bool:
    """Wait until it has begun (True), ended, or taken its time (False)."""
    limit = time.monotonic() + _SECONDS
    while process.poll() is None and time.monotonic() < limit:
        owner = lease.owner(run.path)
        if owner is not None and owner.pid == process.pid and _marked(run) != before:
            return True
        time.sleep(_LOOK_SECONDS)
    return False


def _ended_early(code: int, log: Path, start: int) -> TunesmithError:
    with log.open("rb") as stream:
        stream.seek(start)
        said = stream.read(1 << 20).decode("utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    why = f": {errors[-1]}" if errors else ""
    kind = _ENDINGS.get(code, RunError)
    return kind(
        f"the run ended before it began, with exit code {code}{why}", where=str(log), hint="its log says more there"
    )


def _tell(terminal: Terminal, run: RunFolder, pid: int, status: str) -> None:
    folder, log = shlex.quote(str(run.path)), shlex.quote(str(run.log_path))
    watch, show, stop = f"tail -f {log}", f"tunesmith runs show {folder}", f"kill {pid}"
    values: dict[str, Any] = {
        "run": str(run.path), "status": status, "pid": pid, "log": str(run.log_path), "watch": watch, "show": show, "stop": stop,
    }  # fmt: skip
    terminal.show(f"{status}: process {pid} goes on without this terminal")
    terminal.show(f"run: {run.path}")
    terminal.show(f"log: {run.log_path}")
    terminal.show(f"watch it: {watch}, or {show}")
    terminal.show(f"stop it: {stop} (it saves a checkpoint, and the same command goes on from there)")
    if terminal.as_json:
        terminal.emit(values)
