"""Prints what was tried and what survived, at the end of a session."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

TALLY, TRIED, KEPT = "reliability", "tried", "kept"
SEED = int(os.environ.get("RELIABILITY_SEED", random.SystemRandom().randrange(10_000)))
"""Chooses points and moments, others each time; a failure names it."""
Tell = Callable[[str, int, int, str], None]


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Have it printed at the end how many were tried, and how many of them were kept as they must be; and more words."""

    def say(what: str, tried: int, kept: int, words: str) -> None:
        record_property(TALLY, f"{what}: {tried} tried, {kept} {words}")
        record_property(TRIED, tried)
        record_property(KEPT, kept)

    return say


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the sentences of all tests, those of other processes too."""
    for sentence in _sentences(terminalreporter.stats):
        terminalreporter.write_line(f"reliability: {sentence}")


def _sentences(stats: dict[str, list[Any]]) -> Iterator[str]:
    for reports in stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == TALLY and report.when == "call":
                    yield value
