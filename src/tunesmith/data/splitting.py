"""Which split a row belongs to: a function of its own input alone, so that it never changes when data grows. Torch-free."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Literal

from tunesmith.errors import DataError
from tunesmith.records import Chat, Message, Record, Row

SplitName = Literal["train", "validation", "test"]

_HASH_BITS = 64


def normalise(text: str) -> str:
    """Text without differences of compatibility form, case and spacing: NFKC, case-folded, spaces collapsed.

    Unicode's compatibility caseless matching (definition D146), then every run of white space is one space.
    """
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFD", text).casefold()
    folded = unicodedata.normalize("NFKC", folded).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def input_key(record: Record) -> str:
    """Normalised input of a record: what two rows share when they ask the same.

    A document is its own input; a labelled or tagged text is its text; a conversation is all before its last answer. A lone user
    turn gives the text alone, so that a question has one key in every format; of several turns each stands with its role.
    """
    if isinstance(record, Chat):
        turns = _before_last_answer(record.messages)
        if len(turns) == 1 and turns[0].role == "user":
            return normalise(turns[0].content)
        return "\n".join(f"{turn.role}: {normalise(turn.content)}" for turn in turns)
    return normalise(record.text)


def split_key(row: Row) -> str:
    """What a row is split by: its group where it has one, else its input."""
    return row.group if row.group is not None else input_key(row.record)


def split_of(key: str, validation: float, test: float) -> SplitName:
    """The split of a key.

    The first 8 bytes of the key's sha256 (UTF-8), big-endian, over 2^64 are a number u in [0, 1): below ``test`` the
    row is test, below ``test + validation`` it is validation, else train. Growing data moves no row; another share of
    validation moves no row into or out of test.

    Args:
        key: from ``split_key``.
        validation: share, 0 to 1.
        test: share, 0 to 1.

    Raises:
        DataError: the shares leave nothing to train on.
    """
    if validation < 0 or test < 0 or validation + test >= 1:
        raise DataError(
            f"validation {validation:g} and test {test:g} leave no rows to train on",
            where="data",
            hint="the two fractions together stay below 1",
        )
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    place = int.from_bytes(digest[: _HASH_BITS // 8], "big") / 2**_HASH_BITS
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def _before_last_answer(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "assistant":
            return messages[:index]
    return messages
