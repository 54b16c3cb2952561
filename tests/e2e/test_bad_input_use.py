"""Wrong use of models and runs: scoring, exporting, asking, reporting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.desk import Call, Write, torn
from tests.tiny import desk_model
from tunesmith.workshop import export

RUN = Path("runs/desk")


@pytest.fixture
def other(desk: Path) -> Path:
    """A model whose tokenizer merges less, so that it sees other prompts."""
    folder = desk / "other"
    desk_model(folder, desk / "tiny", seed=5)
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["model"]["merges"] = values["model"]["merges"][:50]
    path.write_text(json.dumps(values), encoding="utf-8")
    return folder


def test_models_with_two_tokenizers_are_not_compared(desk: Path, call: Call, write: Write, other: Path) -> None:
    recipe = write()
    for pair in (("tiny", "other"), ("other", "tiny")):
        said = call("eval", pair[0], recipe, "--against", pair[1], "--json")
        said.refuses(2, "do not see the same prompts", "tokenizers differ", "tokenizer.json", "without --against")
        assert set(said.json) == {"error"}


def test_a_model_is_scored_through_its_own_tokenizer_and_that_is_said(
    desk: Path, call: Call, write: Write, other: Path
) -> None:
    """Through the suite's tokenizer its ids would mean other words, and the score nothing."""
    through_suite = call("eval", "other", write(), "--json").json
    named = call("eval", "other", write(model="other"), "--json").json
    assert through_suite["tasks"] == named["tasks"]
    assert any("another tokenizer" in note for note in through_suite["notes"])
    assert not any("another tokenizer" in note for note in named["notes"])


def test_a_suite_that_would_score_nothing(desk: Path, call: Call, write: Write) -> None:
    recipe = write(evaluation={"preserve": [], "tasks": [{"type": "loss", "data": "test"}]})
    call("eval", "tiny", recipe).refuses(2, "nothing to score", "no test rows", "at recipe.yaml:", "[evaluation]")


def test_training_without_held_out_rows_ends_well_and_claims_nothing(desk: Path, call: Call, write: Write) -> None:
    said = call("train", write(data__validation=0, evaluation={"preserve": []}))
    assert said.code == 0, said.err
    assert "whether the run helped is not measured" in said.err
    assert "Nothing was compared" in said.out
    assert (RUN / "report.html").exists()
    assert not (RUN / "scorecards" / "comparison.json").exists()
    assert call("runs", "show", RUN).code == 0


@pytest.fixture
def trained(desk: Path, call: Call, write: Write) -> str:
    """A finished run; the name of its recipe."""
    recipe = write()
    assert call("train", recipe).code == 0
    return recipe


def test_export_to_a_folder_that_is_taken(desk: Path, call: Call, trained: str) -> None:
    (desk / "out").mkdir()
    (desk / "out" / "mine.txt").write_text("mine")
    said = call("export", RUN, "out", "--json").refuses(2, "not empty", "at out", "does not exist yet")
    assert set(said.json) == {"error"}
    assert [path.name for path in (desk / "out").iterdir()] == ["mine.txt"]
    call("export", RUN, "rows.jsonl").refuses(2, "at rows.jsonl")
    assert (desk / "rows.jsonl").is_file()


@pytest.mark.parametrize("options", [(), ("--merge",)])
def test_an_export_that_a_gate_refuses_leaves_nothing(
    desk: Path, call: Call, trained: str, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    measure: Callable[..., Any] = export.logits_of
    calls: list[int] = []

    def disturbed(*arguments: Any) -> Any:
        calls.append(1)
        return measure(*arguments) + (0.5 * len(calls) if len(calls) > 1 else 0.0)

    monkeypatch.setattr(export, "logits_of", disturbed)
    said = call("export", RUN, "out", *options, "--json").refuses(3, "Gate A refused", "at gate A")
    assert said.json["error"]["exit_code"] == 3
    assert not (desk / "out").exists()
    assert torn(desk) == []


def test_an_export_onto_a_full_disk_leaves_nothing(
    desk: Path, call: Call, trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_model", fail)
    call("export", RUN, "out", "--merge").refuses(2, "no space left on device", "space left")
    assert not (desk / "out").exists()
    assert torn(desk) == []


def test_an_export_names_its_number_format(desk: Path, call: Call, trained: str) -> None:
    for out, options, words, dtype in (
        ("a", (), "the adapter written in float32 has", "float32"),
        ("b", ("--merge",), "the model written in float32 has", "float32"),  # the tiny base's own
        ("c", ("--merge", "--dtype", "bfloat16"), "the model written in bfloat16 has", "bfloat16"),
    ):
        said = call("export", RUN, out, *options, "--json").json
        assert words in said["gates"][1]["sentence"]
        assert said["dtype"] == dtype


def test_export_and_report_of_what_is_no_run(desk: Path, call: Call) -> None:
    for arguments in (("export", "tiny", "out"), ("report", "tiny")):
        said = call(*arguments, "--json").refuses(2, "holds no run", "at tiny", "tunesmith runs list")
        assert set(said.json) == {"error"}
    call("report", "nothing").refuses(2, "no such run folder", "at nothing")
    assert not (desk / "tiny" / "report.html").exists()
    assert not (desk / "out").exists()


def test_a_prompt_longer_than_the_context(desk: Path, call: Call, trained: str) -> None:
    for model in ("tiny", RUN):
        said = call("generate", model, "--prompt", "word " * 300, "--json")
        said.refuses(2, "tokens, the model takes 128", "something shorter")
        assert set(said.json) == {"error"}


def test_a_run_is_no_base_model(desk: Path, call: Call, write: Write, trained: str) -> None:
    call("train", write(model="runs/desk"), "--run", "next").refuses(2, "base model is wanted", "export", "--merge")
    assert not (desk / "next").exists()
