"""Early stopping on measures of answers: watched, told, resumed to the bit, refused where it cannot be watched."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.desk import Call, Write, write_rows
from tunesmith.registry import run_folder

RUN, WHOLE = Path("runs/desk"), Path("runs/whole")
TIMES = {"seconds", "tokens_per_second"}


def lines(run: Path, name: str = "metrics") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in found]


def events(run: Path, kind: str) -> list[str]:
    return [line["message"] for line in lines(run, "events") if line["kind"] == kind]


def recipe(write: Write, metric: str, **more: Any) -> str:
    early = {"metric": metric, "patience": 2, "rows": 6}
    changes = {"data__validation": 0.5, "training__max_steps": 12, "training__evaluate_every": 2, **more}
    return write(training__early_stopping=early, **changes)


@pytest.mark.parametrize("metric", ["exact_match", "label_ranking"])
def test_a_run_stops_on_answers_and_a_resume_is_the_whole(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    """A random model of two layers: exact match stays at nothing, so that patience runs out at the third evaluation."""
    rate = 1e-7 if metric == "label_ranking" else 1e-3  # nothing moves, so that the ranking stays as well
    name = recipe(write, metric, training__learning_rate=rate)
    said = call("train", name, "--run", WHOLE)
    assert said.code == 0, said.err
    watched = [line for line in lines(WHOLE) if f"validation_{metric}" in line]
    assert [line["step"] for line in watched] == [2, 4, 6]
    assert all("validation_loss" in line for line in watched)
    assert all(0 <= line[f"validation_{metric}"] <= 1 for line in watched)
    words = {"exact_match": "exact match", "label_ranking": "label ranking"}[metric]
    (stopped,) = events(WHOLE, "stopped_early")
    assert stopped.startswith(f"{words} on validation rows has not improved for 2 evaluations; the best was ")
    (taken,) = events(WHOLE, "best_taken")
    assert taken.startswith(f"the result is the checkpoint of step 2, {words} on validation rows ")

    append = run_folder.RunFolder.append_metric

    def at_the_second_evaluation(self: run_folder.RunFolder, line: dict[str, Any]) -> None:
        append(self, line)
        if line["step"] == 4 and "validation_loss" in line:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "append_metric", at_the_second_evaluation)
        assert call("train", name).code == 130
    assert call("train", name).code == 0
    assert lines(RUN) == lines(WHOLE)
    assert events(RUN, "best_taken") == events(WHOLE, "best_taken")


def test_the_instruction_following_score_is_watched(desk: Path, call: Call, write: Write) -> None:
    rows = [
        {
            "text": f"please tell me where parcel number {number} is and when it comes to my house",
            "label": f"Thank you for asking. It arrives on day {number % 28}.",
        }
        for number in range(120)
    ]
    write_rows(desk / "rows.jsonl", rows)
    said = call("train", recipe(write, "instruction_following", training__max_steps=4))
    assert said.code == 0, said.err
    watched = [line for line in lines(RUN) if "validation_instruction_following" in line]
    assert [line["step"] for line in watched] == [2, 4]
    for line in watched:
        for name in ("instruction_following", "ifs_full", "ifs_partial", "empty"):
            assert 0 <= line[f"validation_{name}"] <= 1
        both = (line["validation_ifs_full"] + line["validation_ifs_partial"]) / 2
        assert line["validation_instruction_following"] == pytest.approx(both)


def test_what_cannot_be_watched_is_refused_before_a_run_is_made(desk: Path, call: Call, write: Write) -> None:
    call("train", recipe(write, "instruction_following")).refuses(2, "needs 20 validation rows", "another metric")
    open_text = [{"text": f"case {number} here", "label": f"an answer of its own, {number}"} for number in range(24)]
    write_rows(desk / "rows.jsonl", open_text)
    call("train", recipe(write, "label_ranking")).refuses(2, "open text", "[training.early_stopping.metric]")
    assert not (desk / "runs").exists()
