"""Whether a very long record is longer than the context, found out without rendering it. Torch-free.

Rendering holds a text many times over, and encoding takes some 200 bytes a character: a row of 5 MB would need 1 GB. The
beginning of its contents says as much: their tokens stand in the rendered row too, whatever the template writes around them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunesmith.data.dialogue import messages_of
from tunesmith.records import Record, Tagged, Text

LONG_CHARACTERS = 1_000_000
"""Shorter records are rendered, so that their exact length is told."""

_CHARACTERS_A_TOKEN = 8
"""More than words have, so that one look is enough; where it is not, twice as much is looked at."""

Encode = Callable[[str], Sequence[int]]


def num_characters(record: Record) -> int:
    """Characters of all contents of a record."""
    return sum(map(len, _contents(record)))


def tokens_beyond(record: Record, encode: Encode, context: int) -> int | None:
    """A number of tokens above the context that the record has at least; None where it is short, or may fit.

    Args:
        record: of any shape.
        encode: text to token ids.
        context: most tokens of a row.
    """
    if num_characters(record) <= LONG_CHARACTERS:
        return None
    found = 0
    for text in sorted(_contents(record), key=len, reverse=True):
        reach, here = 0, 0
        while reach < len(text):
            reach = max(2 * reach, _CHARACTERS_A_TOKEN * context)
            here = len(encode(text[:reach]))
            if found + here > context:
                return found + here
        found += here
    return None


def _contents(record: Record) -> list[str]:
    return [record.text] if isinstance(record, Text | Tagged) else [message.content for message in messages_of(record)]
