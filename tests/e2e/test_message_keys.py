"""Keys of messages and parts from the file to the account: flags that are obeyed, calls that are trained, words about the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.e2e.desk import Call, Write, write_rows

CALL = {"name": "find", "arguments": '{"id": 7}'}
THOUGHT = [{"type": "text", "text": "think ", "train": False}, {"type": "text", "text": "42"}]


def _row(number: int, **answer: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"case {number}"}, {"role": "assistant", **answer}]}


def _check(call: Call, write: Write, rows: list[dict[str, Any]]) -> Any:
    write_rows(Path("rows.jsonl"), rows)
    source = [{"path": "rows.jsonl"}]
    said = call("data", "check", write(data={"train": source, "validation": 0, "test": 0, "max_rejected": 1}), "--json")
    assert said.code == 0, said.err
    return said.json


def _trained(call: Call, row: int) -> str:
    said = call("data", "show", "recipe.yaml", "--row", row, "--json")
    assert said.code == 0, said.err
    return "".join(token["text"] for token in said.json["tokens"] if token["trained"])


def test_flags_of_parts_and_calls_of_the_older_format(desk: Path, call: Call, write: Write) -> None:
    ledger = _check(
        call, write, [_row(1, content=THOUGHT), _row(2, content=None, function_call=CALL), _row(3, content="ok")]
    )
    assert ledger["trained"] == 3
    assert _trained(call, 0).strip() == "42<|im_end|>"
    assert '{"name": "find", "arguments": {"id": 7}}' in _trained(call, 1)


def test_what_is_not_read_is_rejected_or_told(desk: Path, call: Call, write: Write) -> None:
    rows = [
        _row(1, content="a", trian=False),
        _row(2, content="a", audio={"id": "x"}),
        _row(3, content=[{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]),
        _row(4, content=None, audio={"id": "x"}),
        _row(5, content="a"),
    ]
    ledger = _check(call, write, rows)
    assert ledger["rejected"] == {"empty_answer": 1}
    for words in (
        "`trian` of a turn of role assistant is not used (did you mean `train`?)",
        "`audio`",
        "`content.cache_control`",
    ):
        assert sum("in 1 row: " in note and words in note for note in ledger["notes"]) == 1, json.dumps(ledger["notes"])
