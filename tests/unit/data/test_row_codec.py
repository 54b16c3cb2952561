"""Rows as JSON lines come back as they were."""

from __future__ import annotations

import json

import pytest

from tunesmith.data.row_codec import row_from_json, row_id, row_to_json, to_line
from tunesmith.records import Chat, Labelled, Message, Origin, Record, Row, Stretch, Text

FLAGGED = Message("assistant", "think 42", False, {"name": "Bo"}, (Stretch(0, 6, False), Stretch(6, 8, True)))
RECORDS = {
    "text": Text("a\u2028b"),
    "labelled": Labelled("a", "b"),
    "chat": Chat((Message("user", "a"), FLAGGED), ({"type": "function", "function": {"name": "f"}},)),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_row_comes_back_as_it_was(name: str) -> None:
    record: Record = RECORDS[name]
    row = Row("id", Origin("f.json", 3, 2), 1, record, "group")
    assert row_from_json(json.loads(to_line(row_to_json(row)))) == row


def test_flags_of_stretches_make_another_row() -> None:
    plain = Chat((Message("user", "a"), Message("assistant", "think 42")))
    flagged = Chat((Message("user", "a"), Message("assistant", "think 42", stretches=(Stretch(0, 6, False),))))
    origin = Origin("f", 1)
    assert row_id(origin, plain) != row_id(origin, flagged)
