"""Signals that ask a process to end. Torch-free."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Handler = Callable[..., Any] | int
ENDING = ("SIGTERM", "SIGINT", "SIGHUP")
_MAY_BE_IGNORED = ("SIGINT", "SIGHUP")
"""Signals that whoever started the process may have told it to ignore: a shell in the background, nohup, --detach."""


def on_main_thread() -> bool:
    """Whether signals can be handled here."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def handling(handler: Handler, names: Sequence[str] = ENDING) -> Iterator[None]:
    """Within the context signals that ask to end go to ``handler``, but those that the process was told to ignore.

    Only the main thread can handle them; elsewhere nothing changes.
    """
    if not on_main_thread():
        yield
        return
    before: dict[int, Handler | None] = {}
    for name in names:
        number = getattr(signal, name, None)
        if number is None or (name in _MAY_BE_IGNORED and signal.getsignal(number) == signal.SIG_IGN):
            continue
        before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, signal.SIG_DFL if former is None else former)


_asked: list[int] = []
"""Signals whose KeyboardInterrupt has not left a ``signals_interrupt``. Python swallows an exception that is raised while a
destructor or a callback of C runs, which is most likely while libraries load."""


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Within the context signals that ask to end raise KeyboardInterrupt, so that half-written files are cleared away.

    One that was swallowed is raised by the next ``raise_if_asked``, or at the context's end.
    """
    with handling(_interrupt):
        try:
            yield
        except BaseException:
            _asked.clear()
            raise
        raise_if_asked()


def raise_if_asked() -> None:
    """Raise KeyboardInterrupt where a signal came and its own was swallowed."""
    if _asked and on_main_thread():
        _asked.clear()
        raise KeyboardInterrupt


def _interrupt(number: int, _frame: Any) -> None:
    _asked.append(number)
    raise KeyboardInterrupt


def end_quietly() -> None:
    """From here on Ctrl-C ends the process at once and without a word: nothing is open, or the answer is given."""
    if on_main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
