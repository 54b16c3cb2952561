"""Signals that end training in order: the first asks, the second leaves at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_WATCHED = ("SIGTERM", "SIGINT", "SIGHUP")


class Asked(BaseException):
    """A signal came while it could be obeyed at once. Not an Exception: nothing in between may swallow it."""


class Interrupts:
    """Watches SIGTERM, SIGINT, and SIGHUP where the process does not ignore it.

    ``asked`` holds the number of the first signal. Within ``at_once`` a signal raises ``Asked`` where the program stands;
    elsewhere the loop looks at ``asked`` between passes. A second signal raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.why: str | None = None
        """A reason given by ``ask`` in place of a signal's name."""
        self._at_once = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the context signals ask to stop; only the main thread can watch."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Callable[..., Any] | int | None] = {}
        for name in _WATCHED:
            number = getattr(signal, name, None)
            if number is None or (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
                continue
            before[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the context nothing is half-changed: a signal may end it anywhere.

        Raises:
            Asked: a signal came, before or within.
        """
        self.check()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def check(self) -> None:
        """Raise Asked where a signal came."""
        if self.asked is not None:
            raise Asked

    @property
    def name(self) -> str:
        """What asked, in words."""
        return self.why or f"signal {signal.Signals(self.asked or signal.SIGTERM).name}"

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number
        if self._at_once:
            self._at_once = False
            raise Asked
