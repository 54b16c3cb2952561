"""What happened on the way: every event by time, and those that went wrong, grouped, for the top of the page."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.reports.facts import Facts
from tunesmith.reports.wording import as_number, clock, count, plain

_MOST_EVENTS = 200


@dataclass(frozen=True)
class Event:
    """Something that happened, with its step and its time."""

    time: str
    step: str
    kind: str
    message: str
    warning: bool


_WARNINGS = ("warn", "error", "guard", "skip", "stop", "non_finite", "spike", "disk", "interrupt", "rollback")


def events(facts: Facts) -> tuple[tuple[Event, ...], int]:
    """Events, warnings first and then by time; and how many more there are than the page holds."""
    found = []
    for line in facts.events:
        kind = str(line.get("kind") or "")
        warning = any(word in kind.lower() for word in _WARNINGS)
        step = count(as_number(line.get("step")))
        found.append(Event(clock(line.get("time")), step, plain(kind), str(line.get("message") or ""), warning))
    found.sort(key=lambda event: not event.warning)
    return tuple(found[:_MOST_EVENTS]), max(len(found) - _MOST_EVENTS, 0)
