"""A signal that Python swallowed is heard all the same."""

from __future__ import annotations

import signal

import pytest

from tunesmith.cli.progress import LineProgress
from tunesmith.engine.interrupts import Interrupts
from tunesmith.signals import raise_if_asked, signals_interrupt

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Deaf:
    """Its destructor is where the signal comes; what is raised there Python only prints."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)
        for _ in range(3):  # the handler runs between two instructions
            pass


def _swallow(number: signal.Signals = signal.SIGTERM) -> None:
    deaf = Deaf(number)
    del deaf


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_it_is_raised_at_the_next_look(number: signal.Signals) -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), signals_interrupt():  # noqa: PT012
        _swallow(number)
        reached.append("after the destructor")
        raise_if_asked()
        reached.append("after the look")
    assert reached == ["after the destructor"]


def test_it_is_raised_at_the_end_at_the_latest_and_once() -> None:
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        _swallow()
    with signals_interrupt():
        raise_if_asked()


def test_one_that_was_heard_is_not_heard_twice() -> None:
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        signal.raise_signal(signal.SIGTERM)
    raise_if_asked()


def test_an_error_after_it_is_told_in_its_place() -> None:
    with pytest.raises(ZeroDivisionError), signals_interrupt():  # noqa: PT012
        _swallow()
        _ = 1 / 0
    raise_if_asked()


def test_training_does_not_begin_and_progress_does_not_go_on() -> None:
    with pytest.raises(KeyboardInterrupt), signals_interrupt():  # noqa: PT012
        _swallow()
        with Interrupts().watching():
            raise AssertionError("it began")
    with pytest.raises(KeyboardInterrupt), signals_interrupt():  # noqa: PT012
        _swallow()
        LineProgress().note("on and on")
        raise AssertionError("it went on")
