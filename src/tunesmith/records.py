"""The shapes of data, before any token exists. Torch-free.

file line ──reader──> RawRow ──format──> Row(record: Text | Chat | Labelled | Tagged)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from.

    Attributes:
        file: as the user wrote it.
        line: from 1, or the row of a table; 0 where it is not known.
        row: number of the element, from 1, of a JSON array, which may be all on one line; else None.
    """

    file: str
    line: int
    row: int | None = None

    def __str__(self) -> str:
        """Return ``file:line``, with `` (row n)`` behind it for an element of an array."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return place if self.row is None else f"{place} (row {self.row})"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stood in the file: a mapping of columns, or a line of plain text under ``text``."""

    origin: Origin
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Characters ``start`` to ``end`` of a content, the last not included, with a train flag of their own."""

    start: int
    end: int
    train: bool


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    ``train`` overrides the objective's choice of trained turns for this turn; ``None`` leaves it.
    ``extra`` holds what templates may read beyond the content (``tool_calls``, ``name``, ``reasoning_content`` …).
    ``stretches`` of the content, in order and apart, override both.
    """

    role: Role
    content: str
    train: bool | None = None
    extra: Mapping[str, Any] | None = None
    stretches: tuple[Stretch, ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """A document for continued pre-training."""

    text: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation; the last turn is the assistant's. ``tools`` are JSON schemas of functions."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and the label a classifier should give it."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class Tagged:
    """A text whose words have tags.

    ``words`` are the characters of each word, first and one past the last, in order and apart; ``tags`` are as many.
    """

    text: str
    words: tuple[tuple[int, int], ...]
    tags: tuple[str, ...]


Record = Text | Chat | Labelled | Tagged


@dataclass(frozen=True, slots=True)
class Row:
    """A record with its identity.

    ``id`` is stable: a hash of file, line and content. ``source`` is the index of the recipe's source it came from.
    ``group`` is the value of ``group_by`` where a split asks for it. ``weight`` is what its tokens count in the training loss.
    """

    id: str
    origin: Origin
    source: int
    record: Record
    group: str | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used, with the reason as a short stable name and a sentence."""

    origin: Origin
    reason: str
    detail: str
    values: Any = None
