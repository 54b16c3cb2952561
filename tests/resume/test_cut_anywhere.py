"""Cut after every step, in every mode: weights, optimiser, losses, metrics and all state end as those of the unbroken run."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.resume.cutting import STEPS, Case, assert_same_end, build, cut_run, go_on
from tunesmith.engine import precision
from tunesmith.engine.clipping import ZClipOptions
from tunesmith.engine.randomness import use_deterministic
from tunesmith.engine.recovery import GuardOptions
from tunesmith.engine.spikes import SpikeOptions
from tunesmith.engine.trainer import Trainer
from tunesmith.engine.windows import PrefixRule, ScoreRule, Timetable, Window
from tunesmith.errors import GuardStopped, Interrupted
from tunesmith.recipe.layers import LayerRatesSection


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    use_deterministic(True)
    yield
    use_deterministic(False)


def _dead_layer(trainer: Trainer) -> None:
    """No gradient reaches the second layer."""
    for name, parameter in trainer.model.hf.named_parameters():
        if ".layers.1." in name and parameter.requires_grad:
            parameter.register_hook(torch.zeros_like)


def _noise(trainer: Trainer) -> None:
    """NEFTune's noise on the embeddings."""
    trainer.model.add_embedding_noise(5.0)


def _spikes(action: Any, **more: Any) -> dict[str, Any]:
    return {"spikes": SpikeOptions(**{"action": action, "window": 4, "threshold": 3.0, **more})}


LAYERED = {"layers": 3}
UNFREEZING = Timetable({2: Window(first=2, warmup=3), 1: Window(first=5, warmup=2), 0: Window(first=8)}, num_layers=3)
FREEZING = Timetable(
    {depth: Window(end=2 + 8 * share, peak=1 / share, falls_from=2) for depth, share in enumerate((0.3, 0.5, 0.8))},
    num_layers=3,
)
SCORED = {
    name: {
        "scope": "aflora",
        "score_rule": ScoreRule(boundaries=((2, 0.3), (4, 0.6), (6, 0.8), (8, 1.0)), pooled=pooled, window=2),
    }
    for name, pooled in (("released", True), ("paper", False))
}
RULED = Timetable(rule=PrefixRule(interval=2, percentile=90, top=4), num_layers=3)

