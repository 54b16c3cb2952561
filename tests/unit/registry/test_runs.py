"""The list of runs and two of them side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import RunError
from tunesmith.recipe.codec import parse
from tunesmith.registry.compare import compare_runs
from tunesmith.registry.runs import UNREADABLE, RunFolder, list_runs


def score(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 40}


def make_run(path: Path, age_seconds: float = 0.0, **changes: Any) -> RunFolder:
    values = {"name": path.name, "model": "tunesmith-base-8m", "data": {"train": "train.csv"}, **changes}
    run = RunFolder(path)
    run.create(parse(values).model_dump(mode="json"))
    run.set_status("done", step=20, steps=20)
    moment = time.time() - age_seconds
    for name in (run.recipe_path, run.status_path):
        os.utime(name, (moment, moment))
    return run


def write_card(run: RunFolder, name: str, tasks: dict[str, Any], **rest: Any) -> None:
    run.scorecard_path(name).write_text(json.dumps({"model": name, "tasks": tasks, **rest}))


def test_runs_are_listed_newest_first_and_other_folders_are_passed_over(tmp_path: Path) -> None:
    make_run(tmp_path / "old", age_seconds=5000, adapter={"type": "full"})
    make_run(tmp_path / "new", age_seconds=10)
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").write_text("x")
    listed = list_runs(tmp_path)
    assert [(run.name, run.adapter, run.objective, run.step, run.status) for run in listed] == [
        ("new", "lora", "sft", 20, "done"),
        ("old", "full", "sft", 20, "done"),
    ]
    assert listed[1].age_seconds == pytest.approx(5000, abs=60)
    assert json.loads(json.dumps(listed[0].to_json()))["model"] == "tunesmith-base-8m"


def test_a_root_that_does_not_exist_holds_no_runs(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "runs") == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.json", "{"),
        ("recipe.json", "[]"),
        ("status.json", '{"status": "dreaming"}'),
        ("scorecards/tuned.json", '{"tasks'),
        ("scorecards/tuned.json", "[1]"),
    ],
)
def test_a_broken_run_is_listed_as_unreadable_with_the_reason(tmp_path: Path, name: str, content: str) -> None:
    run = make_run(tmp_path / "broken")
    make_run(tmp_path / "whole")
    (run.path / name).write_text(content)
    broken = {item.name: item for item in list_runs(tmp_path)}["broken"]
    assert broken.status == UNREADABLE
    assert broken.why
    assert {item.name: item.status for item in list_runs(tmp_path)}["whole"] == "done"


def test_the_headline_is_what_the_comparison_claims_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    assert list_runs(tmp_path)[0].score is None
    write_card(
        run,
        "tuned",
        {
            "loss": {"loss": score(1.0)},
            "label_ranking": {"accuracy": score(0.7)},
            "exact_match": {"accuracy": score(0.6)},
        },
    )
    assert list_runs(tmp_path)[0].score == {"task": "exact_match", "metric": "accuracy", **score(0.6)}
    run.comparison_path.write_text(json.dumps({"claimed_on": "label_ranking.accuracy"}))
    assert list_runs(tmp_path)[0].score == {"task": "label_ranking", "metric": "accuracy", **score(0.7)}


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", seed=1)
    b = make_run(tmp_path / "b", seed=2, training={"batch_size": 8})
    for run, loss in ((a, 2.0), (b, 3.0)):
        run.append_metric({"step": 1, "loss": loss})
        run.append_metric({"step": 1, "validation_loss": loss + 1, "validation_tokens": 9})
        run.append_metric({"step": 2, "loss": loss - 0.5})
    write_card(a, "tuned", {"exact_match": {"accuracy": score(0.5)}}, probes={"general": {"loss": score(3.2)}})
    write_card(b, "tuned", {"exact_match": {"accuracy": score(0.6), "macro_f1": score(0.4)}})
    result = compare_runs(a.path, b.path)
    assert result["recipe"] == ["seed: 1 -> 2", "training.batch_size: 32 -> 8"]
    assert result["scores"]["exact_match"] == {
        "accuracy": {"a": score(0.5), "b": score(0.6)},
        "macro_f1": {"a": None, "b": score(0.4)},
    }
    assert result["probes"] == {"general": {"loss": {"a": score(3.2), "b": None}}}
    assert result["curves"]["b"] == {
        "steps": [1, 2], "losses": [3.0, 2.5], "validation_steps": [1], "validation_losses": [4.0],
    }  # fmt: skip
    assert (result["a"]["name"], result["b"]["name"]) == ("a", "b")
    json.dumps(result)


def test_comparing_with_a_folder_that_is_no_run_is_a_run_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    with pytest.raises(RunError, match="no such run folder"):
        compare_runs(run.path, tmp_path / "b")


def test_the_registry_needs_no_torch() -> None:
    code = (
        "import sys, tunesmith.registry.compare, tunesmith.registry.runs; "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
