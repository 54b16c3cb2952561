"""`train`, `plan`, `eval`, `report`, `export`, `demo`: what they hand over and what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith.cli import doors
from tunesmith.errors import GuardStopped, Interrupted, RunError
from tunesmith.progress import Progress
from tunesmith.recipe import codec

Call = Callable[..., Any]

SCORE = {"value": 0.75, "low": 0.6, "high": 0.9, "n": 40}
CARD = {
    "model": "m",
    "tasks": {"exact_match": {"accuracy": SCORE}},
    "probes": {"general": {"perplexity": {"value": 27.1, "low": 26.0, "high": 28.0, "n": 9}}},
    "baselines": {"exact_match": {"majority": {"label": "billing", **SCORE}}},
}
COMPARISON = {
    "sentence": "It is better.",
    "claimed_on": "exact_match.accuracy",
    "tasks": {
        "exact_match": {
            "accuracy": {
                "before": {**SCORE, "value": 0.25},
                "after": SCORE,
                "difference": {"value": 0.5, "low": 0.3, "high": 0.7, "n": 40},
                "p_value": 0.001,
                "won": 20,
                "lost": 0,
            }
        }
    },
    "probes": {},
}


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Recipes that were planned; the plan of each is its name."""
    seen: list[Any] = []
    monkeypatch.setattr(
        doors, "plan_recipe", lambda recipe: seen.append(recipe) or f"plan of {recipe.name}", raising=False
    )
    return seen


def _run(folder: Path, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{
            "folder": folder,
            "status": "done",
            "steps": 5,
            "tokens": 1234,
            "loss": 0.5,
            "scorecards": {"tuned": CARD},
            "nothing_to_do": False,
            **more,
        }
    )


