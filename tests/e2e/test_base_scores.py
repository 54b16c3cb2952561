"""A base that was asked the same before is not asked again; anything that could change an answer makes it be asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.desk import Call, Write

STEPS: dict[str, Any] = {"training__max_steps": 1, "training__epochs": None, "evaluation__preserve": ["general"]}


def _train(call: Call, recipe: str, name: str, *words: str) -> bool:
    """Train into a folder; whether the scores of the base were taken from an earlier run."""
    said = call("train", recipe, "--run", name, *words)
    assert said.code == 0, said.err
    events = [json.loads(line) for line in Path(name, "events.jsonl").read_text().splitlines()]
    return "base_scores" in {event["kind"] for event in events}


def _scores(name: str) -> dict[str, Any]:
    card: dict[str, Any] = json.loads(Path(name, "scorecards/base.json").read_text())
    return {
        "tasks": card["tasks"],
        "probes": card["probes"],
        "rows": Path(name, "scorecards/base.rows.jsonl").read_text(),
    }


def test_a_second_run_on_the_same_rows_takes_the_scores(call: Call, write: Write) -> None:
    recipe = write(**STEPS)
    assert not _train(call, recipe, "one")
    assert _train(call, recipe, "two", "training.learning_rate=3e-4", "adapter={type: full}")
    assert _scores("one") == _scores("two")


@pytest.mark.parametrize(
    "word",
    [
        "seed=1",
        "evaluation.preserve=[]",
        "evaluation.batch_tokens=512",
        "model.init=random + adapter={type: full}",
        "objective.loss_on=everything",
        "data.test=0.4",
        "machine.threads=1",
    ],
)
def test_what_changes_an_answer_asks_again(call: Call, write: Write, word: str) -> None:
    recipe = write(**STEPS, machine__threads=2)
    assert not _train(call, recipe, "one")
    assert not _train(call, recipe, "two", *word.split(" + "))


def test_damaged_scores_are_made_anew(call: Call, write: Write, desk: Path) -> None:
    recipe = write(**STEPS)
    _train(call, recipe, "one")
    (kept,) = (desk / "cache/scores").glob("*/base.rows.jsonl")
    kept.write_text(kept.read_text().replace("0", "1"), encoding="utf-8")
    assert not _train(call, recipe, "two")
    assert _scores("one") == _scores("two")
    assert _train(call, recipe, "three")


def test_a_head_has_scores_of_its_own(call: Call, write: Write) -> None:
    recipe = write(**STEPS, objective__type="classify", evaluation__tasks=None)
    assert not _train(call, recipe, "one")
    assert not _train(call, recipe, "two", "training.learning_rate=3e-4")


def test_a_cache_that_cannot_be_written_is_said(call: Call, write: Write, desk: Path) -> None:
    recipe = write(**STEPS)
    (desk / "cache").mkdir(exist_ok=True)
    (desk / "cache/scores").write_text("in the way", encoding="utf-8")
    said = call("train", recipe, "--run", "one")
    assert said.code == 0, said.err
    assert "are not kept for other runs" in said.err
