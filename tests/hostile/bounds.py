"""What every test of hostile input asks: an answer or an error of ours, in time, in bounded memory."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, settings

from tunesmith.errors import TunesmithError

MIB = 1 << 20
GENTLE = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
"""Hypothesis, the same examples every time: a failure in CI is a failure at home."""


class TooSlow(BaseException):
    """The time is over: not an Exception, so that nothing takes it for a fault of the file."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail what takes longer. It ends at the next byte code; a call that never comes back needs ``measured``."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def answer(work: Callable[[], Any], seconds: float = 5.0) -> Any:
    """What ``work`` returns, or the error of ours that it raises; any other exception, or more time, fails the test."""
    with within(seconds):
        try:
            return work()
        except TunesmithError as error:
            return error


def refusal(work: Callable[[], Any], seconds: float = 5.0) -> TunesmithError:
    """The error of ours that ``work`` must raise, with all its three parts."""
    said = answer(work, seconds)
    assert isinstance(said, TunesmithError), f"no error, but {said!r:.200}"
    assert said.what, "an error without words"
    assert said.where, f"says nowhere where: {said}"
    assert said.hint, f"has no hint: {said}"
    return said


_PEAK = """
with open('/proc/self/status') as status:  # getrusage would tell what the parent held when it forked
    print(next(int(line.split()[1]) >> 10 for line in status if line.startswith('VmHWM')))
"""


def measured(code: str, *arguments: str, seconds: float = 30.0, mebibytes: int = 4096) -> tuple[str, int]:
    """Run Python code in a process of its own, which may take so much time and address space.

    Returns:
        What it printed, and the most memory that it held at once in MiB.
    """
    script = f"{code}\n{_PEAK}"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mebibytes * MIB, mebibytes * MIB))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, timeout=seconds, check=False, preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stderr[-2000:]}"
    *said, peak = done.stdout.splitlines()
    return "\n".join(said), int(peak)


TELL = """
import sys
from pathlib import Path
from tunesmith.errors import TunesmithError
def tell(work):
    try:
        work()
    except TunesmithError as error:
        print(type(error).__name__, '|', error.what, '|', error.where, '|', error.hint)
    else:
        print('fine')
"""
"""A beginning for ``measured``: ``tell(work)`` prints the three parts of an error of ours, or ``fine``."""
