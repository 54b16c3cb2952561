"""Silence is a fault: a step that takes far longer than the others writes down where every thread stands.

A thread looks at the clock; it cannot free a loop that hangs, but it can say so, ask it to stop, and at last end the process.
"""

from __future__ import annotations

import faulthandler
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunesmith.engine.interrupts import Interrupts

_REMEMBERED_STEPS = 101
_KNOWN_AFTER_STEPS = 5
_MOST_DUMPS = 5
_SAYING_SECONDS = 10.0
"""How long the watching thread waits for a disk that takes its words."""
EXIT_STOPPED = 4


@dataclass(frozen=True)
class WatchdogOptions:
    """When a step is too slow: ``factor`` times the median step, and at least ``floor_seconds``.

    ``stop_after_seconds`` without progress asks the loop to stop with a checkpoint; if it does not answer within
    ``grace_seconds``, the process ends. Work of another kind, and the first step, which may compile, have ``patience`` times
    as long.
    """

    factor: float = 10.0
    floor_seconds: float = 30.0
    stop_after_seconds: float | None = None
    grace_seconds: float = 60.0
    patience: float = 10.0
    look_every_seconds: float = 1.0


@dataclass(frozen=True)
class _Task:
    """What is being waited for: the step after ``done`` steps, or work of another kind then. Compared by identity."""

    done: int
    since: float
    is_step: bool

    @property
    def name(self) -> str:
        return f"step {self.done + 1}" if self.is_step else f"the work after step {self.done}"

    @property
    def file_name(self) -> str:
        return f"stacks-{self.done + 1}.txt" if self.is_step else f"stacks-after-{self.done}.txt"


class Watchdog:
    """Watches that steps come. The time in which nobody could look, such as that of a machine asleep, does not count.

    Args:
        folder: where stacks are dumped, as ``stacks-STEP.txt``.
        options: see there.
        interrupts: asked to stop when nothing moves for too long.
        say: kind of event and sentence; called from the watching thread.
        last_words: called before the process is ended by force, with a sentence.
        end: ends the process with an exit code, without unwinding anything.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        folder: Path,
        options: WatchdogOptions,
        interrupts: Interrupts,
        say: Callable[[str, str], None],
        last_words: Callable[[str], None] = lambda text: None,
        *,
        end: Callable[[int], object] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.options = options
        self.interrupts = interrupts
        self.say = say
        self.last_words = last_words
        self.end = end
        self.clock = clock
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self._task = _Task(0, clock(), is_step=True)
        self._dumps = 0
        self._dumped: _Task | None = None
        self._asked: tuple[_Task, float] | None = None
        self._ended = threading.Event()

    @contextmanager
    def watching(self, done: int = 0) -> Iterator[None]:
        """Within the context a thread looks at the clock; ``done`` steps are behind."""
        self._task = _Task(done, self.clock(), is_step=True)
        self._ended.clear()
        thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def beat(self, step: int) -> None:
        """A step is done."""
        now = self.clock()
        self._seconds.append(now - self._task.since)
        self._task = _Task(step, now, is_step=True)

    @contextmanager
    def other_work(self) -> Iterator[None]:
        """Within the context no step is expected: evaluation, and waiting for the disk, take as long as they do."""
        before = self._task
        self._task = _Task(before.done, self.clock(), is_step=False)
        try:
            yield
        finally:
            self._task = _Task(before.done, self.clock(), before.is_step)

    def slow_after_seconds(self) -> float | None:
        """How long a step may take before it is called slow; None while too few are known."""
        if len(self._seconds) < _KNOWN_AFTER_STEPS:
            return None
        return max(self.options.floor_seconds, self.options.factor * statistics.median(self._seconds))

    def _watch(self) -> None:
        watched, silent, last = self._task, 0.0, self.clock()
        most = 2 * self.options.look_every_seconds
        while not self._ended.wait(self.options.look_every_seconds):
            now, task = self.clock(), self._task
            looked = min(now - last, most)  # more has passed where the machine slept or the process was held
            last = now
            silent = silent + looked if task is watched else min(looked, now - task.since)
            watched = task
            self._judge(task, silent)

    def _judge(self, task: _Task, silent: float) -> None:
        limit = self.slow_after_seconds()
        if limit is not None and task.is_step and silent > limit and self._dumped is not task:
            self._dumped = task
            if self._dumps < _MOST_DUMPS:
                self._dumps += 1
                expected = f"{task.name} has taken {silent:.0f} s, expected were at most {limit:.0f} s"
                self._say("slow_step", f"{expected}; where every thread stands: {self._dump(task)}")
        stop_after = self.options.stop_after_seconds
        if stop_after is not None:
            is_usual = task.is_step and len(self._seconds) > 0
            self._judge_stall(task, silent, stop_after if is_usual else stop_after * self.options.patience)

    def _judge_stall(self, task: _Task, silent: float, limit: float) -> None:
        if silent <= limit:
            return
        if self._asked is None:
            self._asked = (task, silent)
            stacks = self._dump(task)
            self.interrupts.ask(f"no progress for {silent:.0f} s")
            self._say("stalled", f"no progress for {silent:.0f} s in {task.name}; where every thread stands: {stacks}")
            return
        asked, since = self._asked
        if asked is not task or silent - since > self.options.grace_seconds:
            text = f"no progress for {silent:.0f} s in {task.name}, and the loop did not answer; the newest checkpoint stays"
            _within(_SAYING_SECONDS, lambda: self.last_words(text))
            self.end(EXIT_STOPPED)

    def _dump(self, task: _Task) -> str:
        """Write where every thread stands; returns the file's name, or why there is none."""
        path = self.folder / task.file_name
        said = [f"{path.name} could not be written in time"]

        def dump() -> None:
            try:
                with path.open("w", encoding="utf-8") as stream:
                    faulthandler.dump_traceback(stream, all_threads=True)
                said[0] = path.name
            except OSError as error:
                said[0] = f"not written: {error.strerror}"

        _within(_SAYING_SECONDS, dump)
        return said[0]

    def _say(self, kind: str, text: str) -> None:
        _within(_SAYING_SECONDS, lambda: self.say(kind, text))


def _within(seconds: float, act: Callable[[], None]) -> None:
    """Act in a thread of its own, and go on after a while: what hangs may be the disk that is written to."""

    def quietly() -> None:
        try:
            act()
        except Exception:  # whatever ends the saying must not end the watching
            return

    thread = threading.Thread(target=quietly, daemon=True, name="watchdog-words")
    thread.start()
    thread.join(seconds)
