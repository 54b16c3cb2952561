"""An evaluation that changes between two calls of one run: measured anew for both models, or said, never by halves."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.desk import Call, Write
from tunesmith.registry import run_folder

RUN = Path("runs/desk")


def _read(name: str) -> Any:
    return json.loads((RUN / name).read_text(encoding="utf-8"))


def _scores(name: str) -> dict[str, Any]:
    return {key: value for key, value in _read(f"scorecards/{name}.json").items() if key not in ("seconds", "seal")}


def _events() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RUN / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def _interrupt_after_step_two(call: Call, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    append = run_folder.RunFolder.append_metric

    def at_step_two(self: run_folder.RunFolder, line: dict[str, Any]) -> None:
        append(self, line)
        if line["step"] == 2 and "loss" in line:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "append_metric", at_step_two)
        call("train", recipe, "--json").refuses(130, "after step 2 of 4")


CHANGES = {
    "tasks and probes": {"tasks": [{"type": "exact_match", "data": "validation"}], "preserve": ["general"]},
    "probes": {"preserve": ["general"]},
    "tasks": {"tasks": [{"type": "loss", "data": "validation", "limit": 2}]},
}


@pytest.mark.parametrize("name", CHANGES)
def test_both_models_are_scored_on_what_the_last_call_asks_for(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    first = write(training__max_steps=4)
    _interrupt_after_step_two(call, first, monkeypatch)
    base = (RUN / "scorecards" / "base.json").stat().st_mtime_ns
    changed = write(
        "changed.yaml", training__max_steps=4, **{f"evaluation__{key}": CHANGES[name][key] for key in CHANGES[name]}
    )
    said = call("train", changed)
    assert said.code == 0, said.err
    assert (RUN / "scorecards" / "base.json").stat().st_mtime_ns != base
    kinds = [event["kind"] for event in _events()]
    assert "evaluation_changed" in kinds
    assert "scored_again" in kinds
    told = next(event["message"] for event in _events() if event["kind"] == "evaluation_changed")
    assert told in said.err
    assert all(f"evaluation.{key}" in told for key in CHANGES[name])
    for key, value in CHANGES[name].items():
        stored = _read("recipe.json")["evaluation"][key]
        assert (
            stored == value or [{k: v for k, v in item.items() if v not in (None, False)} for item in stored] == value
        )
    resumed = {card: _scores(card) for card in ("base", "tuned", "comparison")}
    shutil.rmtree(RUN)
    assert call("train", changed).code == 0
    assert resumed == {card: _scores(card) for card in ("base", "tuned", "comparison")}


def test_an_unchanged_evaluation_keeps_the_scores_of_the_base(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(training__max_steps=4)
    _interrupt_after_step_two(call, recipe, monkeypatch)
    base = (RUN / "scorecards" / "base.json").stat().st_mtime_ns
    assert (
        call("train", recipe, "evaluation.batch_tokens=4096").code == 0
    )  # a matter of memory, not of what is measured
    assert (RUN / "scorecards" / "base.json").stat().st_mtime_ns == base
    assert not {"evaluation_changed", "scored_again"} & {event["kind"] for event in _events()}


def test_scores_of_the_base_that_do_not_say_what_was_asked_are_made_again(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(training__max_steps=4)
    _interrupt_after_step_two(call, recipe, monkeypatch)
    card = _read("scorecards/base.json")
    del card["suite"], card["seal"]
    (RUN / "scorecards" / "base.json").write_text(json.dumps(card), encoding="utf-8")
    assert call("train", recipe).code == 0
    assert _read("scorecards/base.json")["suite"] == _read("scorecards/tuned.json")["suite"]


def test_without_tasks_no_earlier_comparison_is_left(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(training__max_steps=4)
    _interrupt_after_step_two(call, recipe, monkeypatch)
    (RUN / "scorecards" / "comparison.json").write_text("{}", encoding="utf-8")
    assert call("train", recipe, "evaluation.tasks=[]").code == 0
    assert not (RUN / "scorecards" / "comparison.json").exists()


def test_a_finished_run_says_that_it_was_scored_on_another_evaluation(desk: Path, call: Call, write: Write) -> None:
    recipe = write()
    assert call("train", recipe).code == 0
    before = {path: path.stat().st_mtime_ns for path in RUN.rglob("*")}
    same = call("train", recipe, "evaluation.batch_tokens=4096")
    assert "tunesmith eval" not in same.err
    said = call("train", recipe, "evaluation.preserve=[general]", "--json")
    assert said.code == 0
    assert "nothing to do" in said.err
    assert "evaluation.preserve: [] -> ['general']" in said.err
    assert "tunesmith eval runs/desk RECIPE --against tiny" in said.err
    assert before == {path: path.stat().st_mtime_ns for path in RUN.rglob("*")}
