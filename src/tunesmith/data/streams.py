"""Files as bytes and lines, packed or not, with byte offsets. Torch-free."""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from tunesmith.data.bad_row import BadRow
from tunesmith.errors import DataError

PACKED = (".gz", ".zst")
"""Suffixes after the real one: gzip and Zstandard."""

MAX_ITEM_BYTES = 16 << 20
"""Longest line, row or JSON value that is read: what bounds the memory of every reader.

The longest books have 5 MB. JSON takes up to 30 times its size in memory, where it is made of empty lists.
"""

MOST_COLUMNS = 10_000
"""Columns of a table, or keys of one row that is a whole file."""

FREE_BYTES = MAX_ITEM_BYTES
MOST_EXPANSION = 200
"""A packed file may unpack to ``FREE_BYTES``, and beyond that to this many times its size.

Text packs to a tenth, the most even of machine logs to a fiftieth; zeros pack to a thousandth and less.
"""

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Line(NamedTuple):
    """A line of a file: its number from 1, the offset of its first byte (unpacked), and its bytes with the line end."""

    number: int
    offset: int
    data: bytes


def open_stream(path: Path) -> io.BufferedIOBase:
    """Open a file for reading bytes; ``.gz`` and ``.zst`` are unpacked on the way.

    Reading raises DataError where a packed file unpacks to more than ``MOST_EXPANSION`` allows.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(_Unpacked(path, cast(io.RawIOBase, gzip.open(path, "rb"))))
    if suffix == ".zst":
        import pyarrow

        return io.BufferedReader(
            _Unpacked(path, cast(io.RawIOBase, pyarrow.input_stream(str(path), compression="zstd")))
        )
    return path.open("rb")


class Expansion:
    """Counts what a file unpacks to.

    Args:
        path: the packed file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._most = max(FREE_BYTES, MOST_EXPANSION * path.stat().st_size)
        self._num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Count some more bytes. Raises DataError beyond the most."""
        self._num_bytes += num_bytes
        if self._num_bytes > self._most:
            raise DataError(
                f"the file unpacks to more than {self._most >> 20} MiB, {MOST_EXPANSION} times its own size: "
                "it may be made to fill a disk or a memory",
                where=str(self._path),
                hint="where it is yours and meant, unpack it and name the unpacked file",
            )


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a file, counted."""

    def __init__(self, path: Path, inner: io.RawIOBase) -> None:
        self._inner = inner
        self._expansion = Expansion(path)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer and return how many bytes that took."""
        data = self._inner.read(len(buffer)) or b""
        self._expansion.add(len(data))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self._inner.close()
        super().close()


def lines(stream: io.BufferedIOBase, shown: str) -> Iterator[Line]:
    """Lines ended by a line feed, in bounded memory; a byte order mark of UTF-8 is left out.

    Raises:
        DataError: the file is UTF-16, or a line is longer than ``MAX_ITEM_BYTES``.
    """
    number, offset = 0, 0
    while data := stream.readline(MAX_ITEM_BYTES + 1):
        number += 1
        if len(data) > MAX_ITEM_BYTES:
            raise DataError(
                f"a line is longer than {MAX_ITEM_BYTES >> 20} MiB",
                where=f"{shown}:{number}",
                hint="a row of jsonl, csv and tsv is one line, and text may be read as `row: file`; an array of objects is a .json file",
            )
        length = len(data)
        if number == 1:
            refuse_utf16(data, shown)
            if data.startswith(codecs.BOM_UTF8):
                offset, data = len(codecs.BOM_UTF8), data[len(codecs.BOM_UTF8) :]
                length = len(data)
        yield Line(number, offset, data)
        offset += length


def refuse_utf16(head: bytes, shown: str) -> None:
    """Raise DataError where the first bytes are a byte order mark of UTF-16."""
    if head.startswith(_UTF16):
        raise DataError("the file is UTF-16, not UTF-8", where=shown, hint="save it as UTF-8")


def decode(data: bytes, offset: int) -> str:
    """Text of bytes that start at ``offset`` of their file.

    Raises:
        BadRow: ``wrong_encoding`` with the offset of the first byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow("wrong_encoding", encoding_detail(data[error.start], offset + error.start)) from None


def encoding_detail(byte: int, offset: int) -> str:
    """The sentence about a byte that is not UTF-8."""
    return f"byte 0x{byte:02x} at offset {offset} is not UTF-8; save the file as UTF-8"


def visible(data: bytes) -> str:
    """Text of a faulty line for rejected.jsonl: what is not UTF-8 is written as escapes."""
    return data.decode("utf-8", "backslashreplace").rstrip("\r\n")
