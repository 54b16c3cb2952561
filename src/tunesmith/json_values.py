"""JSON values: no deeper than what works on them can go, and only what JSON knows. Torch-free."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

MOST_DEPTH = 100
"""Lists and objects within each other. Rows have about ten; what reads them goes down by calling itself."""

_MOST_DIGITS = 19


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"{digits[:_MOST_DIGITS]}… is no number that was written")
    return int(digits)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:_MOST_DIGITS]} is no number that was written")
    return number


class RepeatedKey(ValueError):
    """An object has a key twice: which of the two values is meant is not known."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the key `{name}` stands twice in one object")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        times = Counter(name for name, _ in pairs)
        raise RepeatedKey(next(name for name in values if times[name] > 1))
    return values


DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse_constant)
LENIENT = json.JSONDecoder(parse_constant=_refuse_constant)
"""The same, but of a key that stands twice the last value holds: where only the end of a value is asked for."""
_OURS = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_whole, parse_float=_finite)


def loads(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        json.JSONDecodeError: it is not JSON.
        RepeatedKey: an object has a key twice.
        ValueError: it holds NaN or an infinity, a number of thousands of digits, or nests too deeply.
    """
    return _decoded(DECODER, text)


def loads_ours(text: str) -> Any:
    """The same of a file that Tunesmith wrote: its numbers are finite, and its whole numbers fit 64 bits.

    Raises:
        json.JSONDecodeError: it is not JSON.
        ValueError: as ``loads``, or a number is none that Tunesmith writes.
    """
    return _decoded(_OURS, text)


def _decoded(decoder: json.JSONDecoder, text: str) -> Any:
    try:
        value = decoder.decode(text)
    except RecursionError:
        raise TooDeep from None
    if text.count("[") + text.count("{") > MOST_DEPTH:
        refuse_deep(value)
    return value


class TooDeep(ValueError):
    """Lists and objects lie deeper within each other than ``MOST_DEPTH``."""

    def __init__(self) -> None:
        super().__init__(f"values are nested too deeply, at most {MOST_DEPTH} deep")


def refuse_deep(value: Any) -> None:
    """Raise TooDeep where a value nests deeper than ``MOST_DEPTH``."""
    level = [value]
    for _ in range(MOST_DEPTH):
        inner: list[Any] = []
        for item in level:
            parts = item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ()
            inner += (part for part in parts if isinstance(part, dict | list | tuple))
        if not inner:
            return
        level = inner
    raise TooDeep


def json_kind(value: Any) -> str:
    """What JSON calls the type of a value, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
