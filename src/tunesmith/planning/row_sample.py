"""A few rows of a file and how many it has, cheaply: by seeking where a file can be sought, else from its beginning. Torch-free."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from math import isqrt
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tunesmith.data.layout import TABLES, Layout
from tunesmith.data.sources import is_conll, is_text, read_rows
from tunesmith.data.streams import MAX_ITEM_BYTES, PACKED
from tunesmith.data.text_rows import PIECE_BYTES, WHOLE_TEXT_BYTES
from tunesmith.json_values import loads
from tunesmith.recipe.data import TextRow
from tunesmith.records import Origin, RawRow, Rejected

WHOLE_BYTES = 1 << 18
"""Files up to this size are read whole."""
COUNTED_BYTES = 32 << 20
"""Rows of plain files up to this size are counted, not estimated."""
_READ_BYTES = 8 << 20
_SKIPPED_BYTES = 64 << 20
_PROBE_BYTES = 4 << 20
_TEXT_PIECES = 32
_BLOCK_BYTES = 1 << 17
_MOST_WHOLE_ROWS = 1 << 17
_USUAL = Layout()

Sampled = RawRow | Rejected


@dataclass(frozen=True)
class FileSample:
    """Rows of one file.

    Attributes:
        rows: a sample, without replacement where the file is counted.
        num_rows: rows of the file.
        counted: ``num_rows`` is exact.
        row_spread: relative standard error of ``num_rows`` where it is an estimate.
        note: how the rows were taken, where not evenly.
    """

    rows: list[Sampled]
    num_rows: float
    counted: bool
    row_spread: float = 0.0
    note: str | None = None


def sample_file(
    path: Path, shown: str, wanted: int, generator: np.random.Generator, layout: Layout = _USUAL
) -> FileSample:
    """Take about ``wanted`` rows of a file.

    Args:
        path: the file.
        shown: its name in origins and messages.
        wanted: how many.
        generator: chooses them.
        layout: how the source has its files cut into rows.

    Raises:
        DataError: the file cannot be read.
    """
    suffixes = path.name.lower()
    size = path.stat().st_size
    if suffixes.endswith(PACKED) and size > WHOLE_BYTES:
        return _from_start(path, shown, wanted, _packed_bytes(path), layout)
    if suffixes.endswith(".parquet"):
        return _parquet(path, shown, wanted)
    if size <= WHOLE_BYTES or (is_text(path) and layout.row == "file" and size <= WHOLE_TEXT_BYTES):
        whole = list(islice(read_rows(path, shown, layout), _MOST_WHOLE_ROWS + 1))
        if len(whole) > _MOST_WHOLE_ROWS:  # a small packed file may hold any number
            return _from_start(path, shown, wanted, _packed_bytes(path), layout)
        return sample_of(whole, wanted, generator)
    if is_conll(path, layout):
        if size <= _READ_BYTES:
            return sample_of(list(read_rows(path, shown, layout)), wanted, generator)
        return _from_start(path, shown, wanted, size, layout)
    if suffixes.endswith(".json"):
        if size <= COUNTED_BYTES and (rows := _whole_json(path, shown)) is not None:
            return sample_of(rows, wanted, generator)
        return _from_start(path, shown, wanted, size, layout)
    if is_text(path):
        pieces = min(wanted, _TEXT_PIECES)
        return (
            _text_pieces(path, shown, pieces, generator)
            if layout.row == "file"
            else _text_blocks(path, shown, wanted, generator, layout)
        )
    if size <= COUNTED_BYTES:
        return _counted(path, shown, wanted, generator, layout)
    return _sought(path, shown, wanted, generator, layout)


def _text_pieces(path: Path, shown: str, wanted: int, generator: np.random.Generator) -> FileSample:
    """Pieces of a long text as the reader of rows cuts it, but at random places."""
    size = path.stat().st_size
    rows: list[Sampled] = []
    with path.open("rb") as stream:
        for offset in generator.integers(0, size - PIECE_BYTES, size=wanted):
            stream.seek(int(offset))
            rows.append(RawRow(Origin(shown, 0), {"text": stream.read(PIECE_BYTES).decode("utf-8", "ignore")}))
    return FileSample(rows, size / PIECE_BYTES, counted=False)


def _text_blocks(path: Path, shown: str, wanted: int, generator: np.random.Generator, layout: Layout) -> FileSample:
    """Paragraphs or lines that begin in the file, all of them counted, or else in random blocks of it."""
    size = path.stat().st_size
    if size <= COUNTED_BYTES:
        content = path.read_bytes()
        starts = text_starts(content, layout.row)
        ends = np.append(starts[1:], size)
        chosen = np.arange(len(starts))
        if len(starts) > wanted:
            chosen = np.sort(generator.choice(len(starts), size=wanted, replace=False))
        rows = [_text_row(content[starts[index] : ends[index]], shown) for index in chosen]
        return FileSample(rows, len(starts), counted=True)
    spans: list[tuple[int, int]] = []
    with path.open("rb") as stream:
        # Blocks reach over both ends of the file, so that every byte of it is as likely.
        for offset in generator.integers(1 - _BLOCK_BYTES, size, size=_READ_BYTES // _BLOCK_BYTES):
            begin = max(0, int(offset))
            stream.seek(begin)
            starts = begin + text_starts(stream.read(int(offset) + _BLOCK_BYTES - begin), layout.row)
            # The first row of a block may have begun before it, and the last may go on behind it.
            spans += pairwise(starts[int(begin > 0) :].tolist())
        if not spans:
            return _from_start(path, shown, wanted, size, layout)
        rows = []
        for index in np.sort(generator.choice(len(spans), size=min(wanted, len(spans)), replace=False)):
            start, end = spans[index]
            stream.seek(start)
            rows.append(_text_row(stream.read(end - start), shown))
    sizes = np.diff(np.asarray(spans)).ravel()
    mean = float(sizes.mean())
    spread = float(sizes.std()) / mean / isqrt(len(sizes))
    return FileSample(rows, size / mean, counted=False, row_spread=spread)


def text_starts(content: bytes, row: TextRow) -> np.ndarray:
    """Offsets of the lines that hold more than white space; for paragraphs, of those that no such line stands before."""
    if not content:
        return np.zeros(0, dtype=np.int64)
    letters = np.frombuffer(content, dtype=np.uint8)
    starts = np.concatenate(([0], np.flatnonzero(letters == ord("\n")) + 1))
    starts = starts[starts < len(content)]
    is_full = np.maximum.reduceat(letters, starts) > ord(" ")
    if row == "paragraph":
        is_full &= ~np.concatenate(([False], is_full[:-1]))
    return starts[is_full]


def _text_row(data: bytes, shown: str) -> Sampled:
    return RawRow(Origin(shown, 0), {"text": data.decode("utf-8", "ignore").strip("\r\n")})


def sample_of(rows: list[Sampled], wanted: int, generator: np.random.Generator) -> FileSample:
    """About ``wanted`` of rows that are all there are."""
    if len(rows) <= wanted:
        return FileSample(rows, len(rows), counted=True)
    chosen = np.sort(generator.choice(len(rows), size=wanted, replace=False))
    return FileSample([rows[index] for index in chosen], len(rows), counted=True)


def _whole_json(path: Path, shown: str) -> list[Sampled] | None:
    """Objects of an array; None for other layouts, which the reader of rows knows better."""
    try:
        values = loads(path.read_bytes().decode("utf-8-sig"))
    except ValueError:
        return None
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        return None
    return [RawRow(Origin(shown, 0, number), value) for number, value in enumerate(values, 1)]


def _from_start(path: Path, shown: str, wanted: int, num_bytes: float, layout: Layout) -> FileSample:
    """The first rows; their number follows from the bytes that they would take in the file."""
    rows = list(islice(read_rows(path, shown, layout), wanted + 1))
    if len(rows) <= wanted:
        return FileSample(rows, len(rows), counted=True)
    is_tagged = is_conll(path, layout)
    sizes = [_size_of(item.values, is_text(path), is_tagged) for item in rows]
    mean = max(1.0, sum(sizes) / len(sizes))
    spread = float(np.std(sizes)) / mean / isqrt(len(sizes))
    note = f"{shown} cannot be sought: the estimate rests on its first {len(rows):,} rows"
    return FileSample(rows, num_bytes / mean, counted=False, row_spread=max(spread, 0.05), note=note)


def _size_of(values: Any, as_text: bool, is_tagged: bool) -> int:
    """Bytes that a row takes in its file, about."""
    if is_tagged and isinstance(values, Mapping):
        columns = [column for column in values.values() if isinstance(column, list)]
        return 1 + sum(len(str(cell).encode("utf-8")) + 1 for column in columns for cell in column)
    if as_text and isinstance(values, Mapping):
        return len(str(values["text"]).encode("utf-8")) + 1
    return len(json.dumps(values, default=str).encode("utf-8"))


def _packed_bytes(path: Path) -> float:
    """Size after unpacking, from the ratio of the first 4 MiB."""
    with path.open("rb") as packed:
        done = 0
        try:
            for piece in _unpacked(path, packed):
                done += len(piece)
                if done >= _PROBE_BYTES:
                    break
        except (OSError, EOFError, zlib.error):  # torn: the reader of rows says where
            return float(done)
        return path.stat().st_size * done / max(1, packed.tell())


def _unpacked(path: Path, packed: BinaryIO) -> Iterator[bytes]:
    if path.name.lower().endswith(".gz"):
        with gzip.GzipFile(fileobj=packed, mode="rb") as stream:
            while piece := stream.read(1 << 16):
                yield piece
        return
    import pyarrow

    with pyarrow.CompressedInputStream(packed, "zstd") as table:
        while piece := table.read(1 << 16):
            yield piece


def _parquet(path: Path, shown: str, wanted: int) -> FileSample:
    rows = list(islice(read_rows(path, shown), wanted + 1))
    if len(rows) <= wanted:
        return FileSample(rows, len(rows), counted=True)
    import pyarrow.parquet

    total = int(pyarrow.parquet.read_metadata(path).num_rows)
    note = f"{shown} is parquet: the estimate rests on its first {len(rows):,} of {total:,} rows"
    return FileSample(rows, total, counted=True, note=note)


def _counted(path: Path, shown: str, wanted: int, generator: np.random.Generator, layout: Layout) -> FileSample:
    """Rows of jsonl, csv and tsv of a size that can be read whole: all are counted, some are parsed."""
    parse = _LineParser(path, shown, layout)
    content = path.read_bytes()
    starts = row_starts(content)[int(parse.has_header) :]
    ends = np.append(starts[1:], len(content))
    chosen = np.arange(len(starts))
    if len(starts) > wanted:
        chosen = np.sort(generator.choice(len(starts), size=wanted, replace=False))
    rows = [row for index in chosen if (row := parse(content[starts[index] : ends[index]])) is not None]
    return FileSample(rows, len(starts), counted=True)


def row_starts(content: bytes) -> np.ndarray:
    """Offsets at which rows begin: behind line ends that no double quotes enclose, blank lines left out.

    In JSON lines every line closes its quotes, and in csv a field that holds line ends is quoted.
    """
    letters = np.frombuffer(content, dtype=np.uint8)
    is_end = letters == ord("\n")
    if b'"' in content and content.lstrip()[:1] not in (b"{", b"["):
        is_end &= (np.add.accumulate(letters == ord('"'), dtype=np.uint8) & 1) == 0
    starts = np.concatenate(([0], np.flatnonzero(is_end) + 1))
    starts = starts[starts < len(content)]
    return starts[~np.isin(letters[starts], (ord("\n"), ord("\r")))]


def _sought(path: Path, shown: str, wanted: int, generator: np.random.Generator, layout: Layout) -> FileSample:
    """Rows of jsonl, csv and tsv that begin in random blocks: each row is as likely as any other, whatever its length.

    Their number is the file's size over the mean length of a row. Rows of csv with line ends inside are left out.
    """
    parse = _LineParser(path, shown, layout)
    size = path.stat().st_size
    rows: list[Sampled] = []
    sizes: list[int] = []
    broken = skipped = 0
    budget = _READ_BYTES
    with path.open("rb") as stream:
        head = stream.read(1 << 16)
        block = max(1, len(head) // max(1, head.count(b"\n")))
        first = head.find(b"\n") + 1 if parse.has_header else 0
        for offset in generator.integers(max(1, first), size, size=wanted):
            stream.seek(int(offset) - 1)
            skipped += len(stream.readline(MAX_ITEM_BYTES + 1))
            if skipped > _SKIPPED_BYTES:
                break
            while budget > 0 and stream.tell() < offset + block and (line := stream.readline(MAX_ITEM_BYTES + 1)):
                budget -= len(line)
                row = parse(line)
                if row is None:
                    broken += 1
                    continue
                rows.append(row)
                sizes.append(len(line))
    if not rows:
        return _from_start(path, shown, wanted, size, layout)
    mean = sum(sizes) / len(sizes)
    spread = float(np.std(sizes)) / mean / isqrt(len(sizes)) if len(sizes) > 1 else 1.0
    note = (
        f"{shown}: {broken:,} of {broken + len(rows):,} sampled lines were no whole rows"
        if 100 * broken > len(rows)
        else None
    )
    return FileSample(rows, (size - first) / mean, counted=False, row_spread=spread, note=note)


class _LineParser:
    """Text of one row of jsonl, csv or tsv to a row; None where it is no whole row."""

    def __init__(self, path: Path, shown: str, layout: Layout) -> None:
        suffix = path.suffix.lower()
        self.origin = Origin(shown, 0)
        self.is_table = suffix in TABLES
        self.has_header = self.is_table and layout.header
        self.delimiter = "\t" if suffix == ".tsv" else ","
        self.columns: list[str] = []
        if self.is_table:
            # The reader of rows checks the header and says what is wrong with it.
            whole = (item for item in read_rows(path, shown, layout) if isinstance(item, RawRow))
            self.columns = [name for first in islice(whole, 1) for name in first.values]

    def __call__(self, line: bytes) -> Sampled | None:
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            return Rejected(self.origin, "wrong_encoding", f"byte {error.start} of the line is not UTF-8")
        if not text.strip():
            return None
        return self._fields(text) if self.is_table else self._object(text)

    def _object(self, text: str) -> Sampled:
        try:
            value: Any = loads(text)
        except ValueError as error:
            return Rejected(self.origin, "broken_json", str(error))
        if not isinstance(value, dict):
            return Rejected(self.origin, "wrong_type", "a row is an object")
        return RawRow(self.origin, value)

    def _fields(self, text: str) -> Sampled | None:
        try:
            fields = next(csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter, strict=True))
        except (csv.Error, StopIteration):
            return None
        if len(fields) != len(self.columns):
            return None
        return RawRow(self.origin, dict(zip(self.columns, fields, strict=True)))
