"""What one rendering of a chat template may use, counted and not timed. Torch-free.

A unit of work is one turn of a loop, one call, filter or test, or the handling of ``_CHARACTERS`` characters or ``_PARTS``
parts of a list. Whether a template passes does not depend on the machine; the dearest unit takes about 20 microseconds.

Every list, tuple and dict that a template makes is *weighed* when it is made: its characters and parts, those of shared
parts as often as they stand in it. No value is heavier than ``MAX_CHARACTERS``, so none can be compared, hashed or written
out at more than that cost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn

from jinja2.exceptions import TemplateRuntimeError
from jinja2.runtime import LoopContext

MAX_CHARACTERS = 8_000_000
"""Of the output, of any string, and the weight of any other value: about 2 million tokens, more than any context."""

MAX_WORK = 1_000_000
"""A conversation of 5,000 turns needs a third of it."""

MAX_INTEGER_BITS = 4_096
_CHARACTERS = 200
_WIDE_CHARACTERS = 50
"""Of text that is not ASCII: it takes up to four bytes a character."""

_PARTS = 50
_MOST_REMEMBERED = 50_000
_VIEWS: tuple[type[Collection[Any]], ...] = (type({}.keys()), type({}.values()), type({}.items()))
_CONTAINERS: tuple[type[Collection[Any]], ...] = (list, tuple, dict, *_VIEWS)


@dataclass
class Budget:
    """What one rendering has used, and the weights of the values it made (which are kept, so that no other takes their id)."""

    work: int = 0
    marking: bool = False
    weights: dict[int, tuple[Any, int]] = field(default_factory=dict)


_budget: ContextVar[Budget | None] = ContextVar("template_budget", default=None)


@contextmanager
def spending(*, marking: bool = False) -> Iterator[None]:
    """Within the context, work is counted; compiling a template counts too, since it folds constants."""
    token = _budget.set(Budget(marking=marking))
    try:
        yield
    finally:
        _budget.reset(token)


def is_marking() -> bool:
    """Whether this rendering puts marks around what is generated."""
    budget = _budget.get()
    return budget is not None and budget.marking


def too_much(what: str) -> NoReturn:
    """Stop the template."""
    raise TemplateRuntimeError(f"the template {what}: a chat template has no need of that, it was stopped")


def charge(units: int = 1) -> None:
    """Count work."""
    budget = _budget.get()
    if budget is None:
        return
    budget.work += units
    if budget.work > MAX_WORK:
        too_much(f"needs more than {MAX_WORK:,} steps")


def weigh(value: Any) -> int:
    """Characters and parts of a value, those of shared parts as often as they stand in it; 1 for what has none."""
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, _CONTAINERS):
        return 1
    budget = _budget.get()
    known = budget.weights.get(id(value)) if budget is not None else None
    if known is not None:
        return known[1]
    charge(1 + len(value) // _PARTS)
    weight = 1 + len(value)
    for item in value:
        weight += weigh(item)
        if isinstance(value, dict):
            weight += weigh(value[item])
        if weight > MAX_CHARACTERS:
            too_much(f"builds a value longer than {MAX_CHARACTERS:,}")
    if budget is not None and not isinstance(value, _VIEWS):
        if len(budget.weights) >= _MOST_REMEMBERED:
            budget.weights.clear()
        budget.weights[id(value)] = (value, weight)
    return weight


def sized(value: Any) -> Any:
    """Let a value through that is small enough, and charge for it; what is made one by one is charged one by one."""
    if isinstance(value, str):
        if len(value) > MAX_CHARACTERS:
            too_much(f"builds a value longer than {MAX_CHARACTERS:,}")
        charge(1 + len(value) // (_CHARACTERS if value.isascii() else _WIDE_CHARACTERS))
    elif isinstance(value, int):
        if value.bit_length() > MAX_INTEGER_BITS:
            too_much("computes with enormous numbers")
        charge()
    elif isinstance(value, bytes | bytearray | memoryview):
        too_much("makes bytes of text")
    elif isinstance(value, Iterator) and not isinstance(value, LoopContext):
        return each(value)
    else:
        charge(1 + weigh(value) // _CHARACTERS)
    return value


def written(value: Any) -> Any:
    """Let a value through that is about to be written out as text, and charge for the writing."""
    if not isinstance(value, str):
        charge(weigh(value) // _PARTS)
    return sized(value)


def counted(iterable: Any) -> Any:
    """Charge a loop for its turns: at once where the length is known, turn by turn otherwise."""
    if isinstance(iterable, (str, range, Mapping, *_CONTAINERS)):
        charge(len(iterable))  # type: ignore[arg-type]
        return iterable
    if isinstance(iterable, Iterator):
        return each(iterable)
    return iterable


def each(iterable: Iterable[Any]) -> Iterator[Any]:
    """The items, each charged for."""
    for item in iterable:
        charge()
        yield item


def concatenated(pieces: Iterable[str]) -> str:
    """What a block or macro wrote, as one text."""
    texts = list(pieces)
    total = sum(map(len, texts))
    if total > MAX_CHARACTERS:
        too_much(f"builds a value longer than {MAX_CHARACTERS:,}")
    return str(sized("".join(texts)))