CASES = [
    Case("lora"),
    Case("lora-dropout", {"dropout": 0.2}),
    Case("full", {"scope": "full"}),
    Case("bottleneck", {"scope": "bottleneck", "dropout": 0.2}),
    Case("adamw-8bit", {"optimiser": "adamw_8bit", "scope": "full"}),
    Case("adamw-8bit-refused", {"optimiser": "adamw_8bit", "guards": GuardOptions(non_finite="skip")}, spoil={4: math.nan}),
    Case("adamw-8bit-unfreezing", {**LAYERED, "scope": "full", "optimiser": "adamw_8bit", "timetable": UNFREEZING}),
    Case("moments-on-the-host", {"offload_optimiser": True, "scope": "full"}),
    Case("sgd", {"optimiser": "sgd", "scope": "full"}),
    Case("sgd-without-momentum", {"optimiser": "sgd", "momentum": 0.0}),
    Case("saved-in-the-step", {"save_in_background": False}),
    Case("two-sources", {"dropout": 0.1}, source_weights=(1.0, 2.5)),
    Case("three-sources", source_weights=(0.5, 1.0, 0.25)),
    Case("small-packs", {"atom_tokens": 33, "dropout": 0.1}),
    Case("micro-batches", {"micro_batch_size": 3, "dropout": 0.1}),
    Case("packs-and-micro-batches", {"atom_tokens": 50, "micro_batch_size": 2}, source_weights=(1.0, 0.5)),
    *(Case(name, {"schedule": name}) for name in ("linear", "constant", "wsd", "slanted")),
    Case("no-clip", {"clip": None}),
    Case("tight-clip", {"clip": 0.05}),
    Case("zclip-in-warm-up", {"zclip": ZClipOptions(warmup=8), "clip": None}),
    Case("zclip", {"zclip": ZClipOptions(warmup=3, threshold=0.5)}, spoil={6: 3.0}),
    Case("spikes-skipped", _spikes("skip"), spoil={4: 50.0, 5: 5e3, 8: 1e5}),
    Case("spikes-by-median", _spikes("skip", statistic="median", window=8, threshold=30.0), spoil={7: 1e4}),
    Case("spikes-rolled-back", _spikes("rollback"), spoil={5: 50.0}),
    Case("two-rollbacks", _spikes("rollback") | {"guards": GuardOptions(rollback_window=0)}, spoil={7: 50.0, 8: 50.0}),
    Case("not-finite-skipped", {"guards": GuardOptions(non_finite="skip")}, spoil={2: math.nan, 3: math.inf, 7: math.nan}),
    Case("not-finite-rolled-back", {"guards": GuardOptions(non_finite="rollback")}, spoil={1: math.nan, 8: math.nan}),
    Case("bf16", {"precision": "bf16", "dropout": 0.1}),
    Case("fp16", {"precision": "fp16"}, spoil={4: math.inf}),
    Case("a-dead-layer", {"scope": "full", "evaluate_every": 2}, touch=_dead_layer),
    Case("memory-ran-out", {"dropout": 0.2, "recompute": True}, most_tokens={4: 60}),
    Case("memory-ran-out-twice", {"scope": "full"}, most_tokens={2: 90, 5: 40}),
    Case("early-stopping", {"evaluate_every": 2}, patience=2, bumps={4: 30.0, 6: 30.0}),
    Case("smoothed-and-weighted", {"dropout": 0.1}, loss={"label_smoothing": 0.1}, row_weights=True),
    Case("rdrop", {"dropout": 0.2, "micro_batch_size": 3}, loss={"rdrop_alpha": 1.0}, row_weights=True),
    Case("neftune", {"atom_tokens": 33}, touch=_noise),
    Case("focal", {"scope": "full", "atom_tokens": 33}, loss={"focal_gamma": 2.0}),
    Case("rates-by-layer", {"scope": "full", "rates": LayerRatesSection(decay=0.5)}),
    *(Case(f"unfreezing-{name}", {**LAYERED, "scope": name, "timetable": UNFREEZING}) for name in ("full", "lora")),
    Case("unfreezing-sgd", {**LAYERED, "scope": "full", "optimiser": "sgd", "timetable": UNFREEZING}),
    Case("freezing-on-the-way", {**LAYERED, "scope": "full", "timetable": FREEZING, "evaluate_every": 2}),
    Case("freezing-lora-with-tokens", {**LAYERED, "scope": "lora with tokens", "dropout": 0.1, "timetable": FREEZING}),
    Case("freezing-by-a-rule", {**LAYERED, "scope": "full", "timetable": RULED}),
    Case("freezing-by-a-rule-rolled-back", {**LAYERED, "scope": "full", "timetable": RULED} | _spikes("rollback"), spoil={5: 50.0}),
    *(Case(f"matrices-{name}", more) for name, more in SCORED.items()),
    Case("matrices-between-windows", SCORED["paper"] | {"dropout": 0.1, "micro_batch_size": 3, "evaluate_every": 3}),
    Case("matrices-rolled-back", SCORED["paper"] | _spikes("rollback", threshold=20.0), spoil={5: 50.0}),
    Case("no-stop-in-time", {"evaluate_every": 2, "dropout": 0.1}, patience=3, bumps={4: 30.0, 6: 30.0}),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: CASES[number].name)
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])
def test_cut_after_each_step_the_rest_is_bit_equal(
    tmp_path: Path, number: int, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fourth step, another fourth for each case, in the fast tier; every step in the slow one."""
    monkeypatch.setattr(precision, "_GROWS_AFTER", 2)  # the loss scale grows and halves within a few steps
    case = CASES[number]
    whole = build(case, tmp_path / "whole")
    whole.trainer.run()
    _shows_what_it_is_about(case, whole)
    for stop_at in range(1 + number % every, STEPS, every):
        folder = tmp_path / str(stop_at)
        first = cut_run(case, folder, stop_at)
        again, since = go_on(case, folder)
        assert_same_end(whole, again, since=since, first=first)


def _shows_what_it_is_about(case: Case, whole: Any) -> None:
    """A case that does not do what its name says would prove nothing."""
    refused = {facts.step: facts.refused_by for facts in whole.recorder.facts if not facts.applied}
    expected = {
        "spikes-skipped": {5: "spike", 6: "spike", 9: "spike"},
        "spikes-by-median": {8: "spike"},
        "spikes-rolled-back": {4: "left_out", 5: "left_out", 6: "left_out"},
        "two-rollbacks": {8: "left_out", 9: "left_out"},
        "not-finite-skipped": {3: "non_finite", 4: "non_finite", 8: "non_finite"},
        "not-finite-rolled-back": {1: "left_out", 2: "left_out", 7: "left_out", 8: "left_out", 9: "left_out"},
        "adamw-8bit-refused": {5: "non_finite"},
        "fp16": {5: "overflow"},
        "matrices-rolled-back": {4: "left_out", 5: "left_out", 6: "left_out"},
        "freezing-by-a-rule-rolled-back": {4: "left_out", 5: "left_out", 6: "left_out"},
    }
    assert refused == expected.get(case.name, {})
    state = whole.trainer.state()
    if case.name == "fp16":
        assert state["precision"]["scale"] != 2.0**14
    if case.name == "a-dead-layer":
        assert [kind for kind, _ in whole.said] == ["layer_fault"]
        assert list(state["faulty_layers"]) == ["model.layers.1"]
    if case.most_tokens:
        assert state["relief"] == {"recomputes": True, "most_tokens": whole.trainer.relief.most_tokens}
        assert state["relief"]["most_tokens"] <= min(case.most_tokens.values())
    if case.name == "early-stopping":
        assert state["stopped"]
        assert whole.trainer.step == 6
        assert whole.validation.stopping.best_step == 2
    if "freezing" in case.name:
        table = case.settings["timetable"]
        changes = [kind for kind, _ in whole.said if kind in ("layers_frozen", "layers_unfrozen")]
        assert len(changes) >= (1 if table.rule else 3)
        if table.windows:
            depths = {group.depth for group in whole.trainer.groups}
            assert state["pace"]["frozen"] == sorted(depth for depth in depths if table.share(depth, STEPS - 1) == 0)
    if case.name.startswith("matrices"):
        assert len([kind for kind, _ in whole.said if kind == "matrices_frozen"]) >= 2
        assert len(state["pace"]["scores"]["frozen"]) == len(whole.trainer.pace.scores.all)
    if case.name == "no-stop-in-time":
        assert state["stopped"] is None


STOPPING = next(case for case in CASES if case.name == "early-stopping")


@pytest.mark.parametrize("at", [2, 4, 6])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_in_an_evaluation_changes_neither_the_stop_nor_the_best(tmp_path: Path, at: int, when: str) -> None:
    """After the evaluation of step 6 the run is to stop, and has not saved yet."""
    whole = build(STOPPING, tmp_path / "whole")
    outcome = whole.trainer.run()
    first = cut_run(STOPPING, tmp_path / "cut", STEPS, (at, when))
    again, since = go_on(STOPPING, tmp_path / "cut")
    assert_same_end(whole, again, since=since, first=first)
    assert again.trainer._stopped == outcome.stopped_early


def test_a_stop_that_was_saved_holds_when_the_same_call_comes_again(tmp_path: Path) -> None:
    whole = build(STOPPING, tmp_path)
    outcome = whole.trainer.run()
    again, since = go_on(STOPPING, tmp_path)
    assert since == 6
    assert again.recorder.facts == []
    assert again.trainer.run().stopped_early == outcome.stopped_early
    assert_same_end(whole, again, since=since, first=whole)


@pytest.mark.parametrize("at", [2, 4, 6])
def test_an_evaluation_that_a_signal_interrupted_is_owed_and_made(tmp_path: Path, at: int) -> None:
    whole = build(STOPPING, tmp_path / "whole")
    whole.trainer.run()
    first = build(STOPPING, tmp_path / "cut")
    measure = first.validation.at_interval  # type: ignore[union-attr]

    def interrupted(step: int) -> str | None:
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(step)

    first.validation.at_interval = interrupted  # type: ignore[union-attr,method-assign]
    with pytest.raises(Interrupted):
        first.trainer.run()
    assert first.trainer.saver.saved_step == at
    again, since = go_on(STOPPING, tmp_path / "cut")
    assert since == at
    assert again.validation.seen[0][0] == at  # type: ignore[union-attr]
    assert_same_end(whole, again, since=since, first=first)


def test_skips_in_a_row_are_counted_across_a_crash(tmp_path: Path) -> None:
    """Four in a row are one too many, whether a crash lies between them or not."""
    guards = GuardOptions(non_finite="skip", max_skipped=3)
    case = Case("row", {"guards": guards, "checkpoint_every": 1}, spoil=dict.fromkeys((2, 3, 4, 5), math.nan))
    said = []
    for stop_at in (None, 4, 5):
        folder = tmp_path / str(stop_at)
        if stop_at is not None:
            cut_run(case, folder, stop_at)
        with pytest.raises(GuardStopped) as raised:
            go_on(case, folder)
        said.append(raised.value.what)
    assert "at step 6" in said[0]
    assert said == said[:1] * 3


class Slow:
    """A hook whose state is a list that it goes on filling: a save beside training must not see what came later."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def after_step(self, facts: Any) -> None:
        self.steps.append(facts.step)

    def at_interval(self, step: int) -> str | None:
        return None

    def rewind(self, step: int) -> None:
        self.steps = [item for item in self.steps if item <= step]

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Any) -> None:
        self.steps = list(state["steps"])


