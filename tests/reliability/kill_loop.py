"""A training run that is killed with SIGKILL, at random moments, many times over, until it is done.

    python -m tests.reliability.kill_loop FOLDER --kills 50 --seed 1

The process loads the libraries once, enters no region of OpenMP, and forks a child for each attempt; one attempt in fifty is a
process of its own, from the first instruction on. Prints one JSON object. Exit code 1 where an attempt ended otherwise than by
the kill or at its end.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import json
import random
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Protocol

COLD_EVERY = 50
STEPS_PER_KILL = 12
_OUTPUT = "output.txt"
_LONGEST_ATTEMPT = 300.0
_GLANCE = 0.02
_AHEAD = 0.02
_START_SHARE = 0.25
"""Share of the kills that are aimed at the start of an attempt, before it is back at work."""


class Target(Protocol):
    """A run that can be attempted again and again in its folder."""

    folder: Path

    def attempt(self) -> int:
        """Start it or go on with it to the end, in this process; returns an exit code."""
        ...

    def command(self) -> list[str]:
        """The same as a command for a process of its own."""
        ...

    def done_share(self) -> float:
        """How far it is, from 0 to 1."""
        ...

    def phase(self, started: float) -> str:
        """What an attempt that began then was at when it was killed."""
        ...

    def safe_since(self) -> float | None:
        """Seconds since 1970 when the newest checkpoint was written; None where there is none."""
        ...

    def resumed_at(self) -> float | None:
        """When the newest attempt was back at work; None where it never was."""
        ...

    def mend(self) -> None:
        """What a person would have to do by hand after an attempt that failed."""
        ...


class Course(Protocol):
    """Runs of the same recipe: one that stays whole, and others to be killed."""

    whole: Target

    def next(self, number: int) -> Target:
        """A run of its own."""
        ...

    def unlike(self, target: Target) -> list[str]:
        """In what a run that was killed differs from the whole one."""
        ...


@dataclass
class Tally:
    """What became of a run. Times in seconds; medians over all that were measured."""

    runs: int = 0
    kills: int = 0
    cold_kills: int = 0
    attempts: int = 0
    failed: int = 0
    seconds: float = 0.0
    phases: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)
    redone: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """Plain values, with medians in place of the lists of times."""
        lost = [one + other for one, other in zip(self.redone, self.starts, strict=False)]
        medians = {
            "redone_seconds": _median(self.redone),
            "start_seconds": _median(self.starts),
            "lost_seconds": _median(lost),
        }
        values = asdict(self) | {"phases": dict(self.phases)} | medians
        return {key: value for key, value in values.items() if key not in ("redone", "starts")}


class Killer:
    """Attempts a target until it is done.

    Args:
        tally: what was counted so far; added to.
        whole_seconds: what an attempt from the first step to the end takes.
        start_seconds: what it takes until it is at work.
        seed: of the moments.
    """

    def __init__(self, tally: Tally, whole_seconds: float, start_seconds: float, seed: int) -> None:
        self.tally = tally
        self.work_seconds = max(0.05, whole_seconds - start_seconds)
        self.start_seconds = start_seconds
        self.random = random.Random(seed)

    def run(self, target: Target, kills: int) -> None:
        """Kill and attempt until the run is done; no kill comes once there are ``kills`` in the tally."""
        self.target, self.kills, self.before = target, kills, self.tally.kills
        began = time.monotonic()
        is_done = False
        while not is_done:
            self.tally.attempts += 1
            if self.tally.attempts % COLD_EVERY == 0 and self.tally.kills < self.kills:
                is_done = self._cold()
            else:
                is_done = self._warm()
        self.tally.seconds += time.monotonic() - began

    def _warm(self) -> bool:
        started = time.time()
        child = fork(self.target.attempt, self.target.folder / _OUTPUT)
        is_last = self.tally.kills >= self.kills
        status = _wait(child, _LONGEST_ATTEMPT) if is_last else _wait(child, self._life(), self._is_ahead)
        return self._judge(status, started, is_cold=False)

    def _cold(self) -> bool:
        started = time.time()
        with (self.target.folder / _OUTPUT).open("wb") as output:
            process = subprocess.Popen(self.target.command(), cwd=self.target.folder, stdout=output, stderr=output)
        status = _wait(process.pid, self.random.uniform(0.0, 8.0))
        process.returncode = 0  # it is waited for already
        return self._judge(status, started, is_cold=True)

    def _life(self) -> float:
        """How long the next attempt may live: spread over its start, and over what is left of the work."""
        if self.random.random() < _START_SHARE:
            return self.random.uniform(0.0, self.start_seconds)
        left = self.work_seconds * max(0.1, 1.0 - self.target.done_share())
        pace = max(0.5 * left / (self.kills - self.tally.kills), 0.02)
        return self.start_seconds + self.random.expovariate(1.0 / pace)

    def _is_ahead(self) -> bool:
        """Whether the work goes faster than the kills: the attempt then ends a moment later, however long it was to live."""
        kill_share = (self.tally.kills + 1 - self.before) / (self.kills - self.before)
        if self.target.done_share() < kill_share + _AHEAD:
            return False
        time.sleep(self.random.uniform(0.0, 0.03))
        return True

    def _judge(self, status: int, started: float, *, is_cold: bool) -> bool:
        """Enter what became of an attempt; whether the run is done."""
        tally, now = self.tally, time.time()
        resumed = self.target.resumed_at()
        if resumed is not None and resumed > started and not is_cold:
            tally.starts.append(resumed - started)
            self.start_seconds += 0.2 * (resumed - started - self.start_seconds)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            tally.kills += 1
            tally.cold_kills += is_cold
            tally.phases[self.target.phase(started)] += 1
            tally.redone.append(now - max(started, self.target.safe_since() or 0.0))
            return False
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return True
        tally.failed += 1
        tail = (self.target.folder / _OUTPUT).read_text(errors="replace")[-2000:]
        tally.failures.append(f"attempt {tally.attempts}, status {status}: {tail}")
        self.target.mend()
        if tally.failed > 20 + self.kills:
            raise RuntimeError("nearly every attempt fails")
        return False


def fork(act: Callable[[], int], output: Path) -> int:
    """Start ``act`` in a child whose words go to a file; returns the child's number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = act()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, seconds: float, enough: Callable[[], bool] = lambda: False) -> int:
    """Wait that long, or until it is enough, then kill; returns the status."""
    descriptor, until = os.pidfd_open(child), time.monotonic() + seconds
    try:
        while not select.select([descriptor], [], [], min(_GLANCE, max(0.0, until - time.monotonic())))[0]:
            if time.monotonic() >= until or enough():
                os.kill(child, signal.SIGKILL)
                break
    finally:
        os.close(descriptor)
    return os.waitpid(child, 0)[1]


