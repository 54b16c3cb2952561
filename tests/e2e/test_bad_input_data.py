"""Wrong data: file, line and column are named, every row is accounted for, and no half-prepared data stays."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.desk import ROWS, SOURCE, Call, Write, remains, source, torn, write_rows
from tunesmith.data import builder, store

VERBS = [("train",), ("plan",), ("data", "check")]
CHECK = ("data", "check")
EMPTY_ANSWER = {"text": "and now?", "label": ""}
LONG = {"text": "what " * 300, "label": "repair"}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("path", "content", "needles"),
    [
        ("row.jsonl", None, ("no such file", "at row.jsonl", "did you mean `rows.jsonl`?")),
        ("empty.jsonl", b"", ("the file is empty", "at empty.jsonl")),
        ("empty.csv", b"", ("the file is empty", "at empty.csv")),
        ("head.csv", b"text,label\n", ("holds no rows", "at head.csv")),
        ("wide.jsonl", '{"text": "a", "label": "b"}\n'.encode("utf-16"), ("UTF-16", "at wide.jsonl", "UTF-8")),
        ("rows.doc", b"x", ("rows.doc", ".jsonl")),
        ("none-*.jsonl", None, ("none-*.jsonl",)),
        ("rows.jsonl.gz", b"not packed", ("at rows.jsonl.gz", "packed")),
    ],
)
def test_a_wrong_file(
    desk: Path, call: Call, write: Write, verb: tuple[str, ...], path: str, content: bytes | None, needles: tuple[str]
) -> None:
    if content is not None:
        (desk / path).write_bytes(content)
    call(*verb, write(data__train=source(path))).refuses(2, *needles)
    assert remains(desk) == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_missing_column_lists_the_columns(desk: Path, call: Call, write: Write, verb: tuple[str, ...]) -> None:
    named = [{**source("rows.jsonl")[0], "columns": {"prompt": "txt", "completion": "label"}}]
    call(*verb, write(data__train=named)).refuses(
        2, "no column `txt`", "the columns are: text, label", "at rows.jsonl:1", "did you mean `text`?"
    )
    call(*verb, write(data__train=[{"path": "rows.jsonl", "format": "alpaca"}])).refuses(
        2, "`instruction`", "the columns are: text, label", "at rows.jsonl:1"
    )
    assert remains(desk) == []


SHAREGPT = {"conversations": [{"from": "human", "value": "a question"}, {"from": "gpt", "value": "an answer"}]}
WRONG_ORDER = {"conversations": SHAREGPT["conversations"][::-1]}


def _lines(rows: list[dict[str, Any]], spoilt: bytes, at: int) -> bytes:
    """JSON lines with line ``at`` (from 1) replaced."""
    lines = [json.dumps(row).encode() for row in rows]
    lines[at - 1] = spoilt
    return b"\n".join(lines) + b"\n"


FAULTS: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "broken_json": (_lines(ROWS, b'{"text": "a", ', 5), SOURCE, "x.jsonl:5"),
    "wrong_encoding": (_lines(ROWS, '{"text": "caf\xe9", "label": "x"}'.encode("latin-1"), 7), SOURCE, "x.jsonl:7"),
    "empty_answer": (_lines(ROWS, json.dumps(EMPTY_ANSWER).encode(), 9), SOURCE, "x.jsonl:9"),
    "missing_column": (_lines(ROWS, b'{"text": "a"}', 3), SOURCE, "x.jsonl:3"),
    "role_order": (_lines([SHAREGPT] * 24, json.dumps(WRONG_ORDER).encode(), 2), {"format": "sharegpt"}, "x.jsonl:2"),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_faulty_row_is_named_and_above_one_per_cent_refused(
    desk: Path, call: Call, write: Write, reason: str
) -> None:
    content, how, place = FAULTS[reason]
    (desk / "x.jsonl").write_bytes(content)
    changes = {"data__train": [{"path": "x.jsonl", **how}], "data__validation": 0}
    said = call("train", write(**changes)).refuses(2, f"{reason}, 1 row: {place}", f"at {place}", "data.max_rejected")
    assert remains(desk) == []
    kept = next((desk / "cache" / "rejected").glob("*.jsonl"))
    assert str(kept) in said.err
    assert [json.loads(line)["line"] for line in kept.read_text().splitlines()] == [int(place.split(":")[1])]

    ledger = call(*CHECK, write(**changes, data__max_rejected=0.05), "--json").json
    assert ledger["rejected"] == {reason: 1}
    assert ledger["rows_in"] == ledger["trained"] + ledger["held_out"] + 1 == 24


@pytest.mark.parametrize("verb", VERBS)
def test_all_rows_rejected(desk: Path, call: Call, write: Write, verb: tuple[str, ...]) -> None:
    write_rows(desk / "x.jsonl", [EMPTY_ANSWER] * 5)
    said = call(*verb, write(data__train=source("x.jsonl"), data__max_rejected=1.0), "--json")
    said.refuses(2, "empty_answer", "at x.jsonl:1", "is empty")
    assert said.json["error"]["exit_code"] == 2
    assert remains(desk) == []


OVERLONG = {
    "error": ("x.jsonl:25 (316 tokens)", "the context of 128 tokens", "at x.jsonl:25", "`drop`", "model.context"),
    "split": ("`split` cuts plain documents only", "at x.jsonl:25", "drop, truncate or error"),
}


@pytest.mark.parametrize("policy", [None, "error", "split", "drop", "truncate"])
def test_an_example_longer_than_the_context(desk: Path, call: Call, write: Write, policy: str | None) -> None:
    write_rows(desk / "x.jsonl", [*ROWS, LONG])
    recipe = write(data__train=source("x.jsonl"), data__overlong=policy)
    said = call(*CHECK, recipe, "--json")
    if policy in ("drop", "truncate"):  # the answer lies beyond the cut: nothing of the row could be trained
        assert said.json["rejected"] == {"overlong": 1}
        assert any("longer than the context" in note for note in said.json["notes"])
        return
    said.refuses(2, *OVERLONG[policy or "error"])
    assert remains(desk) == []


def test_a_long_document_is_split_by_default(desk: Path, call: Call, write: Write) -> None:
    (desk / "x.txt").write_text("word " * 300, encoding="utf-8")
    recipe = write(data__train=[{"path": "x.txt"}], data__validation=0, objective={"type": "clm"})
    ledger = call(*CHECK, recipe, "--json").json
    assert (ledger["trained"], ledger["windows"]) == (1, 3)
    assert any("without loss of text" in note for note in ledger["notes"])


TEMPLATES = {
    "raises": ("{{ raise_exception('no roles here') }}", "no roles here"),
    "does not compile": ("{% for m in messages %}{{ m.content }", "does not compile"),
    "asks for what is not there": ("{{ messages[0].x.y }}", "has no attribute"),
    "loops": ("{% for i in range(100000000) %}x{% endfor %}", "range"),
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("verb", VERBS)
def test_a_template_that_fails(desk: Path, call: Call, write: Write, verb: tuple[str, ...], name: str) -> None:
    text, needle = TEMPLATES[name]
    (desk / "own.jinja").write_text(text, encoding="utf-8")
    call(*verb, write(model={"name": "tiny", "chat_template": "own.jinja"})).refuses(2, needle, "own.jinja")
    assert remains(desk) == []


def test_a_template_that_fails_on_some_rows_rejects_them(desk: Path, call: Call, write: Write) -> None:
    text = (desk / "tiny" / "chat_template.jinja").read_text(encoding="utf-8")
    check = (
        "{% for m in messages %}{% if 'number 3:' in m.content %}{{ raise_exception('three') }}{% endif %}{% endfor %}"
    )
    (desk / "own.jinja").write_text(check + text, encoding="utf-8")
    model = {"name": "tiny", "chat_template": "own.jinja"}
    call("train", write(model=model)).refuses(2, "template_failed, 1 row: rows.jsonl:4", "three")
    assert remains(desk) == []
    assert call(*CHECK, write(model=model, data__max_rejected=0.1), "--json").json["rejected"] == {"template_failed": 1}


def test_a_template_that_is_not_there(desk: Path, call: Call, write: Write) -> None:
    call("train", write(model={"name": "tiny", "chat_template": "no.jinja"})).refuses(
        2, "no such chat template", "no.jinja", "model.chat_template"
    )


@pytest.mark.parametrize("verb", VERBS)
def test_one_file_for_two_splits(desk: Path, call: Call, write: Write, verb: tuple[str, ...]) -> None:
    call(*verb, write(data__validation=source("rows.jsonl"))).refuses(
        2, "rows.jsonl is read twice", "data.validation.0", "data.train.0", "at recipe.yaml:"
    )
    shutil.copyfile("rows.jsonl", "held.jsonl")
    held = {"data__validation": source("held.jsonl"), "data__test": source("held.jsonl")}
    call(*verb, write(**held)).refuses(2, "held.jsonl is read twice", "data.test.0", "data.validation.0")
    (desk / "linked.jsonl").symlink_to("held.jsonl")
    held["data__test"] = source("linked.jsonl")
    call(*verb, write(**held)).refuses(2, "is read twice")
    assert remains(desk) == []


def test_a_copy_of_the_training_rows_as_test(desk: Path, call: Call, write: Write) -> None:
    shutil.copyfile("rows.jsonl", "held.jsonl")
    held = {"data__validation": 0, "data__test": source("held.jsonl")}
    call(*CHECK, write(**held)).refuses(2, "no row is left to train on", "duplicate_of_test 24", "at rows.jsonl")
    call(*CHECK, write(**held, data__duplicates="error")).refuses(
        2, "rows.jsonl:1 (train) has the same input as held.jsonl:1 (test)", "data.duplicates"
    )
    assert remains(desk) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_under_the_cache(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    recipe = write()
    places: list[tuple[object, str]] = [(store, "write_json"), (store.StoreWriter, "add"), (builder, "write_meta")]
    for place, name in places:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fail)
            for verb in (("train",), CHECK):
                call(*verb, recipe).refuses(2, "token cache", os.strerror(number), "at ", "cache", "TUNESMITH_CACHE")
        assert remains(desk) == []
    assert call(*CHECK, recipe).code == 0
    assert torn(desk) == []


def test_a_cache_that_is_a_file(desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(desk / "rows.jsonl"))
    call("train", write()).refuses(2, "token cache", "TUNESMITH_CACHE")
    assert not (desk / "runs").exists()


def test_labels_that_no_row_has_leave_no_run(desk: Path, call: Call, write: Write) -> None:
    task = {"type": "label_ranking", "data": "validation", "labels": ["Delivery", "Billing"]}
    said = call("train", write(evaluation={"tasks": [task], "preserve": []}))
    said.refuses(
        2, "no validation row has an answer", "at recipe.yaml:", "[evaluation.tasks.0.labels]", "leave `labels` out"
    )
    assert not (desk / "runs").exists()
