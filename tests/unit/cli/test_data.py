"""`data check` and `data show` on real files and the embedded tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.data import print_view
from tunesmith.cli.row_view import RowView, Token

Call = Callable[..., Any]


def test_check_accounts_for_every_row(call: Call, recipe: Path) -> None:
    said = call("data", "check", str(recipe), "--json")
    assert said.code == 0, said.err
    found = said.json
    assert (found["rows_in"], found["trained"], found["held_out"], found["rejected"]) == (3, 3, 0, {})
    assert 0 < found["trained_tokens"] < found["tokens"]
    roles = found["tokens_by_role"]
    assert list(roles) == ["user", "assistant", "template"]
    assert sum(role["tokens"] for role in roles.values()) == found["tokens"]
    assert roles["assistant"] == {"tokens": found["trained_tokens"], "trained": found["trained_tokens"]}


def test_check_for_people(call: Call, recipe: Path) -> None:
    said = call("data", "check", str(recipe))
    assert said.code == 0, said.err
    assert "rows in   3" in said.out
    assert "prompt-completion" in said.out
    found = call("data", "check", str(recipe), "--json").json
    table = [line.split() for line in said.out.splitlines()]
    answers = str(found["trained_tokens"])
    assert ["assistant", answers, answers, "100.0", "%"] in table
    assert ["user", str(found["tokens_by_role"]["user"]["tokens"]), "0", "0.0", "%"] in table
    share = f"{100 * found['share_trained']:.1f}"
    assert ["in", "all", str(found["tokens"]), answers, share, "%"] in table


def test_check_counts_rejects(call: Call, recipe: Path) -> None:
    with Path("rows.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"text": "and now?", "label": ""}\n')
    said = call("data", "check", str(recipe), "data.max_rejected=0.5", "--json")
    assert said.code == 0, said.err
    assert said.json["rejected"] == {"empty_answer": 1}
    assert said.json["rows_in"] == 4


def test_check_refuses_too_many_rejects(call: Call, recipe: Path) -> None:
    Path("rows.jsonl").write_text('{"text": "and now?", "label": ""}\n', encoding="utf-8")
    said = call("data", "check", str(recipe))
    assert said.code == 2
    assert "hint: " in said.err


def test_missing_data_file(call: Call, recipe: Path) -> None:
    Path("rows.jsonl").unlink()
    said = call("data", "check", str(recipe))
    assert said.code == 2
    assert "rows.jsonl" in said.err


def test_show_gives_tokens_with_their_mask(call: Call, recipe: Path) -> None:
    said = call("data", "show", str(recipe), "--row", "1", "--json")
    assert said.code == 0, said.err
    found = said.json
    assert found["origin"] == "rows.jsonl:2"
    assert found["raw"] == {"text": "I was charged twice.\nPlease look.", "label": "billing"}
    assert "".join(token["text"] for token in found["tokens"]) == found["rendered"]
    trained = "".join(token["text"] for token in found["tokens"] if token["trained"])
    assert trained == "billing<|im_end|>"
    assert all(set(token) == {"id", "text", "trained"} for token in found["tokens"])


def test_show_of_an_array_on_one_line_names_the_row(call: Call, recipe: Path) -> None:
    rows = [{"text": f"question {index}", "label": "repair"} for index in range(5)]
    Path("rows.json").write_text(json.dumps(rows), encoding="utf-8")
    said = call("data", "show", str(recipe), "data.train.0.path=rows.json", "--row", "3", "--json")
    assert said.code == 0, said.err
    assert said.json["origin"] == "rows.json:1 (row 4)"
    assert said.json["raw"] == rows[3]


def test_show_marks_what_is_trained(call: Call, recipe: Path) -> None:
    said = call("data", "show", str(recipe), "--row", "0")
    assert said.code == 0, said.err
    assert "rows.jsonl:1" in said.out
    assert "⟦<|im_end|>⟧" in said.out
    assert "trained⟧ and" in said.out
    assert "\x1b[" not in said.out


@pytest.mark.parametrize(("row", "split"), [("3", "train"), ("0", "test")])
def test_show_without_such_a_row(call: Call, recipe: Path, row: str, split: str) -> None:
    said = call("data", "show", str(recipe), "--row", row, "--split", split)
    assert said.code == 2
    assert f"there is no row {row} in {split}" in said.err


def test_show_of_a_held_out_row(call: Call, recipe: Path) -> None:
    said = call("data", "show", str(recipe), "data.test=0.6", "--row", "0", "--split", "test", "--json")
    assert said.code == 0, said.err
    assert said.json["raw"]["label"] in {"delivery", "billing", "repair"}


@pytest.mark.parametrize("columns", ["20", "60", "200"])
def test_view_keeps_to_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    tokens = [Token(1, "word ", False) for _ in range(80)] + [Token(2, "answer\n", True)]
    print_view(RowView("id", "file:1", {"text": "[bold]no markup[/bold]"}, "word " * 80, tokens), "row 0 of train")
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= int(columns)
    assert "⟦answer⏎⟧" in out
    assert json.loads('"[bold]"') in out


def test_long_rows_say_what_they_leave_out(capsys: pytest.CaptureFixture[str]) -> None:
    tokens = [Token(1, "a", False)] * 4001
    print_view(RowView("id", "file:1", {}, "", tokens), "row")
    assert "… and 1 more" in capsys.readouterr().out
