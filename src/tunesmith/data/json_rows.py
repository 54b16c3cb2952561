"""Rows of jsonl and json files, in bounded memory. Torch-free."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from tunesmith.data.bad_row import BadRow, shortened
from tunesmith.data.streams import (
    MAX_ITEM_BYTES,
    MOST_COLUMNS,
    Line,
    decode,
    encoding_detail,
    lines,
    open_stream,
    refuse_utf16,
    visible,
)
from tunesmith.errors import DataError
from tunesmith.json_values import DECODER, LENIENT, MOST_DEPTH, RepeatedKey, TooDeep, json_kind, loads, refuse_deep
from tunesmith.records import Origin, RawRow, Rejected

RECORD_LISTS = frozenset(
    {
        "messages",
        "conversations",
        "conversation",
        "instances",
        "tools",
        "history",
        "prompt",
        "completion",
        "tokens",
        "tags",
        "ner_tags",
        "spans",
    }
)
"""Columns whose value is a list within one row, never the list of all rows."""

_CHUNK_BYTES = 1 << 16
_NEAR_END = 16
_SPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(r"\\u[dD][89abABcdefCDEF]")


def jsonl_rows(path: Path, shown: str) -> Iterator[RawRow | Rejected]:
    """One JSON object a line; blank lines are skipped, a broken line is a Rejected and reading goes on."""
    with open_stream(path) as stream:
        for line in lines(stream, shown):
            if line.data.strip():
                yield _line_row(line, shown)


def json_rows(path: Path, shown: str) -> Iterator[RawRow | Rejected]:
    """Objects of a ``.json`` file, read as a stream.

    The file is an array of objects; or an object with one list, such as ``{"data": [...]}``, whose items are the rows
    and whose other values are not read; or a single object without such a list, which is one row (``RECORD_LISTS``
    belong to a row); or JSON lines.

    Raises:
        DataError: a syntax error or a byte that is not UTF-8, with the line: where an array breaks, the borders of
            the rows after it are unknown, so they cannot be counted.
    """
    if _is_json_lines(path, shown):
        yield from jsonl_rows(path, shown)
        return
    with open_stream(path) as stream:
        scanner = _Scanner(stream, shown)
        first = scanner.peek()
        if first == "[":
            yield from _array(scanner)
        elif first == "{":
            yield from _wrapper(scanner)
        elif first:
            scanner.fail(f"a file of rows starts with [ or {{, not {first!r}")
        if scanner.peek():
            scanner.fail("there is more text after the end of the JSON value")


def _line_row(line: Line, shown: str) -> RawRow | Rejected:
    origin = Origin(shown, line.number)
    try:
        return _as_row(_parse(decode(line.data, line.offset).rstrip("\r\n")), origin)
    except BadRow as fault:
        return Rejected(origin, fault.reason, fault.detail, visible(line.data))


def _parse(text: str) -> Any:
    """Value of a JSON text. Raises BadRow ``broken_json``, or ``wrong_encoding`` for half a surrogate pair."""
    try:
        value = loads(text)
    except json.JSONDecodeError as error:
        raise BadRow("broken_json", f"{error.msg} (column {error.colno})") from None
    except ValueError as error:
        raise BadRow("broken_json", str(error)) from None
    if _SURROGATE.search(text):
        _refuse_half_pairs(value)
    return value


def _refuse_half_pairs(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(
            "wrong_encoding", "an escape \\ud8xx … \\udfxx is half a surrogate pair and stands for no character"
        ) from None


def _as_row(value: Any, origin: Origin) -> RawRow | Rejected:
    if isinstance(value, Mapping):
        return RawRow(origin, value)
    return Rejected(origin, "wrong_type", f"a row is an object, this is {json_kind(value)}", value)


def _is_json_lines(path: Path, shown: str) -> bool:
    """Whether the first line that is not blank is a whole object and another such line follows."""
    with open_stream(path) as stream:
        head = stream.read(_CHUNK_BYTES)
    if not head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
        return False
    found = False
    with open_stream(path) as stream:
        try:
            for line in lines(stream, shown):
                if not line.data.strip():
                    continue
                if found:
                    return True
                # A key that stands twice makes a bad row, and a line all the same.
                found = isinstance(LENIENT.decode(decode(line.data, line.offset)), Mapping)
        except (BadRow, DataError, ValueError, RecursionError):
            return False
    return False


class _Scanner:
    """A reader of JSON values one after another that knows the line; holds one value and one chunk at most."""

    def __init__(self, stream: io.BufferedIOBase, shown: str) -> None:
        self.line = 1
        self.num_read = 0
        self.row: int | None = None
        self._shown = shown
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._num_bytes = 0
        self._ended = False

    @property
    def origin(self) -> Origin:
        """Where the scanner stands: the line, and the number of the element in an array."""
        return Origin(self._shown, self.line, self.row)

    def peek(self) -> str:
        """The next character that is not white space, "" at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._advance(match.end() if match else self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def take(self, allowed: str) -> str:
        """The next character, which must be one of ``allowed``."""
        character = self.peek()
        if not character:
            self.fail("the file ends too early; it is cut off")
        if character not in allowed:
            self.fail(f"Expecting {' or '.join(allowed)}, found {character!r}")
        self._at += 1
        return character

    def value(self) -> Any:
        """The next value. Raises BadRow for half a surrogate pair or a key twice, after which reading can go on."""
        self.peek()
        decoder, repeated = DECODER, ""
        while True:
            near_end = len(self._text) - _NEAR_END
            try:
                value, end = decoder.raw_decode(self._text, self._at)
            except RepeatedKey as error:
                decoder, repeated = LENIENT, str(error)
                continue
            except json.JSONDecodeError as error:
                is_open = error.msg.startswith("Unterminated string")
                if (is_open or error.pos >= near_end) and not self._ended:
                    self._more()
                    continue
                is_cut = is_open or error.pos >= len(self._text.rstrip())
                self.line += self._text.count("\n", self._at, error.pos)
                self.fail("the file ends too early; it is cut off" if is_cut else error.msg)
            except (ValueError, RecursionError) as error:
                self.fail(str(TooDeep()) if isinstance(error, RecursionError) else str(error))
            if end >= near_end and not self._ended:
                self._more()
                continue
            has_escapes = _SURROGATE.search(self._text, self._at, end)
            is_deep = self._text.count("[", self._at, end) + self._text.count("{", self._at, end) > MOST_DEPTH
            self._advance(end)
            if is_deep:
                self._refuse_deep(value)
            if repeated:
                raise BadRow("broken_json", repeated)
            if has_escapes:
                _refuse_half_pairs(value)
            return value

    def _refuse_deep(self, value: Any) -> None:
        try:
            refuse_deep(value)
        except TooDeep as error:
            raise BadRow("broken_json", str(error)) from None

    def fail(self, message: str) -> NoReturn:
        """Raise DataError at the current line."""
        raise DataError(
            f"broken JSON: {shortened(message)}",
            where=str(self.origin),
            hint="mend the file; in JSON lines (.jsonl) a broken row is only one rejected row",
        )

    def _advance(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self.num_read += end - self._at
        self._at = end

    def _more(self) -> None:
        """Read on; at least as much again as is held, so that a long value is not decoded too often."""
        held = len(self._text) - self._at
        if held > MAX_ITEM_BYTES:
            self.fail(f"a value is longer than {MAX_ITEM_BYTES >> 20} MiB")
        data = self._stream.read(max(_CHUNK_BYTES, held))
        if not self._num_bytes:
            refuse_utf16(data, self._shown)
        self._num_bytes += len(data)
        self._ended = not data
        try:
            text = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            offset = self._num_bytes - len(error.object) + error.start
            self.line += self._text.count("\n", self._at) + error.object.count(b"\n", 0, error.start)
            raise DataError(
                encoding_detail(error.object[error.start], offset),
                where=f"{self._shown}:{self.line}",
                hint="save the file as UTF-8",
            ) from None
        self._text = self._text[self._at :] + text
        self._at = 0


def _array(scanner: _Scanner) -> Iterator[RawRow | Rejected]:
    scanner.take("[")
    if scanner.peek() == "]":
        scanner.take("]")
        return
    for number in count(1):
        scanner.row = number
        scanner.peek()
        origin = scanner.origin
        try:
            row = _as_row(scanner.value(), origin)
        except BadRow as fault:
            row = Rejected(origin, fault.reason, fault.detail)
        yield row
        if scanner.take(",]") == "]":
            scanner.row = None
            return


def _wrapper(scanner: _Scanner) -> Iterator[RawRow | Rejected]:
    """The items of the one list of an object, or the object itself."""
    scanner.peek()
    origin, start = scanner.origin, scanner.num_read
    scanner.take("{")
    values: dict[str, Any] = {}
    list_name: str | None = None
    fault: BadRow | None = None
    while scanner.peek() == '"':
        try:
            name = scanner.value()
            scanner.take(":")
            if scanner.peek() == "[" and name not in RECORD_LISTS:
                if list_name is not None:
                    scanner.fail(
                        f"the object has two lists, `{list_name}` and `{name}`: which holds the rows is unclear"
                    )
                list_name = name
                yield from _array(scanner)
            elif list_name is None:
                if name in values:
                    fault = BadRow("broken_json", str(RepeatedKey(name)))
                values[name] = scanner.value()
                if len(values) > MOST_COLUMNS:
                    scanner.fail(f"an object of more than {MOST_COLUMNS:,} keys is no row; write an array of objects")
                if scanner.num_read - start > MAX_ITEM_BYTES:
                    scanner.fail(f"a row is longer than {MAX_ITEM_BYTES >> 20} MiB")
            else:
                scanner.value()
        except BadRow as error:
            fault = error
        if scanner.take(",}") == "}":
            break
    else:
        scanner.take("}" if not values and list_name is None else '"')
    if list_name is None and fault is not None:
        yield Rejected(origin, fault.reason, fault.detail)
    elif list_name is None:
        yield _as_row(values, origin)
