"""What long work says while it runs. The workshop speaks, a face listens. Torch-free.

start(total) ── step(…) step(…) … ── phase(name, done, total) ── note(sentence) ── close()
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """A listener of long work. Every method returns at once and raises nothing of its own; a person's Ctrl-C
    may end it (KeyboardInterrupt).
    """

    def start(self, total_steps: int, done: int = 0) -> None:
        """Training begins; ``done`` optimiser steps are behind it already (a resume)."""
        ...

    def step(self, step: int, loss: float, tokens_per_second: float, seconds_left: float | None) -> None:
        """Optimiser step ``step`` (from 1) is done. ``loss`` is in nats per unit; ``seconds_left`` None: not known yet."""
        ...

    def phase(self, name: str, done: int, total: int) -> None:
        """Other work that can be counted: scoring, sampling, hashing. ``done == total`` ends it."""
        ...

    def note(self, text: str) -> None:
        """Say one sentence: what was chosen, resumed, set aside."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was. May be called twice."""
        ...


class SilentProgress:
    """Hears everything and shows nothing; the sentences stay in ``notes``."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, total_steps: int, done: int = 0) -> None:
        """Show nothing."""

    def step(self, step: int, loss: float, tokens_per_second: float, seconds_left: float | None) -> None:
        """Show nothing."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Keep the sentence."""
        self.notes.append(text)

    def close(self) -> None:
        """Nothing to leave."""
