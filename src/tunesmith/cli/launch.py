"""``tunesmith train --nproc N``: the same command as N ranks on this machine, with one voice and one exit code."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence

from tunesmith.errors import GuardStopped, UserError
from tunesmith.launcher import num_ranks, own_command
from tunesmith.planning.machine import threads_each
from tunesmith.signals import handling

_LOOK_SECONDS = 0.05
_GRACE_SECONDS = 20.0
"""How long the other ranks have to notice that one has ended, and to say so, before they are asked to end."""
_LINES = 100
_OPTION = "--nproc"


def without_nproc(given: Sequence[str]) -> list[str]:
    """The arguments of one rank: those that were given, without ``--nproc N`` and ``--nproc=N``."""
    kept: list[str] = []
    is_value = False
    for item in given:
        if is_value or item.startswith(f"{_OPTION}="):
            is_value = False
        elif item == _OPTION:
            is_value = True
        else:
            kept.append(item)
    return kept


def launch(arguments: Sequence[str], ranks: int) -> int:
    """Start the ranks, hand every signal on to all of them, and wait; the main one alone is heard.

    Args:
        arguments: of ``tunesmith``, for each rank.
        ranks: how many.

    Returns:
        The exit code of the main rank; that of another, with its words, where that one ended first and took the rest along.

    Raises:
        UserError: a launcher started this process already.
    """
    if num_ranks() > 1:
        raise UserError(
            f"a launcher started {num_ranks()} ranks already, and `--nproc {ranks}` asks for more of them",
            where="command line: --nproc",
            hint="leave `--nproc` out under torchrun or srun",
        )
    return _run(_start(arguments, ranks))


def _run(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    listeners = [_Listener(process) for process in processes[1:]]

    def hand_on(number: int, _: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    was_waiting = True
    try:
        with handling(hand_on):
            first = _wait(processes)
        was_waiting = processes[0].poll() is None
    finally:
        _end(processes)
    code, other = processes[0].returncode, processes[first].returncode
    # A main rank that still waited, or was stopped by it, can only tell that another ended.
    if first > 0 and (was_waiting or code == GuardStopped.exit_code != other):
        listeners[first - 1].repeat(first)
        code = other
    return code if code >= 0 else 128 - code


class _Listener(threading.Thread):
    """Hears what a rank says, and keeps the end of it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        assert process.stderr is not None
        self._stream = process.stderr
        self._lines: deque[bytes] = deque(maxlen=_LINES)
        self.start()

    def run(self) -> None:
        """Read until the rank closes its end."""
        for line in self._stream:
            self._lines.append(line)
        self._stream.close()

    def repeat(self, rank: int) -> None:
        """Say it again, with the rank's number."""
        self.join(timeout=_GRACE_SECONDS)
        for line in self._lines:
            print(f"rank {rank}: {line.decode('utf-8', errors='replace').rstrip()}", file=sys.stderr, flush=True)


def _start(arguments: Sequence[str], ranks: int) -> list[subprocess.Popen[bytes]]:
    command = own_command(arguments)
    # Each rank would else take all cores for itself.
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads_each(ranks) or 1)}
    world = threads | {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    processes = []
    for rank in range(ranks):
        environment = {**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        quiet = {} if rank == 0 else {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        # A session of its own: a terminal's Ctrl-C would else come twice, from the terminal and from here.
        processes.append(
            subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, **quiet)  # type: ignore[call-overload]
        )
    return processes


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until all have ended, or one has in error and the others had time to notice; which ended in error first, or 0."""
    first, limit = 0, float("inf")
    while any(process.poll() is None for process in processes):
        ended = [rank for rank, process in enumerate(processes) if process.poll() is not None]
        failed = [rank for rank in ended if processes[rank].returncode != 0]
        if limit == float("inf") and (failed or 0 in ended):
            first, limit = failed[0] if failed else 0, time.monotonic() + _GRACE_SECONDS
        if time.monotonic() > limit:
            break
        time.sleep(_LOOK_SECONDS)
    return first


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask those that still run to end, and wait; after twice the grace they are killed."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(timeout=2 * _GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
