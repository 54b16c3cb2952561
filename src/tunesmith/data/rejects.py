"""rejected.jsonl: every row left out with its reason, and the row itself while there is room. Torch-free."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from tunesmith.data.row_codec import rejected_to_json, to_line
from tunesmith.records import Rejected

ROOM_BYTES = 256 << 20
"""Bytes that the rows themselves may take. A row of a table names all its columns: a small file of short rows under a long
header would fill a disk."""


class Stream(Protocol):
    """Where bytes are written to."""

    def write(self, payload: bytes, /) -> Any:
        """Add bytes at the end."""
        ...


class RejectFile:
    """Writes rejected rows to an open file.

    Attributes:
        num_bare: rows written without their values, since there was no more room.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._left = ROOM_BYTES
        self.num_bare = 0

    def write(self, rejected: Rejected) -> None:
        """Add a row."""
        if self._left <= 0:
            self.num_bare += 1
            rejected = replace(rejected, values=None)
        line = to_line(rejected_to_json(rejected))
        self._left -= len(line)
        self._stream.write(line)

    def notes(self) -> list[str]:
        """What must be said about the file."""
        if not self.num_bare:
            return []
        return [
            f"rejected.jsonl names {self.num_bare:,} of its rows by file, line and reason alone: {ROOM_BYTES >> 20} MiB were full"
        ]
