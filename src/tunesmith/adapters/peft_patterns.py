"""PEFT's patterns of layer names, matched as PEFT matches them, where that takes no time worth speaking of. Torch-free.

They are regular expressions from a file: one such as ``(a+)+b`` takes for ever on a name of thirty letters.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

from tunesmith.expressions import slow

MOST_REPEATS = 2
MOST_CHARACTERS = 300
MOST_NAME = 300
"""Characters of a layer's name; those of known models have about 60."""

MOST_TRIES = 4_000_000
"""Patterns times layers: a second or two."""

Pattern = tuple[re.Pattern[str], float]


class DangerousPattern(ValueError):
    """A pattern is no regular expression, or one that can take for ever."""


def compiled(patterns: Any) -> list[Pattern]:
    """Patterns of a configuration with their numbers, in its order.

    Raises:
        DangerousPattern: says which one, and why.
    """
    if not isinstance(patterns, dict):
        raise DangerousPattern("it is no mapping of patterns to numbers")
    result: list[Pattern] = []
    for pattern, value in patterns.items():
        shown = f"`{pattern[:60]}`"
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise DangerousPattern(f"{shown} has no number that could be used")
        fault = slow(pattern, MOST_REPEATS, MOST_CHARACTERS)
        if fault:
            raise DangerousPattern(f"{shown} {fault}, and could take for ever")
        try:
            with warnings.catch_warnings(
                action="ignore"
            ):  # of what a later Python may read otherwise: PEFT's own compiles it too
                result.append((re.compile(rf"(.*\.)?({pattern})$"), float(value)))
        except (re.error, RecursionError, OverflowError) as error:
            raise DangerousPattern(f"{shown} is no regular expression: {error}") from None
    return result


def first_match(patterns: Sequence[Pattern], layer: str, default: float) -> float:
    """PEFT's rule: the number of the first pattern that fits the end of a layer's name at a component."""
    return next((value for pattern, value in patterns if pattern.match(layer)), default)
