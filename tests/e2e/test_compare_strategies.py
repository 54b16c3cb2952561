"""``tunesmith compare-strategies``: what it runs, chooses, writes and refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.desk import Call, Write
from tunesmith.cli.main import run
from tunesmith.evaluation.scorecard import Scorecard
from tunesmith.registry.runs import RunFolder
from tunesmith.workshop.trials import Ended, Trial, Trials

HELD_OUT = {"data__validation": 0.25, "data__test": 0.25, "training__max_steps": 2, "training__epochs": None}


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs in this process, in place of one each; their names in order."""
    names: list[str] = []

    def here(self: Trials, trials: Sequence[Trial]) -> dict[str, Ended]:
        for trial in trials:
            if trial.name not in self.ended:
                names.append(trial.name)
                code = run(["train", *trial.arguments, "--run", str(self.run_folder(trial).path)])
                self.ended[trial.name] = Ended({0: "done", 4: "stopped"}[code])
        return {trial.name: self.ended[trial.name] for trial in trials}

    monkeypatch.setattr(Trials, "run", here)
    return names


def _compare(call: Call, recipe: str, *words: object) -> Any:
    said = call("compare-strategies", recipe, "--out", "out", "--json", *words)
    assert said.code == 0, said.err
    return json.loads(said.out)


def test_rates_are_chosen_on_validation_rows_and_test_rows_decide(
    call: Call, write: Write, in_process: list[str], desk: Path
) -> None:
    recipe = write(**HELD_OUT, evaluation__preserve=["general"])
    found = _compare(call, recipe, "--strategies", "lora,head", "--factors", "1,4", "--seeds", "3,5")
    assert found["reference"] == "lora"
    assert found["measure"]["task"] == "label_ranking"
    for item in found["strategies"]:
        cards = {
            one["rate"]: Scorecard.load(
                desk / "out/runs" / f"{item['name']}--{one['rate']:g}--3" / "scorecards", "tuned"
            )
            for one in item["rates"]
        }
        scores = {rate: card.tasks["selection"]["accuracy"].value for rate, card in cards.items()}
        assert {one["rate"]: one["selection"] for one in item["rates"]} == scores
        best = max(scores.values())
        assert item["rate"] == min(rate for rate, score in scores.items() if score == best)
        finals = [Scorecard.load(Path(path) / "scorecards", "tuned") for path in item["runs"]]
        values = [card.tasks["verdict"]["accuracy"].value for card in finals]
        assert item["by_seed"] == pytest.approx(values)
        assert item["score"]["value"] == pytest.approx(sum(values) / 2)
        assert {RunFolder(Path(path)).recipe().seed for path in item["runs"]} == {3, 5}
        splits = {name: card.settings[name]["data"] for card in finals for name in ("selection", "verdict")}
        assert splits == {"selection": "validation", "verdict": "test"}
    lora, head = sorted(found["strategies"], key=lambda item: item["name"], reverse=True)
    assert head["against"]["difference"]["value"] == pytest.approx(head["score"]["value"] - lora["score"]["value"])
    assert lora["latency"]["tuned"] > 0
    assert head["latency"] is None
    assert lora["forgetting"]["perplexity"]["before"] > 1
    assert lora["stored_bytes"] > head["stored_bytes"] > 0
    assert (desk / "out/strategies.html").exists()


def test_tags_are_compared_by_their_words(call: Call, write: Write, in_process: list[str], desk: Path) -> None:
    rows = [{"tokens": ["ask", name, "now"], "tags": ["O", "B-PER", "O"]} for name in ("Ida", "Bo", "Rye", "Ann")]
    lines = "".join(json.dumps({**row, "id": number}) + "\n" for number, row in enumerate(rows * 6))
    (desk / "tags.jsonl").write_text(lines, encoding="utf-8")
    recipe = write(**HELD_OUT, data__train="tags.jsonl", data__duplicates="keep", objective={"type": "tag"})
    found = _compare(call, recipe, "--strategies", "lora,full", "--factors", "1,4", "--seeds", "3")
    assert (found["measure"]["task"], found["measure"]["metric"]) == ("tagging", "word_accuracy")
    for item in found["strategies"]:
        (card,) = [Scorecard.load(Path(path) / "scorecards", "tuned") for path in item["runs"]]
        assert item["score"]["value"] == pytest.approx(card.tasks["verdict"]["word_accuracy"].value)


