"""Prints what was tried and what survived, at the end of a session."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

TALLY = "reliability"
SEED = int(os.environ.get("RELIABILITY_SEED", random.SystemRandom().randrange(10_000)))
"""Chooses points and moments, others each time; a failure names it."""
Tell = Callable[[str], None]


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Have a sentence printed at the end."""
    return lambda sentence: record_property(TALLY, sentence)


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
