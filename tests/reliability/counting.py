"""A plugin of pytest that counts bad inputs: every refusal that a test asserts, and whether it had its three parts.

    python -m pytest -p tests.reliability.counting tests/e2e/test_bad_input.py

The last line says ``bad inputs: TRIED tried, CLEAR with a clear error``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e import desk
from tests.hostile import bounds

_counts = {"tried": 0, "clear": 0}


def _counted(act: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(act)
    def counting(*arguments: Any, **named: Any) -> Any:
        _counts["tried"] += 1
        found = act(*arguments, **named)
        _counts["clear"] += 1
        return found

    return counting


def pytest_configure(config: pytest.Config) -> None:
    """Count before any test module takes the functions by name."""
    desk.Said.refuses = _counted(desk.Said.refuses)  # type: ignore[method-assign]
    bounds.refusal = _counted(bounds.refusal)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many."""
    terminalreporter.write_line(f"bad inputs: {_counts['tried']} tried, {_counts['clear']} with a clear error")
