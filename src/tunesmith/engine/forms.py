"""Forms of plain values: whether a JSON value of a stranger is what a reader of it will take for granted. Torch-free.

A form takes a value and its place, and returns the first fault as a clause, or None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunesmith.json_values import json_kind

Form = Callable[[Any, str], str | None]
MOST_WHOLE = 1 << 53
"""Of counts: beyond it not every whole number is a double."""
MOST_NUMBER = 1e300
_MOST_SHOWN = 60


def shown(name: str) -> str:
    """A name of a stranger, cut, and without what a terminal might obey."""
    text = ascii(name)[1:-1]
    return f"`{text[:_MOST_SHOWN]}…`" if len(text) > _MOST_SHOWN else f"`{text}`"


def whole(low: int = 0, high: int = MOST_WHOLE) -> Form:
    """A whole number between two bounds, both of which it may be."""

    def fault(value: Any, place: str) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return f"{place} is {json_kind(value)}, not a whole number"
        return None if low <= value <= high else f"{place} is not between {low} and {high}"

    return fault


def number(low: float = -MOST_NUMBER, high: float = MOST_NUMBER) -> Form:
    """A number between two bounds; never NaN."""

    def fault(value: Any, place: str) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{place} is {json_kind(value)}, not a number"
        return None if low <= value <= high else f"{place} is not between {low:g} and {high:g}"

    return fault


def boolean(value: Any, place: str) -> str | None:
    """True or false."""
    return None if isinstance(value, bool) else f"{place} is {json_kind(value)}, not a boolean"


def text(value: Any, place: str) -> str | None:
    """Any text."""
    return None if isinstance(value, str) else f"{place} is {json_kind(value)}, not text"


def maybe(form: Form) -> Form:
    """Null, or what ``form`` asks for."""
    return lambda value, place: None if value is None else form(value, place)


def listed(form: Form, least: int = 0, most: int = MOST_WHOLE) -> Form:
    """A list of so many values of one form."""

    def fault(value: Any, place: str) -> str | None:
        if not isinstance(value, list):
            return f"{place} is {json_kind(value)}, not a list"
        if not least <= len(value) <= most:
            return f"{place} has {len(value)} values, not {least if least == most else f'{least} to {most}'}"
        faults = (form(item, f"{place}[{index}]") for index, item in enumerate(value))
        return next((item for item in faults if item), None)

    return fault


def mapped(form: Form) -> Form:
    """An object with any keys, whose values have one form."""

    def fault(value: Any, place: str) -> str | None:
        if not isinstance(value, dict):
            return f"{place} is {json_kind(value)}, not an object"
        faults = (form(item, f"{place}.{shown(key)}") for key, item in value.items())
        return next((item for item in faults if item), None)

    return fault


def keyed(forms: dict[str, Form], *, others: bool = False) -> Form:
    """An object with exactly these keys, or with ``others`` besides."""

    def fault(value: Any, place: str) -> str | None:
        if not isinstance(value, dict):
            return f"{place} is {json_kind(value)}, not an object"
        if lacking := [key for key in forms if key not in value]:
            return f"{place} lacks `{lacking[0]}`"
        if strange := [] if others else [key for key in value if key not in forms]:
            return f"{place} has {shown(strange[0])}, which is not known"
        faults = (form(value[key], f"{place}.{key}") for key, form in forms.items())
        return next((item for item in faults if item), None)

    return fault


def one_of(*forms: Form) -> Form:
    """Any of several forms; the fault is that of the last."""

    def fault(value: Any, place: str) -> str | None:
        faults = [form(value, place) for form in forms]
        return None if None in faults else faults[-1]

    return fault


def anything(value: Any, place: str) -> str | None:
    """What another reader looks at."""
    return None
