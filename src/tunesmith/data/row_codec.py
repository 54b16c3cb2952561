"""Rows as JSON lines and back: held-out rows keep their full record, so that evaluation needs no source file. Torch-free."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.records import Chat, Labelled, Message, Origin, Record, Rejected, Row, Stretch, Tagged, Text


def to_line(value: Any) -> bytes:
    """One JSON line in UTF-8 for anything a source file may hold.

    What JSON cannot say is written as text (dates of a table, NaN, bytes); lone surrogates are escaped.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except (ValueError, TypeError):
        text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def record_to_json(record: Record) -> dict[str, Any]:
    """Plain values of a record with its ``type``."""
    if isinstance(record, Text):
        return {"type": "text", "text": record.text}
    if isinstance(record, Labelled):
        return {"type": "labelled", "text": record.text, "label": record.label}
    if isinstance(record, Tagged):
        words = [list(word) for word in record.words]
        return {"type": "tagged", "text": record.text, "words": words, "tags": list(record.tags)}
    plain: dict[str, Any] = {"type": "chat", "messages": [_message_to_json(message) for message in record.messages]}
    if record.tools is not None:
        plain["tools"] = list(record.tools)
    return plain


def record_from_json(plain: Mapping[str, Any]) -> Record:
    """Inverse of ``record_to_json``."""
    if plain["type"] == "text":
        return Text(plain["text"])
    if plain["type"] == "labelled":
        return Labelled(plain["text"], plain["label"])
    if plain["type"] == "tagged":
        return Tagged(plain["text"], tuple((start, end) for start, end in plain["words"]), tuple(plain["tags"]))
    messages = tuple(_message_from_json(item) for item in plain["messages"])
    tools = plain.get("tools")
    return Chat(messages, None if tools is None else tuple(tools))


def row_to_json(row: Row) -> dict[str, Any]:
    """Plain values of a row."""
    return {
        "id": row.id,
        "file": row.origin.file,
        "line": row.origin.line,
        "row_number": row.origin.row,
        "source": row.source,
        "group": row.group,
        "record": record_to_json(row.record),
    }


def row_from_json(plain: Mapping[str, Any]) -> Row:
    """Inverse of ``row_to_json``."""
    origin = Origin(plain["file"], plain["line"], plain["row_number"])
    return Row(plain["id"], origin, plain["source"], record_from_json(plain["record"]), plain["group"])


def rejected_to_json(rejected: Rejected) -> dict[str, Any]:
    """A line of rejected.jsonl; ``row`` is what stood there, ``row_number`` its number in a JSON array."""
    return {
        "file": rejected.origin.file,
        "line": rejected.origin.line,
        "row_number": rejected.origin.row,
        "reason": rejected.reason,
        "detail": rejected.detail,
        "row": rejected.values,
    }


def read_rows_json(path: Path) -> Iterator[Row]:
    """Rows of a JSON lines file that ``row_to_json`` wrote, one in memory at a time."""
    with path.open("rb") as stream:
        for line in stream:
            yield row_from_json(json.loads(line))


def row_id(origin: Origin, record: Record) -> str:
    """16 hex digits from file, line, number in an array, and content."""
    place = [origin.file, origin.line] if origin.row is None else [origin.file, origin.line, origin.row]
    content = to_line([*place, record_to_json(record)])
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _message_to_json(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.train is not None:
        plain["train"] = message.train
    if message.extra is not None:
        plain["extra"] = dict(message.extra)
    if message.stretches:
        plain["stretches"] = [[item.start, item.end, item.train] for item in message.stretches]
    return plain


def _message_from_json(plain: Mapping[str, Any]) -> Message:
    stretches = tuple(Stretch(*item) for item in plain.get("stretches", ()))
    return Message(plain["role"], plain["content"], plain.get("train"), plain.get("extra"), stretches)


def _plain(value: Any) -> Any:
    """The nearest JSON value; text where there is none."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)
