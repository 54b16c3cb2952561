"""Rows of plain text: a file, a paragraph or a line each, in bounded memory. Torch-free."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path

from tunesmith.data.bad_row import BadRow
from tunesmith.data.streams import MAX_ITEM_BYTES, Line, decode, lines, open_stream, refuse_utf16, visible
from tunesmith.errors import DataError
from tunesmith.recipe.data import TextRow
from tunesmith.records import Origin, RawRow, Rejected

WHOLE_TEXT_BYTES = 1 << 20
"""A text file up to this size is one document."""

PIECE_BYTES = 1 << 16
"""About the size of the pieces of a longer one."""


def file_rows(path: Path, shown: str) -> Iterator[RawRow | Rejected]:
    """The file is one document, blank lines and all.

    A file above ``WHOLE_TEXT_BYTES`` (1 MiB) is cut into pieces of about ``PIECE_BYTES`` (64 KiB) at the next blank
    line, or after four times as much at a line end, or within a line. The pieces joined are the file: nothing is lost
    or changed. The line of a piece is where it starts. A piece with bytes that are not UTF-8 is a Rejected.
    """
    with open_stream(path) as stream:
        head = stream.read(WHOLE_TEXT_BYTES + 1)
        is_whole = len(head) <= WHOLE_TEXT_BYTES
    refuse_utf16(head, shown)
    if is_whole:
        offset = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
        if head:
            yield _text_row(head[offset:], offset, Origin(shown, 1))
        return
    line, offset = 1, 0
    for piece in _pieces(path):
        mark = len(codecs.BOM_UTF8) if not offset and piece.startswith(codecs.BOM_UTF8) else 0
        yield _text_row(piece[mark:], offset + mark, Origin(shown, line))
        offset += len(piece)
        line += piece.count(b"\n")


def _pieces(path: Path) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    with open_stream(path) as stream:
        while data := stream.readline(PIECE_BYTES):
            data += stream.read(_missing_bytes(data))
            held.append(data)
            size += len(data)
            if (size >= PIECE_BYTES and not data.strip()) or size >= 4 * PIECE_BYTES:
                yield b"".join(held)
                held, size = [], 0
    if held:
        yield b"".join(held)


def _missing_bytes(data: bytes) -> int:
    """How many bytes the last character of UTF-8 bytes lacks, 0 where it is whole or is none."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            width = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return max(0, width - back)
        if byte < 0x80:
            return 0
    return 0


def _text_row(data: bytes, offset: int, origin: Origin) -> RawRow | Rejected:
    try:
        return RawRow(origin, {"text": decode(data, offset)})
    except BadRow as fault:
        return Rejected(origin, fault.reason, fault.detail, visible(data))


def paragraph_rows(path: Path, shown: str) -> Iterator[RawRow | Rejected]:
    """Each stretch of lines between blank ones is a document, line ends within it kept and the last one left out.

    Blank lines hold white space at most. They only part rows and are counted nowhere. The line of a row is its first.

    Raises:
        DataError: the file is UTF-16, or a line or paragraph is longer than ``MAX_ITEM_BYTES``.
    """
    first: Line | None = None
    held = bytearray()
    with open_stream(path) as stream:
        for line in lines(stream, shown):
            if not _is_blank(line.data):
                first = first or line
                held += line.data
                if len(held) > MAX_ITEM_BYTES:
                    raise DataError(
                        f"a paragraph is longer than {MAX_ITEM_BYTES >> 20} MiB",
                        where=f"{shown}:{first.number}",
                        hint="part it by blank lines, or set `row: line` in the source",
                    )
            elif first is not None:
                yield _stripped_row(first, bytes(held), shown)
                first = None
                held.clear()
    if first is not None:
        yield _stripped_row(first, bytes(held), shown)


def line_rows(path: Path, shown: str) -> Iterator[RawRow | Rejected]:
    """Each line that is not blank is a document, without its line end. Blank lines are counted nowhere.

    Raises:
        DataError: the file is UTF-16, or a line is longer than ``MAX_ITEM_BYTES``.
    """
    with open_stream(path) as stream:
        for line in lines(stream, shown):
            if not _is_blank(line.data):
                yield _stripped_row(line, line.data, shown)


def _is_blank(data: bytes) -> bool:
    return not data.decode("utf-8", "replace").strip()


def _stripped_row(first: Line, data: bytes, shown: str) -> RawRow | Rejected:
    return _text_row(data.rstrip(b"\r\n"), first.offset, Origin(shown, first.number))


TEXT_READERS: dict[TextRow, Callable[[Path, str], Iterator[RawRow | Rejected]]] = {
    "file": file_rows,
    "paragraph": paragraph_rows,
    "line": line_rows,
}
"""What one row of a ``.txt`` file is, to the reader that makes such rows."""