def test_a_save_beside_training_holds_the_state_of_its_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(Case("slow"), tmp_path)
    made.trainer.hooks.append(Slow())
    save = made.trainer.checkpoints.save

    def slow_save(checkpoint: Any, **more: Any) -> Any:
        while made.trainer.step < min(checkpoint.step + 2, STEPS):
            pass
        return save(checkpoint, **more)

    monkeypatch.setattr(made.trainer.checkpoints, "save", slow_save)
    made.trainer.run()
    for step in made.trainer.checkpoints.steps():
        checkpoint = made.trainer.checkpoints.load(step)
        assert checkpoint is not None
        assert checkpoint.state["hooks"][-1] == {"steps": list(range(1, step + 1))}


@pytest.mark.parametrize(
    "other",
    [{"micro_batch_size": 2}, {"atom_tokens": 40}, {"micro_batch_size": 1, "atom_tokens": 64}, {"recompute": True}],
    ids=str,
)
def test_another_cutting_after_the_crash_keeps_the_rows_and_the_losses(tmp_path: Path, other: dict[str, Any]) -> None:
    """There are no loader workers: a step's rows are a function of the recipe and the step, whoever cuts it into passes."""
    case = Case("cutting", {"scope": "full"}, source_weights=(1.0, 0.5))
    whole = build(case, tmp_path / "whole")
    whole.trainer.run()
    for stop_at in (4, 7):
        folder = tmp_path / str(stop_at)
        cut_run(case, folder, stop_at)
        changed = {key: value for key, value in other.items() if key != "recompute"}
        touch = (lambda trainer: trainer.model.recompute_activations()) if "recompute" in other else None
        again, since = go_on(replace(case, touch=touch), folder, **changed)
        assert again.objective.rows == {step: whole.objective.rows[step] for step in range(since, STEPS)}
        expected = [facts.loss for facts in whole.recorder.facts if facts.step > since]
        assert [facts.loss for facts in again.recorder.facts] == pytest.approx(expected, rel=1e-5)
        tokens = [(facts.tokens, facts.trained_tokens, facts.tokens_total) for facts in again.recorder.facts]
        assert tokens == [
            (facts.tokens, facts.trained_tokens, facts.tokens_total)
            for facts in whole.recorder.facts
            if facts.step > since
        ]
