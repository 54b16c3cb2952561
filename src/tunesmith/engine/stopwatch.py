"""Where the wall time of training goes: seconds by part, over all processes that worked on a run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
PARTS = ("input", "communication", "evaluation", "saving")
"""What the loop waits for beside computing: its batches, other ranks, its hooks, its checkpoints."""


class Stopwatch:
    """Adds up seconds by part. A part within another counts for the outer one."""

    def __init__(self, parts: Iterable[str] = PARTS) -> None:
        self.seconds = dict.fromkeys(parts, 0.0)
        self._is_in = False

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens within the context, however it ends."""
        if self._is_in:
            yield
            return
        self._is_in, started = True, time.perf_counter()
        try:
            yield
        finally:
            self._is_in = False
            self.seconds[name] += time.perf_counter() - started

    def drawn(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items, with the time that each takes to come."""
        source = iter(items)
        while True:
            with self.part(name):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    def load(self, seconds: Mapping[str, float]) -> None:
        """Go on from the seconds of an earlier process."""
        self.seconds = {name: float(seconds[name]) for name in self.seconds}

    def spent(self, stepping: float) -> dict[str, float]:
        """All parts, and with them ``computing``: what is left of the seconds spent on steps, which hold input and communication."""
        waited = self.seconds["input"] + self.seconds["communication"]
        return {"computing": max(0.0, stepping - waited), **self.seconds}
