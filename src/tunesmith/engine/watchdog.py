"""Silence is a fault: a step that takes far longer than the others writes down where every thread stands.

A thread looks at the clock; it cannot free a loop that hangs, but it can say so, ask it to stop, and at last end the process.
"""

from __future__ import annotations

import faulthandler
import os
import signal
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


@dataclass(frozen=True)
class WatchdogOptions:
    """When a step is too slow: ``factor`` times the median step, and at least ``floor_seconds``.

    ``stop_after_seconds`` without progress asks the loop to stop with a checkpoint; ``grace_seconds`` later the process ends.
    """

    factor: float = 10.0
    floor_seconds: float = 30.0
    stop_after_seconds: float | None = None
    grace_seconds: float = 60.0
    look_every_seconds: float = 1.0


class Watchdog:
    """Watches that steps come.

    Args:
        folder: where stacks are dumped, as ``stacks-STEP.txt``.
        options: see there.
        interrupts: asked to stop when nothing moves for too long.
        say: kind of event and sentence; called from the watching thread.
        last_words: called before the process is ended by force, with a sentence.
    """

    def __init__(
        self,
        folder: Path,
        options: WatchdogOptions,
        interrupts: Interrupts,
        say: Callable[[str, str], None],
        last_words: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder = folder
        self.options = options
        self.interrupts = interrupts
        self.say = say
        self.last_words = last_words
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self._step = 0
        self._since = time.monotonic()
        self._asked_at: float | None = None
        self._dumps = 0
        self._dumped_step = -1
        self._is_paused = False
        self._ended = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the context a thread looks at the clock."""
        self._since = time.monotonic()
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
        now = time.monotonic()
        self._seconds.append(now - self._since)
        self._step, self._since = step, now

    @contextmanager
    def other_work(self) -> Iterator[None]:
        """Within the context no step is expected: an evaluation may take as long as it does, ``stop_after_seconds`` aside."""
        self._is_paused, self._since = True, time.monotonic()
        try:
            yield
        finally:
            self._is_paused, self._since = False, time.monotonic()

    def limit_seconds(self) -> float | None:
        """How long a step may take before it is called stuck; None while too few are known."""
        if self._is_paused or len(self._seconds) < _KNOWN_AFTER_STEPS:
            return None
        return max(self.options.floor_seconds, self.options.factor * statistics.median(self._seconds))

    def _watch(self) -> None:
        while not self._ended.wait(self.options.look_every_seconds):
            silent = time.monotonic() - self._since
            limit = self.limit_seconds()
            if limit is not None and silent > limit and self._dumped_step != self._step:
                self._dump(silent, limit)
            stop_after = self.options.stop_after_seconds
            if stop_after is not None and silent > stop_after:
                self._stop(silent)

    def _dump(self, silent: float, limit: float) -> None:
        self._dumped_step = self._step
        self._dumps += 1
        if self._dumps > _MOST_DUMPS:
            return
        path = self.folder / f"stacks-{self._step}.txt"
        where = path.name
        try:
            with path.open("w", encoding="utf-8") as stream:
                faulthandler.dump_traceback(stream, all_threads=True)
        except OSError as error:
            where = f"not written: {error.strerror}"
        self.say(
            "slow_step",
            f"step {self._step + 1} has taken {silent:.0f} s, expected were at most {limit:.0f} s; where every thread stands: {where}",
        )

    def _stop(self, silent: float) -> None:
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            self.interrupts.why = f"no progress for {silent:.0f} s"
            os.kill(os.getpid(), signal.SIGTERM)
        elif time.monotonic() - self._asked_at > self.options.grace_seconds:
            self.last_words(f"no progress for {silent:.0f} s, and the loop did not answer; the newest checkpoint stays")
            os._exit(4)
