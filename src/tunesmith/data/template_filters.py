"""Filters, tests and methods of chat templates behind checks of what they are asked for. Torch-free.

Checked before the work is done: a width, a count or a replacement can ask for more than any memory holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext, Undefined

from tunesmith.data.template_budget import (
    MAX_CHARACTERS,
    MAX_INTEGER_BITS,
    charge,
    each,
    sized,
    too_much,
    weigh,
    written,
)

REFUSED = (
    "random", "urlize", "pprint", "lipsum", "xmlattr", "urlencode", "striptags", "wordwrap", "filesizeformat", "forceescape",
    "wordcount",
)  # fmt: skip
"""Filters and globals made for web pages or chance; no known chat template uses one."""

MAX_WIDTH = 100_000
MAX_ATTRIBUTE = 200
_SQUARE = 10_000
_MOST_PRECISION = 30
_MOST_TIME_FORMAT = 1_000
_NUMBER = 1_300
"""Digits of the largest number there may be."""
_QUOTED = 10
"""Characters that quoting makes of one at most."""
_ORDERING = ("sort", "unique", "groupby", "dictsort", "min", "max")
_BY_ATTRIBUTE = ("map", "selectattr", "rejectattr", "sort", "unique", "groupby", "sum", "min", "max", "join")
_WIDE_METHODS = frozenset({"center", "ljust", "rjust", "zfill"})
_BACKWARD = frozenset({"rfind", "rindex", "rsplit", "rpartition", "strip", "lstrip", "rstrip"})
"""Methods of text whose time can grow with the product of both lengths."""

_NO_METHODS = frozenset(
    {"encode", "translate", "maketrans", "to_bytes", "from_bytes", "fromhex", "striptags", "unescape"}
)
_PERCENT = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\d*)(?:\.(\d*))?([a-zA-Z%*])?")
_BRACES = re.compile(r"\{[^{}]*?(?::([^{}]*))?\}")

Check = Callable[[list[Any], Mapping[str, Any]], None]


def refuse(name: str) -> Callable[..., Any]:
    """A filter or global that says that it may not be used."""

    def refused(*args: Any, **kwargs: Any) -> NoReturn:
        raise SecurityError(f"chat templates may not use `{name}`")

    return refused


def guard(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The filter or test ``name`` behind checks of its arguments and its result; jinja2's context markers are kept."""
    passes = hasattr(original, "jinja_pass_arg")
    check = CHECKS.get(name)

    def guarded(*args: Any, **kwargs: Any) -> Any:
        lead = 1 if passes else 0
        values = [_taken(item) for item in args[lead:]]
        named = {key: _taken(item) for key, item in kwargs.items()}
        if name in _BY_ATTRIBUTE:
            _attributes([*values[1:], *named.values()])
        if name in _ORDERING and values:
            values[0] = _at_hand(values[0])
            charge(weigh(values[0]) // 10)
        if check is not None and values:
            check(values, named)
        return sized(original(*args[:lead], *values, **named))

    if passes:
        guarded.jinja_pass_arg = original.jinja_pass_arg  # type: ignore[attr-defined]
    return guarded


def _taken(value: Any) -> Any:
    """An argument: charged for its size, or item by item."""
    if isinstance(value, Iterator) and not isinstance(value, LoopContext):
        return each(value)
    charge(weigh(value) // 200)
    return value


def _at_hand(value: Any) -> Any:
    """What is made item by item as a list, so that its size is known."""
    return sized(list(value)) if isinstance(value, Iterator) else value


def check_call(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Arguments of a call, charged for and checked against what they make a method of text or numbers do."""
    given = [_taken(item) for item in args]
    for item in kwargs.values():
        _taken(item)
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if isinstance(owner, str | list | tuple | int | float):
        charge(weigh(owner) // 200)
        if name in _NO_METHODS:
            too_much(f"calls `{name}`")
    if isinstance(owner, str):
        _method(owner, name, given, kwargs)
    return tuple(given)


def _method(owner: str, name: str, args: list[Any], kwargs: Mapping[str, Any]) -> None:
    if name in _WIDE_METHODS:
        _widths(args)
    elif name == "expandtabs":
        widths = [item for item in (*args, *kwargs.values()) if isinstance(item, int)] or [8]
        _fits(len(owner) + owner.count("\t") * max(widths))
    elif name == "join" and args:
        args[0] = _at_hand(args[0])
        _joined(owner, args[0])
    elif name == "replace" and len(args) > 1:
        _replaced(owner, *args[:2])
    elif name in _BACKWARD and args and isinstance(args[0], str):
        charge(len(owner) * len(args[0]) // _SQUARE)


def operands(operator: str, left: Any, right: Any) -> None:
    """Refuse before computing what would be too large to compute."""
    for many, other in ((left, right), (right, left)):
        if operator == "*" and isinstance(many, int) and isinstance(other, str | list | tuple):
            _fits(many * max(1, weigh(other)))
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        if right * left.bit_length() > MAX_INTEGER_BITS:
            too_much("computes with enormous numbers")
    elif operator == "%" and isinstance(left, str):
        percent(left, right if isinstance(right, tuple) else (right,))


def percent(pattern: str, args: Iterable[Any]) -> None:
    """Hold ``pattern % args`` against what it would write."""
    size, number = len(pattern), 0
    for match in _PERCENT.finditer(pattern):
        if "*" in match.group():
            too_much("asks for a width without bound")
        size += sum(_number(part) for part in match.groups()[:2])
        number += 1
    _fits(size + number * _longest(args, quoted="r" in pattern or "a" in pattern))


def braces(pattern: str, args: Iterable[Any]) -> None:
    """Hold ``pattern.format(args)`` against what it would write."""
    if re.search(r":[^}]*\{", pattern):
        too_much("asks for a width without bound")
    size, number = len(pattern), 0
    for match in _BRACES.finditer(pattern):
        size += sum(_number(part) for part in re.findall(r"\d+", match[1] or ""))
        number += 1
    _fits(size + number * _longest(args, quoted="!" in pattern))


def _longest(args: Iterable[Any], *, quoted: bool) -> int:
    """Characters that the longest of some values takes once written."""
    longest = _NUMBER
    for item in args:
        weight = weigh(written(item))
        longest = max(longest, weight if isinstance(item, str) and not quoted else _QUOTED * weight)
    return longest


def _number(digits: str | None) -> int:
    return MAX_CHARACTERS + 1 if digits and len(digits) > 7 else int(digits or 0)


def _fits(size: int) -> None:
    if size > MAX_CHARACTERS:
        too_much(f"builds a value longer than {MAX_CHARACTERS:,}")


def _widths(items: Iterable[Any]) -> None:
    if any(isinstance(item, int) and item > MAX_WIDTH for item in items):
        too_much("asks for a width without bound")


def _attributes(items: Iterable[Any]) -> None:
    """An attribute with dots is looked up part by part for every item."""
    if any(isinstance(item, str) and item.count(".") > MAX_ATTRIBUTE for item in items):
        too_much(f"names an attribute of more than {MAX_ATTRIBUTE} parts")


def _joined(separator: Any, items: Any) -> None:
    if isinstance(items, str | list | tuple | dict):
        _fits(weigh(written(items)) + len(str(separator)) * len(items))


def _replaced(text: Any, old: Any, new: Any) -> None:
    _fits(len(text) + str(text).count(str(old)) * len(str(new)))


def _check_join(values: list[Any], named: Mapping[str, Any]) -> None:
    if not isinstance(values[0], Undefined):
        values[0] = _at_hand(values[0])
        _joined(values[1] if len(values) > 1 else named.get("d", ""), values[0])


def _check_replace(values: list[Any], named: Mapping[str, Any]) -> None:
    given = [*values[1:3], named.get("old", ""), named.get("new", "")]
    old = named.get("old", given[0])
    new = named.get("new", given[1] if len(values) > 2 else "")
    _replaced(str(written(values[0])), old, new)


def _check_width(values: list[Any], named: Mapping[str, Any]) -> None:
    _widths([*values[1:], *named.values()])


def _check_pieces(values: list[Any], named: Mapping[str, Any]) -> None:
    """``batch`` and ``slice`` fill up to the number they are given."""
    _check_width(values, named)
    charge(sum(abs(item) for item in (*values[1:], *named.values()) if isinstance(item, int)))


def _check_indent(values: list[Any], named: Mapping[str, Any]) -> None:
    """An indentation is written once a line."""
    width = values[1] if len(values) > 1 else named.get("width", 4)
    step = width if isinstance(width, int) else len(width) if isinstance(width, str) else 0
    text = str(written(values[0]))
    _fits(len(text) + step * (1 + text.count("\n")))
    _check_width(values, named)


def _check_round(values: list[Any], named: Mapping[str, Any]) -> None:
    precision = values[1] if len(values) > 1 else named.get("precision", 0)
    if not isinstance(precision, int) or abs(precision) > _MOST_PRECISION:
        too_much("rounds to more places than a number has")


def _check_sum(values: list[Any], named: Mapping[str, Any]) -> None:
    start = values[2] if len(values) > 2 else named.get("start", 0)
    if not isinstance(start, int | float):
        too_much("sums what are no numbers")


def _check_trim(values: list[Any], named: Mapping[str, Any]) -> None:
    chars = values[1] if len(values) > 1 else named.get("chars")
    if isinstance(chars, str):
        charge(weigh(values[0]) * len(chars) // _SQUARE)


def _check_written(values: list[Any], named: Mapping[str, Any]) -> None:
    written(values[0])


CHECKS: dict[str, Check] = {
    "join": _check_join, "replace": _check_replace, "center": _check_width, "truncate": _check_width, "batch": _check_pieces,
    "slice": _check_pieces, "indent": _check_indent, "round": _check_round, "sum": _check_sum, "trim": _check_trim,
    "string": _check_written, "upper": _check_written, "lower": _check_written, "title": _check_written,
    "capitalize": _check_written, "escape": _check_written, "e": _check_written, "safe": _check_written,
}  # fmt: skip


def format_(value: Any, *args: Any, **kwargs: Any) -> str:
    """The filter ``format``."""
    pattern = str(written(value))
    percent(pattern, [*args, *kwargs.values()])
    return str(sized(pattern % (kwargs or args)))


def tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers writes JSON: no HTML escapes, letters as they are."""
    weight = weigh(written(value))
    around = indent if isinstance(indent, int) else len(indent) if isinstance(indent, str) else 0
    between = sum(len(item) for item in separators if isinstance(item, str)) if separators else 2
    _widths([around])
    if around > 0 or between > 2:
        parts, depth = _shape(value)
        _fits(weight + parts * (between + around * depth))
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return str(sized(text))


def _shape(value: Any) -> tuple[int, int]:
    """Parts of a value and how deep they lie, no more of either than it weighs. Raises RecursionError where JSON would."""
    if not isinstance(value, list | tuple | dict):
        return 1, 0
    inner = [_shape(item) for item in (value.values() if isinstance(value, dict) else value)]
    return 1 + sum(parts for parts, _ in inner), 1 + max((depth for _, depth in inner), default=0)


def clock(strftime: Callable[[str], str]) -> Callable[[str], str]:
    """``strftime_now`` for a format of a sensible length."""

    def strftime_now(format: str) -> str:
        if weigh(format) > _MOST_TIME_FORMAT:
            too_much("asks for the time at length")
        return strftime(format)

    return strftime_now
