"""Progress on stderr: a live bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from tunesmith.progress import Progress
from tunesmith.reports.wording import as_number, count, duration, number
from tunesmith.signals import raise_if_asked
from tunesmith.visible import visible

_SECONDS_BETWEEN_LINES = 5.0


def open_progress() -> Progress:
    """A bar where stderr is a terminal, else lines."""
    is_live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return BarProgress() if is_live else LineProgress()


def describe(loss: float, tokens_per_second: float, seconds_left: float | None) -> str:
    """``loss 2.31  12,300 tokens/s  1 min 20 s left``; the loss of a step that was left out is a dash."""
    left = "" if seconds_left is None else f"  {duration(seconds_left)} left"
    return f"loss {number(as_number(loss), 4)}  {count(tokens_per_second)} tokens/s{left}"


class BarProgress:
    """One bar for training, and one for each phase of other work while it lasts."""

    def __init__(self, console: Console | None = None) -> None:
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console or Console(stderr=True),
            refresh_per_second=8,
            expand=True,
        )
        self._training: TaskID | None = None
        self._phases: dict[str, TaskID] = {}

    def start(self, total_steps: int, done: int = 0) -> None:
        """Open the bar of training."""
        self._bars.start()
        self._training = self._bars.add_task("training", total=total_steps, completed=done, detail="")

    def step(self, step: int, loss: float, tokens_per_second: float, seconds_left: float | None) -> None:
        """Move the bar."""
        if self._training is not None:
            detail = describe(loss, tokens_per_second, seconds_left)
            self._bars.update(self._training, completed=step, detail=detail)

    def phase(self, name: str, done: int, total: int) -> None:
        """Open, move and close the bar of a phase."""
        raise_if_asked()
        self._bars.start()
        if name not in self._phases:
            self._phases[name] = self._bars.add_task(escape(visible(name)), total=total, detail="")
        self._bars.update(self._phases[name], completed=done, total=total)
        if done >= total:
            self._bars.remove_task(self._phases.pop(name))

    def note(self, text: str) -> None:
        """Print above the bars."""
        raise_if_asked()
        self._bars.console.print(visible(text), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bars as they are and the terminal free."""
        for task in self._phases.values():
            self._bars.remove_task(task)
        self._phases.clear()
        self._bars.stop()


class LineProgress:
    """Lines for logs and pipes: the first and last of each kind, and one every few seconds between."""

    def __init__(self, seconds_between: float = _SECONDS_BETWEEN_LINES) -> None:
        self._seconds_between = seconds_between
        self._total = 0
        self._last = -seconds_between
        self._phase = ""

    def start(self, total_steps: int, done: int = 0) -> None:
        """Say how far it is."""
        self._total = total_steps
        self._write(f"training: step {count(done)} of {count(total_steps)}")
        self._last = -self._seconds_between

    def step(self, step: int, loss: float, tokens_per_second: float, seconds_left: float | None) -> None:
        """Say it where it is time."""
        if step >= self._total or self._is_time():
            place = f"training: step {count(step)} of {count(self._total)}"
            self._write(f"{place}  {describe(loss, tokens_per_second, seconds_left)}")

    def phase(self, name: str, done: int, total: int) -> None:
        """Say it where it is time, or where a phase begins or ends."""
        raise_if_asked()
        is_new, self._phase = name != self._phase, name if done < total else ""
        if is_new or done >= total or self._is_time():
            self._write(f"{name}: {count(done)} of {count(total)}")

    def note(self, text: str) -> None:
        """Say it."""
        raise_if_asked()
        print(visible(text), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to leave."""

    def _is_time(self) -> bool:
        return time.monotonic() - self._last >= self._seconds_between

    def _write(self, text: str) -> None:
        self._last = time.monotonic()
        print(visible(text), file=sys.stderr, flush=True)