def unbroken(target: Target) -> tuple[float, float]:
    """Attempt once without a kill; returns the seconds in all and until it was at work.

    Raises:
        RuntimeError: it failed.
    """
    target.folder.mkdir(parents=True, exist_ok=True)
    started = time.time()
    status = _wait(fork(target.attempt, target.folder / _OUTPUT), _LONGEST_ATTEMPT)
    if status:
        raise RuntimeError((target.folder / _OUTPUT).read_text(errors="replace"))
    ended = time.time()
    return ended - started, (target.resumed_at() or ended) - started


def _median(values: list[float]) -> float | None:
    return round(median(values), 3) if values else None


def campaign(course: Course, kills: int, most_per_run: int, seed: int) -> Tally:
    """Kill runs of a course that often, each at most so many times, and hold each against one that was not killed."""
    tally = Tally()
    seconds, start = unbroken(course.whole)
    killer = Killer(tally, seconds, start, seed)
    while tally.kills < kills:
        tally.runs += 1
        target = course.next(tally.runs)
        target.folder.mkdir(parents=True)
        killer.run(target, min(kills, tally.kills + most_per_run))
        tally.unlike += course.unlike(target)
        shutil.rmtree(target.folder)
    return tally


def main(arguments: list[str] | None = None) -> int:
    """Kill long runs and short ones of our trainer, or of Hugging Face's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to work; made if missing")
    parser.add_argument("--kills", type=int, default=50, help="over one training run, or a few where one does not last")
    parser.add_argument("--short", type=int, default=0, help="more of them, six to a run of four steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trainer", choices=("lora", "full", "hf"), default="lora")
    given = parser.parse_args(arguments)
    from tests.reliability.kill_targets import course

    values: dict[str, object] = {"trainer": given.trainer, "seed": given.seed}
    is_whole = True
    for name, kills, steps, most in (
        ("long", given.kills, max(20, STEPS_PER_KILL * given.kills), given.kills),
        ("short", given.short, 4, 6),
    ):
        if kills:
            tally = campaign(course(given.trainer, given.folder.resolve() / name, steps), kills, most, given.seed)
            values[name] = {"steps": steps, **tally.to_json()}
            is_whole = is_whole and not tally.unlike and not tally.failed
    print(json.dumps(values))
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
