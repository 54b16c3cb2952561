"""`runs list`, `show` and `compare` on folders as training leaves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith.cli import ask, doors
from tunesmith.cli.runs import sparkline
from tunesmith.errors import ModelError
from tunesmith.recipe import codec

Call = Callable[..., Any]


def _score(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 50}


@pytest.fixture
def two_runs(recipe: Path) -> tuple[Path, Path]:
    """Two finished runs that differ in the rate."""
    folders = []
    for name, rate, value in (("first", 1e-3, 0.5), ("second", 2e-3, 0.75)):
        folder = Path("runs") / name
        (folder / "scorecards").mkdir(parents=True)
        values = codec.load(recipe, f"name={name}", f"training.learning_rate={rate}").model_dump(mode="json")
        (folder / "recipe.json").write_text(json.dumps(values), encoding="utf-8")
        status = {"status": "done", "step": 4, "steps": 4, "tokens": 99, "loss": 0.5}
        (folder / "status.json").write_text(json.dumps(status), encoding="utf-8")
        lines = [json.dumps({"step": step, "loss": 4.0 - step}) for step in (1, 2, 3)] + [
            json.dumps({"step": 3, "validation_loss": 2.0})
        ]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        card = {"model": "tuned", "tasks": {"exact_match": {"accuracy": _score(value)}}}
        (folder / "scorecards" / "tuned.json").write_text(json.dumps(card), encoding="utf-8")
        folders.append(folder)
    return folders[0], folders[1]


def test_list(call: Call, two_runs: tuple[Path, Path]) -> None:
    said = call("runs", "list")
    assert said.code == 0, said.err
    assert "first" in said.out
    assert "exact match, accuracy 75.0 %" in said.out
    assert {run["name"] for run in call("runs", "list", "--json").json["runs"]} == {"first", "second"}


def test_a_measure_of_its_tasks_own_name_is_said_once(call: Call, two_runs: tuple[Path, Path]) -> None:
    card = {"model": "tuned", "tasks": {"loss": {"loss": {"value": 5.26, "low": 5.0, "high": 5.5, "n": 9}}}}
    (two_runs[0] / "scorecards" / "tuned.json").write_text(json.dumps(card), encoding="utf-8")
    said = call("runs", "list").out
    assert "loss 5.26" in said
    assert "loss loss" not in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("runs", "show", "first"),
        ("runs", "compare", "second", "first"),
        ("report", "first"),
        ("export", "first", "out"),
    ],
)
def test_runs_go_by_the_names_that_the_list_prints(
    call: Call, two_runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    seen = []

    def export(run: Path, out: Path, **_: object) -> SimpleNamespace:
        seen.append(run)
        return SimpleNamespace(folder=out, gates=[], notes=[], dtype="float32")

    monkeypatch.setattr(doors, "export", export, raising=False)

    def report(run: Path) -> SimpleNamespace:
        seen.append(run)
        return SimpleNamespace(path=run / "report.html")

    monkeypatch.setattr(doors, "report", report, raising=False)
    said = call(*arguments)
    assert said.code == 0, said.err
    assert seen == ([] if arguments[0] == "runs" else [Path("runs/first")])
    assert str(Path("runs/first")) in said.out or arguments[1] == "compare" or arguments[0] == "export"


def test_a_model_may_be_the_name_of_a_run_but_a_path_comes_first(
    call: Call, two_runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def note(name: str) -> None:
        asked.append(name)
        raise ModelError("noted", where=name, hint="none")

    monkeypatch.setattr(ask, "open_model", note)
    names = ("first", "tunesmith-base-8m", "nowhere")
    for name in names:
        call("generate", name, "--prompt", "hello")
    assert asked == ["runs/first", "tunesmith-base-8m", "nowhere"]
    for name in names:
        Path(name).mkdir()
        Path("runs", name).mkdir(exist_ok=True)
        call("generate", name, "--prompt", "hello")
    assert asked[3:] == list(names)
    assert "first" in call("runs", "show", "first").err


def test_list_where_there_are_none(call: Call) -> None:
    assert call("runs", "list").out == "no runs in runs\n"
    assert call("runs", "list", "--root", "nowhere", "--json").json == {"runs": []}


def test_list_says_what_is_unreadable(call: Call, two_runs: tuple[Path, Path]) -> None:
    (two_runs[0] / "status.json").write_text("{", encoding="utf-8")
    said = call("runs", "list")
    assert said.code == 0
    assert "unreadable" in said.out
    assert "status.json" in said.out


def test_show(call: Call, two_runs: tuple[Path, Path]) -> None:
    said = call("runs", "show", str(two_runs[0]))
    assert said.code == 0, said.err
    for words in ("done, 4 of 4 steps", "sft lora", "3.000  █▅▁  1.000", "50.0 %"):
        assert words in said.out
    found = call("runs", "show", str(two_runs[0]), "--json").json
    assert found["curves"]["losses"] == [3.0, 2.0, 1.0]
    assert found["recipe"]["name"] == "first"


@pytest.mark.parametrize("verb", ["show", "compare"])
def test_no_such_run(call: Call, two_runs: tuple[Path, Path], verb: str) -> None:
    arguments = ("nowhere",) if verb == "show" else (str(two_runs[0]), "nowhere")
    said = call("runs", verb, *arguments)
    assert said.code == 2
    assert "runs list" in said.err


def test_compare(call: Call, two_runs: tuple[Path, Path]) -> None:
    arguments = ("runs", "compare", *map(str, two_runs))
    said = call(*arguments)
    assert said.code == 0, said.err
    for words in (
        "training.learning_rate: 0.001 -> 0.002",
        "50.0 % (40.0 to 60.0 %)",
        "75.0 % (65.0 to 85.0 %)",
        "second loss",
    ):
        assert words in said.out
    assert call(*arguments, "--json").json["recipe"] == ["training.learning_rate: 0.001 -> 0.002"]


def test_compare_with_itself(call: Call, two_runs: tuple[Path, Path]) -> None:
    assert "the recipes are equal" in call("runs", "compare", str(two_runs[0]), str(two_runs[0])).out


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0], "▁"), ([3.0, 3.0], "▁▁"), ([0.0, 7.0], "▁█"), ([7.0, 0.0], "█▁"), ([0.0, 0.0, 7.0, 7.0], "▁▁██")],
)
def test_sparkline(values: list[float], expected: str) -> None:
    assert sparkline(values) == expected


def test_sparkline_takes_means_of_equal_stretches() -> None:
    assert sparkline([0.0, 0.0, 7.0, 7.0], 2) == "▁█"
    assert len(sparkline([float(value) for value in range(1000)], 32)) == 32
