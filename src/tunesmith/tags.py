"""Tags of words and the spans they mark: ``B-`` begins, ``I-`` goes on, ``E-`` ends, ``S-`` is one word alone, ``O`` is nothing.

Spans are read as conlleval reads them (Tjong Kim Sang and De Meulder 2003; seqeval does the same): a tag that goes on with
nothing, or with another type, begins a span of its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

OUTSIDE = "O"
"""The tag that is nothing in every scheme."""

_TAG = re.compile(r"[BIES](-.+)?")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Words ``start`` to ``end``, the last not included, that one span covers; ``type`` is empty for bare ``B`` and ``I``."""

    type: str
    start: int
    end: int


def marks_spans(labels: Collection[str], outside: str = OUTSIDE) -> bool:
    """Whether labels are those of a span scheme: each is outside or has a prefix, and one at least has."""
    inside = [label for label in labels if not is_outside(label, outside)]
    return bool(inside) and all(_TAG.fullmatch(label) for label in inside)


def is_outside(tag: str, outside: str = OUTSIDE) -> bool:
    """Whether a tag is nothing: ``O``, or what the data calls it."""
    return tag in (OUTSIDE, outside)


def parted(tag: str) -> tuple[str, str]:
    """Prefix and type of a tag of a span scheme."""
    prefix, _, kind = tag.partition("-")
    return prefix, kind


def begins(before: str | None, tag: str, outside: str = OUTSIDE) -> bool:
    """Whether a span begins at a tag that is not outside.

    Args:
        before: tag of the word before; None where there is none.
        tag: of the word.
        outside: what the data calls nothing.
    """
    prefix, kind = parted(tag)
    if prefix in ("B", "S") or before is None or is_outside(before, outside):
        return True
    last, other = parted(before)
    return last in ("E", "S") or other != kind


def chunks(tags: Sequence[str], outside: str = OUTSIDE) -> list[Chunk]:
    """The spans that the tags of a row's words mark, in order."""
    found: list[Chunk] = []
    start: int | None = None
    for place, tag in enumerate([*tags, outside]):
        ends = is_outside(tag, outside)
        opens = not ends and begins(tags[place - 1] if place else None, tag, outside)
        if start is not None and (ends or opens):
            found.append(Chunk(parted(tags[start])[1], start, place))
            start = None
        if opens:
            start = place
    return found


def stray(tags: Sequence[str], outside: str = OUTSIDE) -> int | None:
    """Position of the first ``I-`` or ``E-`` that goes on with nothing, which IOB2 does not allow; None where there is none."""
    before: str | None = None
    for place, tag in enumerate(tags):
        if not is_outside(tag, outside) and parted(tag)[0] in ("I", "E") and begins(before, tag, outside):
            return place
        before = tag
    return None


def continued(tag: str, outside: str = OUTSIDE) -> str:
    """The tag of a further piece of the same word: ``I-`` where the word begins a span, else its own."""
    if is_outside(tag, outside) or not _TAG.fullmatch(tag):
        return tag
    prefix, kind = parted(tag)
    return f"I-{kind}" if kind and prefix in ("B", "S") else "I" if prefix in ("B", "S") else tag
