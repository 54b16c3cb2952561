"""Rows of csv, tsv and parquet files, in bounded memory. Torch-free."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.data.bad_row import BadRow, shortened
from tunesmith.data.columns import shown_columns
from tunesmith.data.streams import (
    MAX_ITEM_BYTES,
    MOST_COLUMNS,
    Expansion,
    encoding_detail,
    lines,
    open_stream,
)
from tunesmith.errors import DataError
from tunesmith.json_values import TooDeep, refuse_deep
from tunesmith.records import Origin, RawRow, Rejected

_PARQUET_ROWS = 32
"""Rows of a batch: a page can say that each of them is the longest text over again."""

_ROW_BYTES = 64
"""What a row counts beside its values: a column of nothing says a billion rows in a kilobyte."""


class _Feed:
    """Text lines for ``csv.reader``; remembers the bytes that were not UTF-8, by line, and how long a row is so far."""

    def __init__(self, stream: io.BufferedIOBase, shown: str) -> None:
        self._lines = lines(stream, shown)
        self._shown = shown
        self._faults: list[tuple[int, str]] = []
        self._num_bytes = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self._num_bytes += len(line.data)
            if self._num_bytes > MAX_ITEM_BYTES:
                raise DataError(
                    f"a row is longer than {MAX_ITEM_BYTES >> 20} MiB: a quote may be opened and never closed",
                    where=f"{self._shown}:{line.number}",
                    hint='close it, or write a quote in a quoted field as ""',
                )
            try:
                yield line.data.decode("utf-8")
            except UnicodeDecodeError as error:
                byte, offset = line.data[error.start], line.offset + error.start
                self._faults.append((line.number, encoding_detail(byte, offset)))
                yield line.data.decode("utf-8", "backslashreplace")

    def fault(self, last_line: int) -> str | None:
        """The first fault up to a line since the last call; a new row begins behind that line."""
        self._num_bytes = 0
        found = [detail for number, detail in self._faults if number <= last_line]
        self._faults = [item for item in self._faults if item[0] > last_line]
        return found[0] if found else None


def csv_rows(path: Path, shown: str, *, header: bool = True) -> Iterator[RawRow | Rejected]:
    """Rows of a comma-separated file; the line of a row is where it starts.

    Args:
        path: the file.
        shown: its name in origins and messages.
        header: whether the first line names the columns; else they are called after their numbers, ``column_1`` first, as
            many as the first whole line has.
    """
    return _separated(path, shown, ",", header)


def tsv_rows(path: Path, shown: str, *, header: bool = True) -> Iterator[RawRow | Rejected]:
    """The same with tabs; quotes work as in csv."""
    return _separated(path, shown, "\t", header)


def _separated(path: Path, shown: str, delimiter: str, has_header: bool) -> Iterator[RawRow | Rejected]:
    csv.field_size_limit(MAX_ITEM_BYTES)
    with open_stream(path) as stream:
        feed = _Feed(stream, shown)
        reader = csv.reader(feed, delimiter=delimiter, strict=True)
        names: list[str] | None = None
        while True:
            start = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield _csv_fault(error, Origin(shown, start), reader.line_num, is_header=has_header and names is None)
                feed.fault(reader.line_num)
                continue
            fault = feed.fault(reader.line_num)
            if not fields:
                continue
            if names is None:
                _refuse_many(len(fields), Origin(shown, start))
            if has_header and names is None:
                names = _header(fields, fault, Origin(shown, start), delimiter)
            elif fault is not None:
                yield Rejected(Origin(shown, start), "wrong_encoding", fault, fields)
            else:
                names = names or [_numbered(number) for number, _ in enumerate(fields, 1)]
                yield _csv_row(fields, names, Origin(shown, start))


def _csv_row(fields: list[str], header: list[str], origin: Origin) -> RawRow | Rejected:
    if len(fields) < len(header):
        lacking = shown_columns(dict.fromkeys(header[len(fields) :]))
        detail = shortened(f"{len(fields)} of {len(header)} fields; lacks: {lacking}")
        return Rejected(origin, "missing_column", detail, fields)
    if len(fields) > len(header):
        detail = f"{len(fields)} fields under {len(header)} columns; quote a field that holds the separator"
        return Rejected(origin, "wrong_type", detail, fields)
    return RawRow(origin, dict(zip(header, fields, strict=True)))


def _csv_fault(error: csv.Error, origin: Origin, last_line: int, *, is_header: bool) -> Rejected:
    message = str(error)
    if "unexpected end of data" in message or "field larger" in message:
        raise DataError(
            "a quote is opened and never closed",
            where=str(origin),
            hint='close it, or write a quote in a quoted field as ""',
        ) from None
    if is_header:
        raise DataError(
            f"the header cannot be read: {message}", where=str(origin), hint="the first line names the columns"
        ) from None
    span = f"lines {origin.line} to {last_line}: " if last_line > origin.line else ""
    return Rejected(origin, "wrong_type", f"{span}{message}")


def _header(fields: list[str], fault: str | None, origin: Origin, delimiter: str) -> list[str]:
    """Names of the columns; one without a name is called after its number."""
    if fault is not None:
        raise DataError(fault, where=str(origin), hint="save the file as UTF-8")
    names = [name if name.strip() else _numbered(number) for number, name in enumerate(fields, 1)]
    repeated = {name: None for name, times in sorted(Counter(names).items()) if times > 1}
    if repeated:
        raise DataError(
            f"the header names a column twice: {shown_columns(repeated)}",
            where=str(origin),
            hint="rename one of them, or set `header: false` in the source if this line is a row",
        )
    others = [other for other in ",;\t" if other != delimiter and other in names[0]]
    if len(names) == 1 and others:
        raise DataError(
            f"the header is one field and holds {others[0]!r}: another separator is used",
            where=str(origin),
            hint="use commas in .csv and tabs in .tsv",
        )
    return names


def _refuse_many(num_columns: int, where: object) -> None:
    if num_columns > MOST_COLUMNS:
        raise DataError(
            f"the table has {num_columns:,} columns, at most {MOST_COLUMNS:,} are read",
            where=str(where),
            hint="leave out the columns that are not used",
        )


def _numbered(number: int) -> str:
    return f"column_{number}"


def parquet_rows(path: Path, shown: str) -> Iterator[RawRow | Rejected]:
    """Rows of a parquet file, read in small batches; the line of a row is its number from 1.

    Dates become ISO text, decimals text, NaN a missing value, bytes text where they are UTF-8.

    Raises:
        DataError: the file is torn or not parquet, holds a row longer than ``MAX_ITEM_BYTES``, or unpacks to more than
            ``MOST_EXPANSION`` allows.
    """
    import pyarrow
    import pyarrow.parquet

    number = 0
    expansion = Expansion(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            _check_claims(table.metadata, path, shown)
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
                expansion.add(batch.nbytes + _ROW_BYTES * len(batch))
                for values in _whole_rows(batch, shown, number):
                    number += 1
                    yield _parquet_row(values, Origin(shown, number))
    except (pyarrow.ArrowException, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"the parquet file cannot be read: {shortened(str(error))}",
            where=shown,
            hint="write it again; it may be torn or another format",
        ) from error


def _check_claims(metadata: Any, path: Path, shown: str) -> None:
    """Hold what a file says that its rows unpack to against its size, before anything is unpacked.

    Only numbers of row groups are asked for: pyarrow ends the process on the details of a column that is torn.
    """
    _refuse_many(metadata.num_columns, shown)
    for group in range(metadata.num_row_groups):
        Expansion(path).add(max(0, metadata.row_group(group).total_byte_size))


def _whole_rows(batch: Any, shown: str, number: int) -> Iterator[dict[str, Any] | BadRow]:
    """Rows of a batch as plain values, one by one where they are long; a row without such values is a fault."""
    step = len(batch) if batch.nbytes <= MAX_ITEM_BYTES else 1
    for start in range(0, len(batch), max(1, step)):
        part = batch.slice(start, step)
        if step == 1 and part.nbytes > MAX_ITEM_BYTES:
            raise DataError(
                f"a row is longer than {MAX_ITEM_BYTES >> 20} MiB",
                where=f"{shown}:{number + start + 1}",
                hint="leave out the columns that are not used, or part the row",
            )
        yield from _values(part)


def _values(part: Any) -> Iterator[dict[str, Any] | BadRow]:
    try:
        rows: list[dict[str, Any] | BadRow] = part.to_pylist()
    except (UnicodeDecodeError, OverflowError, ValueError) as error:
        if len(part) > 1:
            for index in range(len(part)):
                yield from _values(part.slice(index, 1))
            return
        is_text = isinstance(error, UnicodeDecodeError)
        rows = [BadRow("wrong_encoding" if is_text else "wrong_type", f"a value cannot be read: {error}")]
    yield from rows


def _parquet_row(values: dict[str, Any] | BadRow, origin: Origin) -> RawRow | Rejected:
    if isinstance(values, BadRow):
        return Rejected(origin, values.reason, values.detail)
    try:
        refuse_deep(values)
        return RawRow(origin, {name: _plain(value) for name, value in values.items()})
    except BadRow as fault:
        return Rejected(origin, fault.reason, fault.detail, {name: str(value) for name, value in values.items()})
    except TooDeep as error:
        return Rejected(origin, "wrong_type", str(error))


def _plain(value: Any) -> Any:
    """A value as JSON knows it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta | decimal.Decimal):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRow("wrong_encoding", f"byte 0x{value[error.start]:02x} of a binary column is not UTF-8") from None
    return value
