"""Signals that end training in order: the first asks, the second leaves at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tunesmith.errors import GuardStopped, Interrupted, TunesmithError
from tunesmith.signals import handling, on_main_thread, raise_if_asked

GO_ON = "start the same command again to go on from there"


class Asked(BaseException):
    """A signal came while it could be obeyed at once. Not an Exception: nothing in between may swallow it."""


class Interrupts:
    """Watches SIGTERM, and SIGINT and SIGHUP where the process does not ignore them.

    ``asked`` holds the number of the first signal. Within ``at_once`` a signal raises ``Asked`` where the program stands;
    elsewhere the loop looks at ``asked`` between passes. A second signal raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.why: str | None = None
        """The reason that ``ask`` gave, where that came first."""
        self._is_watching = False
        self._at_once = False
        self._reason: str | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the context signals ask to stop; only the main thread can watch.

        Raises:
            KeyboardInterrupt: a signal came before, and went unheard.
        """
        raise_if_asked()
        with handling(self._note):
            self._is_watching = on_main_thread()
            try:
                yield
            finally:
                self._is_watching = False

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

    def ask(self, why: str) -> None:
        """From any thread: ask to stop as a signal would, so that whatever waits is woken. An earlier asking stands."""
        if self.asked is not None:
            return
        self._reason = why
        if self._is_watching:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.asked, self.why = signal.SIGTERM, why

    def ending(self, step: int, total_steps: int, saved: int | None, where: str) -> TunesmithError:
        """The error that ends the run: GuardStopped for a reason of ``ask``, Interrupted for a signal.

        Args:
            step: the last whole one.
            total_steps: of the budget.
            saved: step of the newest checkpoint.
            where: the checkpoints lie.
        """
        name = self.why or f"signal {signal.Signals(self.asked or signal.SIGTERM).name}"
        state = "a checkpoint is saved" if saved == step else f"the newest checkpoint is of step {saved or 0}"
        what = f"stopped by {name} after step {step} of {total_steps}; {state}"
        if self.why:
            hint = f"look at stacks-*.txt in the run folder, then {GO_ON}"
            return GuardStopped(what, where=where, hint=hint)
        return Interrupted(what, where=where, hint=GO_ON)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        own = number == signal.SIGTERM and self._reason is not None
        if self.asked is not None:
            if own:  # a person's signal came just before
                self._reason = None
                return
            raise KeyboardInterrupt
        self.asked, self.why = number, self._reason if own else None
        self._reason = None if own else self._reason
        if self._at_once:
            self._at_once = False
            raise Asked