def test_train_ends_with_the_run(call: Call, recipe: Path, planned: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def train(
        plan: str, folder: Path, *, progress: Progress, restart: bool = False, fork: str | None = None
    ) -> SimpleNamespace:
        assert (plan, folder) == ("plan of desk", Path("runs/desk"))
        print("a library's chatter")
        progress.start(1)
        progress.step(1, 0.5, 10.0, 0.0)
        return _run(folder)

    monkeypatch.setattr(doors, "train", train, raising=False)
    said = call("train", str(recipe), "training.max_steps=5", "--json")
    assert said.code == 0, said.err
    assert said.json == {"run": "runs/desk", "status": "done", "steps": 5, "tokens": 1234, "loss": 0.5}
    assert "step 1 of 1" in said.err
    assert planned[0].training.max_steps == 5


def test_train_says_headline_and_report(
    call: Call, recipe: Path, planned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("elsewhere")
    (folder / "scorecards").mkdir(parents=True)
    (folder / "recipe.json").write_text("{}", encoding="utf-8")
    (folder / "scorecards" / "comparison.json").write_text(json.dumps(COMPARISON), encoding="utf-8")
    (folder / "report.html").write_text("", encoding="utf-8")
    monkeypatch.setattr(
        doors, "train", lambda plan, run, *, progress, restart, fork: _run(run, nothing_to_do=True), raising=False
    )
    said = call("train", str(recipe), "--run", "elsewhere")
    assert said.code == 0, said.err
    assert "nothing to do" in said.err
    for words in ("5 steps", "It is better.", "75.0 %", "report: elsewhere/report.html"):
        assert words in said.out


@pytest.mark.parametrize(
    ("error", "code"), [(Interrupted("stopped", hint="the same call resumes"), 130), (GuardStopped("diverged"), 4)]
)
def test_stopped_training_still_says_where_it_is(
    call: Call, recipe: Path, planned: list[Any], monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def train(plan: str, folder: Path, *, progress: Progress, restart: bool, fork: str | None) -> None:
        folder.mkdir(parents=True)
        (folder / "status.json").write_text(
            '{"status": "interrupted", "step": 3, "steps": 9, "tokens": 7, "loss": 1.5}', encoding="utf-8"
        )
        raise error

    monkeypatch.setattr(doors, "train", train, raising=False)
    said = call("train", str(recipe), "--json")
    assert said.code == code
    assert said.json == {"run": "runs/desk", "status": "interrupted", "steps": 3, "tokens": 7, "loss": 1.5}


def test_a_refused_folder_is_not_taken_for_this_run(
    call: Call, recipe: Path, planned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(plan: str, folder: Path, *, progress: Progress, restart: bool, fork: str | None) -> None:
        folder.mkdir(parents=True)
        (folder / "status.json").write_text('{"status": "done", "step": 3}', encoding="utf-8")
        raise RunError("another recipe's run")

    monkeypatch.setattr(doors, "train", train, raising=False)
    said = call("train", str(recipe), "--json")
    assert said.code == 2
    assert said.json["error"]["what"] == "another recipe's run"


def test_a_wrong_recipe_never_reaches_the_workshop(call: Call, recipe: Path) -> None:
    said = call("train", str(recipe), "trainig.epochs=1")
    assert said.code == 2
    assert "did you mean `training`?" in said.err
    assert not Path("runs").exists()


def test_eval_shows_the_card_and_the_comparison(call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(model: str, suite: Path, *, against: str | None, progress: Progress) -> SimpleNamespace:
        assert (model, suite, against) == ("tunesmith-base-8m", recipe, "tunesmith-base-8m")
        progress.phase("scoring", 1, 1)
        other = {**CARD, "model": "other"}
        values = {**CARD, "against": other, "comparison": COMPARISON, "notes": ["said aloud"]}
        return SimpleNamespace(to_json=lambda: values)

    monkeypatch.setattr(doors, "measure", measure, raising=False)
    arguments = ("eval", "tunesmith-base-8m", str(recipe), "--against", "tunesmith-base-8m")
    said = call(*arguments)
    assert said.code == 0, said.err
    for words in (
        "exact match",
        "75.0 %",
        "60.0 to 90.0 %",
        "always “billing”",
        "other:",
        "+50.0 points",
        "It is better.",
        "said aloud",
    ):
        assert words in said.out
    assert call(*arguments, "--json").json["comparison"] == COMPARISON


def test_eval_of_an_unknown_model(call: Call, recipe: Path) -> None:
    said = call("eval", "tunesmith-base-9m", str(recipe))
    assert said.code == 2
    assert "tunesmith-base-8m" in said.err


def test_report(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "report", lambda run: SimpleNamespace(path=run / "report.html"), raising=False)
    assert call("report", "runs/a").out == "runs/a/report.html\n"
    assert call("report", "runs/a", "--json").json == {"run": "runs/a", "report": "runs/a/report.html"}


@pytest.fixture
def exported(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A finished LoRA run in ``run``; and the exports that were asked for, which say two gates."""
    (Path("run") / "adapter").mkdir(parents=True)
    values = codec.load(recipe).model_dump(mode="json")
    Path("run/recipe.json").write_text(json.dumps(values), encoding="utf-8")
    Path("run/status.json").write_text('{"status": "done", "step": 4, "steps": 4}', encoding="utf-8")
    asked: list[tuple[Any, ...]] = []

    def export(run: Path, out: Path, *, merge: bool, dtype: str | None) -> SimpleNamespace:
        asked.append((run, out, merge, dtype))
        gates = [
            SimpleNamespace(sentence=f"gate {name} passed", to_json=lambda name=name: {"gate": name}) for name in "AB"
        ]
        return SimpleNamespace(folder=out, gates=gates, notes=["a note"], dtype=dtype or "bfloat16")

    monkeypatch.setattr(doors, "export", export, raising=False)
    return asked


def test_export_shows_both_gates(call: Call, exported: list[tuple[Any, ...]]) -> None:
    said = call("export", "run", "out", "--merge", "--dtype", "float32")
    assert said.out.splitlines() == ["gate A passed", "gate B passed", "note: a note", "written: out"]
    assert exported == [(Path("run"), Path("out"), True, "float32")]
    found = call("export", "run", "out", "--merge", "--json").json
    gates = [{"gate": "A"}, {"gate": "B"}]
    assert found == {"folder": "out", "merged": True, "dtype": "bfloat16", "gates": gates, "notes": ["a note"]}


def test_export_knows_its_dtypes(call: Call) -> None:
    assert call("export", "run", "out", "--dtype", "int3").code == 2


def test_a_number_format_for_an_adapter_is_refused_and_obeyed_for_a_whole_model(
    call: Call, exported: list[tuple[Any, ...]]
) -> None:
    said = call("export", "run", "out", "--dtype", "bfloat16")
    assert said.code == 2
    for words in ("keeps the precision it was trained in", "at --dtype", "add --merge, or leave --dtype out"):
        assert words in said.err
    assert exported == []
    assert call("export", "run", "out").code == 0
    Path("run/adapter").rmdir()
    assert call("export", "run", "out", "--dtype", "bfloat16").code == 0
    assert [dtype for _, _, _, dtype in exported] == [None, "bfloat16"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: Path("run/recipe.json").unlink(), "this folder holds no run"),
        (lambda: Path("run/status.json").write_text('{"status": "stopped"}'), "this run is stopped, not done"),
        (lambda: Path("out").write_text(""), "there is a file of that name"),
        (lambda: Path("out/mine").mkdir(parents=True), "the folder to export to is not empty"),
    ],
)
def test_an_export_that_cannot_be_is_refused_before_anything_is_loaded(
    call: Call, exported: list[tuple[Any, ...]], change: Callable[[], Any], words: str
) -> None:
    change()
    said = call("export", "run", "out")
    assert (said.code, words in said.err, exported) == (2, True, [])


def test_demo(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def demo(folder: Path, *, progress: Progress, restart: bool = False) -> SimpleNamespace:
        progress.note("working")
        return SimpleNamespace(report=folder / "report.html", headline=["better", "by much"], seconds=83.0)

    monkeypatch.setattr(doors, "demo", demo, raising=False)
    said = call("demo")
    assert said.out.splitlines() == ["better", "by much", "time: 1 min 23 s", "report: runs/demo/report.html"]
    assert said.err == "working\n"
    found = call("demo", "--json", "--run", "there").json
    assert found == {"run": "there", "report": "there/report.html", "headline": ["better", "by much"], "seconds": 83.0}


def test_plan_says_every_value_with_its_reason(call: Call, recipe: Path) -> None:
    said = call("plan", str(recipe))
    assert said.code == 0, said.err
    for words in ("learning_rate", "memory:", "training:", "fits"):
        assert words in said.out
    headings = [line for line in said.out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert len(headings) == len(set(headings))


def test_plan_as_json(call: Call, recipe: Path) -> None:
    said = call("plan", str(recipe), "--json", "training.max_steps=7")
    assert said.code == 0, said.err
    assert said.json["steps"] == 7


def test_plan_that_does_not_fit_is_shown_and_refused(call: Call, recipe: Path) -> None:
    said = call("plan", str(recipe), "--json", "machine.memory_gib=0.01")
    assert said.code == 3
    assert said.json["memory_bytes"] > 0.01 * 2**30
    assert "error: " in said.err
