"""What happened on the way: every event by time, and those that went wrong, grouped, for the top of the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.reports.facts import Facts
from tunesmith.reports.wording import as_number, clock, count, plain

_MOST_EVENTS = 200
_MOST_MESSAGES = 3
_TITLES = {
    "stopped": "Stopped before its end",
    "lost": "Process lost",
    "differs": "Differs from the run that it repeats",
    "diverging": "Loss rose and stayed high",
    "rolled_back": "Rolled back",
    "step_skipped": "Step not applied",
    "restarted": "Started again from the first step",
    "begun_again": "Started again from the first step",
    "checkpoint_set_aside": "Damaged checkpoint set aside",
    "best_lost": "Best checkpoint lost",
    "checkpoint_failed": "Checkpoint not written",
    "checkpoint_saved_again": "Checkpoint not written",
    "recompute_on": "Memory ran out",
    "passes_cut": "Memory ran out",
    "layer_fault": "Layer that does not learn like the others",
    "stalled": "No progress",
    "slow_step": "Slow step",
    "slow_disk": "Slow disk",
    "lines_damaged": "Damaged lines left out",
    "lines_lost": "Lines of metrics lost",
    "sink_failed": "Metrics not sent",
}
"""Kinds of events that are troubles, gravest first; kinds with one title are told together."""
_SIGNS = ("warn", "error", "fault", "fail", "skip", "spike", "diverg", "damage", "lost", "stall", "non_finite")
"""Parts of other kinds that make an event a trouble."""


@dataclass(frozen=True)
class Event:
    """Something that happened, with its step and its time."""

    time: str
    step: str
    kind: str
    message: str
    warning: bool


@dataclass(frozen=True)
class Trouble:
    """Events of one kind that went wrong: how often, when, what was said first, and how many more said something."""

    title: str
    when: str
    messages: tuple[str, ...]
    more: int


@dataclass(frozen=True)
class Troubles:
    """What went wrong on the way; empty where nothing did. ``refused`` of ``steps`` steps were not applied."""

    found: tuple[Trouble, ...]
    refused: int
    steps: int

    def __bool__(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.found or self.refused)


def events(facts: Facts) -> tuple[tuple[Event, ...], int]:
    """Events by time; and how many more there are than the page holds."""
    found = []
    for line in facts.events:
        kind = str(line.get("kind") or "")
        step = count(as_number(line.get("step")))
        found.append(
            Event(clock(line.get("time")), step, plain(kind), str(line.get("message") or ""), bool(_title(kind)))
        )
    return tuple(found[:_MOST_EVENTS]), max(len(found) - _MOST_EVENTS, 0)


def troubles(facts: Facts) -> Troubles:
    """Events of guards and other faults by kind, gravest first, and the steps that were not applied."""
    grouped: dict[str, list[dict[str, Any]]] = {title: [] for title in _TITLES.values()}
    for line in facts.events:
        if title := _title(str(line.get("kind") or "")):
            grouped.setdefault(title, []).append(line)
    refused = {line.get("step") for line in facts.training if line.get("refused_by")}
    return Troubles(
        found=tuple(_trouble(title, lines) for title, lines in grouped.items() if lines),
        refused=len(refused),
        steps=len({line.get("step") for line in facts.training}),
    )


def _title(kind: str) -> str:
    """Title of the trouble that an event belongs to; empty where it is none."""
    if kind in _TITLES:
        return _TITLES[kind]
    return plain(kind).capitalize() if any(sign in kind.lower() for sign in _SIGNS) else ""


def _trouble(title: str, lines: list[dict[str, Any]]) -> Trouble:
    steps = sorted({step for line in lines if (step := as_number(line.get("step"))) is not None})
    if not steps:
        place = ""
    elif len(steps) == 1:
        place = f"at step {count(steps[0])}"
    else:
        place = f"steps {count(steps[0])} to {count(steps[-1])}"
    times = f"{count(len(lines))} times" if len(lines) > 1 else ""
    said = [text for line in lines if (text := str(line.get("message") or "").strip())]
    return Trouble(
        title, ", ".join(filter(None, (times, place))), tuple(said[:_MOST_MESSAGES]), len(said[_MOST_MESSAGES:])
    )
