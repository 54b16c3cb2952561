"""Rows of CoNLL files: one word a line with its tag in the last column, blank lines between sentences. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunesmith.data.bad_row import BadRow
from tunesmith.data.streams import MAX_ITEM_BYTES, Line, decode, lines, open_stream, visible
from tunesmith.errors import DataError
from tunesmith.records import Origin, RawRow, Rejected

_DOCUMENT = b"-DOCSTART-"


def conll_rows(path: Path, shown: str) -> Iterator[RawRow | Rejected]:
    """A sentence a row: ``tokens`` is the first column, ``tags`` the last, ``column_2`` and so on those between.

    Columns are parted by tabs where a line has one, else by white space. Lines of ``-DOCSTART-`` mark documents: like blank
    lines they only part sentences and are counted nowhere. The line of a row is its first. A sentence whose lines have not
    as many columns is a Rejected.

    Raises:
        DataError: the file is UTF-16, or a line or sentence is longer than ``MAX_ITEM_BYTES``.
    """
    held: list[Line] = []
    size = 0
    with open_stream(path) as stream:
        for line in lines(stream, shown):
            if line.data.strip() and not line.data.startswith(_DOCUMENT):
                held.append(line)
                size += len(line.data)
                if size > MAX_ITEM_BYTES:
                    raise DataError(
                        f"a sentence is longer than {MAX_ITEM_BYTES >> 20} MiB",
                        where=f"{shown}:{held[0].number}",
                        hint="part sentences by blank lines, one word a line",
                    )
            elif held:
                yield _sentence(held, shown)
                held, size = [], 0
    if held:
        yield _sentence(held, shown)


def _sentence(held: list[Line], shown: str) -> RawRow | Rejected:
    origin = Origin(shown, held[0].number)
    try:
        rows = [_columns(line) for line in held]
        widths = {len(row) for row in rows}
        if widths == {1}:
            raise BadRow("missing_column", f"line {held[0].number} has a word and no tag")
        if len(widths) > 1:
            strange = next(line for line, row in zip(held, rows, strict=True) if len(row) != len(rows[0]))
            raise BadRow(
                "wrong_tags",
                f"line {strange.number} has {len(_columns(strange))} columns, the sentence began with {len(rows[0])}",
            )
    except BadRow as fault:
        return Rejected(origin, fault.reason, fault.detail, visible(b"".join(line.data for line in held)))
    columns = list(zip(*rows, strict=True))
    between = {f"column_{number}": list(column) for number, column in enumerate(columns[1:-1], 2)}
    return RawRow(origin, {"tokens": list(columns[0]), **between, "tags": list(columns[-1])})


def _columns(line: Line) -> list[str]:
    text = decode(line.data, line.offset).rstrip("\r\n")
    return text.split("\t") if "\t" in text else [part for part in text.split(" ") if part]