def test_the_same_call_again_runs_nothing_new(call: Call, write: Write, in_process: list[str], desk: Path) -> None:
    recipe = write(**HELD_OUT, evaluation__preserve=[])
    words = ("--strategies", "norms,head", "--factors", "1,2", "--seeds", "0", "--reference", "head")
    first = _compare(call, recipe, *words)
    before = {path: path.stat().st_mtime_ns for path in desk.glob("out/runs/*/status.json")}
    again = _compare(call, recipe, *words)
    assert {path: path.stat().st_mtime_ns for path in desk.glob("out/runs/*/status.json")} == before
    scores = [
        [(item["name"], item["score"], item["rates"]) for item in found["strategies"]] for found in (first, again)
    ]
    assert scores[0] == scores[1]


def test_a_dry_run_trains_nothing(call: Call, write: Write, desk: Path) -> None:
    said = call("compare-strategies", write(**HELD_OUT), "--out", "out", "--dry-run", "--json")
    assert said.code == 0, said.err
    values = json.loads(said.out)
    assert "norms" in {item["name"] for item in values["strategies"]}
    assert values["runs"] == 6 * len(values["strategies"])
    assert not (desk / "out").exists()


def test_what_cannot_be_tried_is_left_out_unless_it_was_asked_for(call: Call, write: Write) -> None:
    recipe = write(**HELD_OUT)
    said = call("compare-strategies", recipe, "--dry-run", "--json", "--score", "loss")
    assert said.code == 0, said.err
    assert set(said.json["left_out"]) == {"head", "head-lora", "rslora"}
    assert "more than the smaller side" in said.json["left_out"]["rslora"]  # rank 64 on layers of 32
    assert "objective `classify` is not scored by loss" in said.json["left_out"]["head"]
    Path("own.yaml").write_text("deep: {adapter: {type: partial, last_layers: 9}}\n", encoding="utf-8")
    said = call("compare-strategies", recipe, "--dry-run", "--own", "own.yaml")
    said.refuses(2, "the strategy `deep` cannot be tried", "the model has 2 layers")
    call("compare-strategies", recipe, "--score", "loss", "--strategies", "lora,head").refuses(
        2, "`head` cannot be tried"
    )


@pytest.mark.parametrize(
    ("words", "needles"),
    [
        (["--strategies", "lora,lora"], ["given twice"]),
        (["--strategies", "lora,lorra"], ["no strategy `lorra`", "did you mean"]),
        (["--strategies", "lora"], ["fewer than two"]),
        (["--strategies", "lora,full", "--reference", "head"], ["not among the strategies"]),
        (["--factors", "1"], ["at least two"]),
        (["--factors", "1,-2"], ["above 0"]),
        (["--factors", "one"], ["list of numbers"]),
        (["--seeds", "0,0"], ["differ"]),
        (["--seeds", "0.5"], ["whole numbers"]),
        (["--seeds", "0,-1"], ["from 0 on"]),
        (["--score", "bleu"], ["no score `bleu`"]),
        (["adapter.rank=4"], ["decided by the comparison", "--own"]),
        (["seed=4"], ["decided by the comparison", "--seeds"]),
        (["data.test=0"], ["no row is held out for test"]),
        (["--own", "missing.yaml"], ["no such recipe file"]),
    ],
)
def test_bad_input_is_told(call: Call, write: Write, words: list[str], needles: list[str]) -> None:
    call("compare-strategies", write(**HELD_OUT), *words).refuses(2, *needles)


@pytest.mark.slow
def test_processes_of_their_own_come_to_the_same(call: Call, write: Write, desk: Path) -> None:
    recipe = write(**HELD_OUT, evaluation__preserve=[])
    words = ("--strategies", "lora,head", "--factors", "1,2", "--seeds", "0", "--jobs", "2")
    found = _compare(call, recipe, *words)
    assert {item["name"] for item in found["strategies"]} == {"lora", "head"}
    for path in desk.glob("out/runs/*"):
        assert RunFolder(path).status()["status"] == "done"
        assert (desk / "out/logs" / f"{path.name}.txt").exists()
