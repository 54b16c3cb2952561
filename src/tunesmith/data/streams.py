"""Files as bytes and lines, packed or not, with byte offsets. Torch-free."""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

from tunesmith.data.bad_row import BadRow
from tunesmith.errors import DataError

PACKED = (".gz", ".zst")
"""Suffixes after the real one: gzip and Zstandard."""

MAX_ITEM_BYTES = 64 << 20
"""Longest line, field or JSON value that is read: what bounds the memory of every reader."""

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Line(NamedTuple):
    """A line of a file: its number from 1, the offset of its first byte (unpacked), and its bytes with the line end."""

    number: int
    offset: int
    data: bytes


def open_stream(path: Path) -> io.BufferedIOBase:
    """Open a file for reading bytes; ``.gz`` and ``.zst`` are unpacked on the way."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(io.BufferedIOBase, gzip.open(path, "rb"))
    if suffix == ".zst":
        import pyarrow

        return io.BufferedReader(cast(io.RawIOBase, pyarrow.input_stream(str(path), compression="zstd")))
    return path.open("rb")


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
