"""Formats are told apart by columns, in made-up rows and in real files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.bad_row import BadRow
from tunesmith.data.formats import FORMATS, check_columns, detect, note
from tunesmith.data.layout import Layout
from tunesmith.data.sources import read_rows
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSection
from tunesmith.records import Chat, Labelled, Origin, RawRow, Record, Rejected, Text


def raw(values: dict[str, Any], line: int = 1) -> RawRow:
    return RawRow(Origin("f.jsonl", line), values)


def openai(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def shared_gpt(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": sender, "value": value} for sender, value in turns], **more}


# --- detection --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"text": "a"}, "text"),
        ({"text": "a", "url": "u", "timestamp": 3}, "text"),
        ({"text": "a", "label": 1}, "labelled"),
        ({"prompt": "a", "completion": "b", "id": 1}, "prompt-completion"),
        ({"instruction": "a", "output": "b"}, "alpaca"),
        (openai(("user", "a")), "messages"),
        ({"conversations": openai(("user", "a"))["messages"]}, "messages"),
        (shared_gpt(("human", "a")), "sharegpt"),
        ({"messages": shared_gpt(("human", "a"))["conversations"]}, "sharegpt"),
    ],
)
def test_detection_by_columns(values: dict[str, Any], expected: str) -> None:
    assert detect([raw(values)] * 3, "f") == expected
    assert detect([raw(values), raw(values), raw({})], "f") == expected


def test_a_detected_conversation_under_the_other_name_is_read() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for values in ({"conversations": turns}, {"messages": turns}):
        record = FORMATS["messages"](raw(values), SourceSection(path="f"))
        assert isinstance(record, Chat)
        assert [message.content for message in record.messages] == ["a", "b"]


@pytest.mark.parametrize(
    ("columns", "values", "expected"),
    [
        ({"prompt": "text", "completion": "category"}, {"text": "a", "category": "b"}, "prompt-completion"),
        ({"label": "category"}, {"text": "a", "category": "b"}, "labelled"),
        ({"text": "body"}, {"body": "a", "author": "b"}, "text"),
        ({"text": "body"}, {"body": "a", "label": "b"}, "labelled"),
        ({"input": "context"}, {"instruction": "a", "context": "b", "output": "c"}, "alpaca"),
        ({"messages": "dialogue"}, {"dialogue": []}, "messages"),
        ({"tools": "functions"}, openai(("user", "a"), functions=[]), "messages"),
        ({"tools": "functions"}, shared_gpt(("human", "a"), functions=[]), "sharegpt"),
        (
            {"prompt": "prompt", "completion": "chosen"},
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "prompt-completion",
        ),
        ({"prompt": "question", "completion": "anwser"}, {"question": "a", "answer": "b"}, "prompt-completion"),
    ],
)
def test_detection_by_named_fields(columns: dict[str, str], values: dict[str, Any], expected: str) -> None:
    assert detect([raw(values)], "f", columns) == expected


@pytest.mark.parametrize(
    "values",
    [
        {"text": "a", "category": "b"},
        {"question": "a", "answer": "b"},
        {"a": 1},
        {},
        {"instruction": "a"},
        {"messages": None, "x": 1},
    ],
)
def test_unclear_columns_are_not_guessed(values: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        detect([raw(values)], "f.csv")
    assert caught.value.where == "f.csv"
    assert all(column in caught.value.what for column in values)
    assert "columns: {prompt:" in caught.value.hint


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"messages": "Hello there."}, "`messages` holds text, and a conversation is a list of turns"),
        ({"messages": {"role": "user"}}, "`messages` holds an object, and"),
        ({"messages": ["Hello", "Good morning"]}, "the first turn in `messages` is text"),
        (
            {"conversation": [{"speaker": "a", "text": "b"}], "id": 1},
            "has neither `role` nor `from`; it has: speaker, text",
        ),
        ({"messages": None, "conversations": 3}, "`conversations` holds a number, and"),
    ],
)
def test_turns_that_are_none_are_told_as_such(values: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        detect([raw(values)], "f.jsonl")
    assert words in caught.value.what
    assert caught.value.where == "f.jsonl"
    assert '{"role": "user", "content":' in caught.value.hint
    assert (
        detect([raw(values | {"x": "a", "y": "b"})], "f.jsonl", {"prompt": "x", "completion": "y"})
        == "prompt-completion"
    )


def test_many_or_long_columns_make_no_long_message() -> None:
    wide = {f"a rather long name of column {number}": 1 for number in range(60)}
    for values in (wide, {"x" * 5000: "a", "y" * 5000: "b"}):
        with pytest.raises(DataError) as caught:
            detect([raw(values)], "f.jsonl")
        assert len(str(caught.value)) < 1500
    assert len(note("messages", raw(openai(("user", "a"), **wide)))) < 800


NESTED = {f"{number}": {"question": "a", "contexts": ["b"]} for number in range(40)}
SENTENCE = "a long and winding sentence of a review, which no one would take for the name of a column"


@pytest.mark.parametrize(
    ("file", "values", "hint"),
    [
        ("f.csv", {SENTENCE: "b", "x": "1"}, "set `header: false` in the source, then the columns are column_1"),
        ("f.tsv.gz", {"nice film": "b", " 1": "0"}, "set `header: false`"),
        ("f.json", NESTED, "every column holds an object (the first with question, contexts)"),
        ("f.json", {"data": {"rows": []}}, "values inside one are no columns: write JSON lines"),
        ("f.json", {f"id{number}": "yes" for number in range(1000)}, "one row of 1,000 columns: write an array"),
        ("f.csv", {"section": "1", "text": "b"}, "format: text, which leaves the other columns out"),
        ("f.json", {"1": "a"}, "for example format: prompt-completion"),
    ],
)
def test_odd_columns_are_told_what_to_do(file: str, values: dict[str, Any], hint: str) -> None:
    with pytest.raises(DataError, match="format cannot be told") as caught:
        detect([raw(values)], file)
    assert hint in caught.value.hint
    assert len(caught.value.what) < 800, "a thousand columns are not listed"


def test_odd_columns_are_told_what_to_do_where_the_format_is_named() -> None:
    source = SourceSection(path="f", format="labelled", columns={"text": "text", "label": "column_2"})
    first = RawRow(Origin("f.csv", 2), {SENTENCE: "b", "1": "0"})
    with pytest.raises(DataError) as caught:
        check_columns(first, "labelled", source)
    assert "header: false" in caught.value.hint
    source = SourceSection(path="f", format="text", columns={"text": "Geography.Area.text"})
    with pytest.raises(DataError) as caught:
        check_columns(raw({"Geography": {"Area": {"text": "62"}}, "id": 3}), "text", source)
    assert "`Geography` holds an object, and values inside one are no columns" in caught.value.hint


def test_an_object_where_text_is_expected_shows_its_keys() -> None:
    with pytest.raises(BadRow, match=r"`text` is an object \(Area, Climate\), text is expected"):
        FORMATS["text"](raw({"text": {"Area": 1, "Climate": 2}}), SourceSection(path="f"))


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"conversations": [], "chosen": {}, "rejected": {}},
        openai(("user", "a"), ("assistant", "b"), label=True),
        {"prompt": "a", "completion": "b", "label": False},
    ],
)
def test_preferences_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="preferences") as caught:
        detect([raw(values)], "f")
    assert "not available yet" in caught.value.hint


def test_no_rows_and_mixed_rows_have_no_format() -> None:
    with pytest.raises(DataError, match="no rows"):
        detect([], "f")
    with pytest.raises(DataError, match="cannot be told"):
        detect([raw({"text": "a"}), raw({"prompt": "a", "completion": "b"})], "f")


# --- real files -------------------------------------------------------------------------------------------------

EMPTY_ANSWERS = {"empty_answer": 4}
REAL = [
    ("llama_factory/alpaca_en_demo.json", "alpaca", 999, {}),
    ("llama_factory/alpaca_zh_demo.json", "alpaca", 1000, {}),
    ("llama_factory/identity.json", "alpaca", 91, {}),
    ("llama_factory/c4_demo.jsonl", "text", 300, {}),
    ("llama_factory/glaive_toolcall_en_demo.json", "sharegpt", 300, {}),
    ("llama_factory/reason_tool_use_demo_50.jsonl", "messages", 50, {}),
    ("llama_factory/v1_sft_demo.jsonl", "messages", 500, {}),
    ("alpaca/alpaca_data-0-3252.json", "alpaca", 3252, EMPTY_ANSWERS),
    ("alpaca/alpaca_data-3252-6382.json", "alpaca", 3130, {}),
    ("alpagasus/claude_t45.json", "alpaca", 5305, EMPTY_ANSWERS),
    ("alpagasus/dolly_3k.json", "alpaca", 2996, {}),
    ("fastchat/dummy_conversation.json", "sharegpt", 500, {}),
    ("self_instruct/seed_tasks.jsonl", "alpaca", 175, {}),
]


def accounts(path: Path, name: str, source: SourceSection) -> tuple[list[Record], Counter[str]]:
    records: list[Record] = []
    reasons: Counter[str] = Counter()
    for item in read_rows(path, path.name):
        assert not isinstance(item, Rejected)
        try:
            records.append(FORMATS[name](item, source))
        except BadRow as found:
            reasons[found.reason] += 1
    return records, reasons


@pytest.mark.parametrize(("path", "expected", "num_rows", "rejected"), REAL)
def test_real_files_are_detected_and_every_row_counted(
    shared: Path, path: str, expected: str, num_rows: int, rejected: dict[str, int]
) -> None:
    file = shared / "data" / path
    first = [item for item, _ in zip(read_rows(file, path), range(16), strict=False) if isinstance(item, RawRow)]
    source = SourceSection(path=path)
    name = detect(first, path)
    assert name == expected
    check_columns(first[0], name, source)
    records, reasons = accounts(file, name, source)
    assert dict(reasons) == rejected
    assert len(records) + sum(reasons.values()) == num_rows


def test_a_long_real_text_is_whole(shared: Path) -> None:
    path = shared / "data/tinyshakespeare/input.txt"
    records, reasons = accounts(path, "text", SourceSection(path="input.txt"))
    assert not reasons
    assert len(records) > 1
    assert "".join(record.text for record in records if isinstance(record, Text)) == path.read_text()


@pytest.mark.parametrize("path", ["llama_factory/dpo_en_demo.json", "llama_factory/kto_en_demo.json"])
def test_real_preferences_are_refused(shared: Path, path: str) -> None:
    with pytest.raises(DataError, match="preferences"):
        detect([next(iter(read_rows(shared / "data" / path, path)))], path)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("path", "columns", "num_rows", "num_labels"),
    [
        ("ag_news/test.csv", {"text": "{column_2}\n{column_3}", "label": "column_1"}, 7600, 4),
        ("sst2/train.tsv", {"text": "column_1", "label": "column_2"}, 6920, 2),
    ],
)
def test_real_tables_without_header(
    shared: Path, path: str, columns: dict[str, str], num_rows: int, num_labels: int
) -> None:
    """Counted with `wc -l`: no field of these files holds a line end."""
    source = SourceSection(path=path, header=False, columns=columns)
    items = list(read_rows(shared / "data" / path, path, Layout.of(source)))
    records = [FORMATS["labelled"](item, source) for item in items if isinstance(item, RawRow)]
    assert len(records) == len(items) == num_rows
    assert len({record.label for record in records if isinstance(record, Labelled)}) == num_labels


def test_banking77_is_read_once_its_columns_are_named(shared: Path) -> None:
    path = shared / "data/banking77/train.csv"
    first = next(iter(read_rows(path, "train.csv")))
    assert isinstance(first, RawRow)
    with pytest.raises(DataError) as caught:
        detect([first], "train.csv")
    assert "text, category" in caught.value.what
    assert "columns: {prompt: text, completion: category}" in caught.value.hint
    columns = {"prompt": "text", "completion": "category"}
    assert detect([first], "train.csv", columns) == "prompt-completion"
    records, reasons = accounts(path, "prompt-completion", SourceSection(path="train.csv", columns=columns))
    assert (len(records), dict(reasons)) == (10_003, {})
    labels = {record.messages[-1].content for record in records if isinstance(record, Chat)}
    assert labels == set(json.loads((path.parent / "categories.json").read_text()))


def test_tools_and_reasoning_of_real_files_are_kept(shared: Path) -> None:
    folder = shared / "data/llama_factory"
    glaive, _ = accounts(folder / "glaive_toolcall_en_demo.json", "sharegpt", SourceSection(path="x"))
    calls = [message for record in glaive for message in record.messages if (message.extra or {}).get("tool_calls")]  # type: ignore[union-attr]
    assert len(calls) == 211
    assert all(
        isinstance(call["function"]["arguments"], dict) for message in calls for call in message.extra["tool_calls"]
    )  # type: ignore[index]
    reasoned, _ = accounts(folder / "reason_tool_use_demo_50.jsonl", "messages", SourceSection(path="x"))
    turns = [message for record in reasoned for message in record.messages if message.role == "assistant"]  # type: ignore[union-attr]
    assert len(turns) == 112
    assert all((message.extra or {}).get("reasoning_content") for message in turns)
    assert sum(len((message.extra or {}).get("tool_calls", [])) for message in turns) == 41 + 2 * 9 + 3 * 3
    demo, _ = accounts(folder / "v1_sft_demo.jsonl", "messages", SourceSection(path="x"))
    assert all([message.train for message in record.messages] == [False, True] for record in demo)  # type: ignore[union-attr]
