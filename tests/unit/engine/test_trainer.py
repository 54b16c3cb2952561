"""The loop: guard, clipping, decay, accumulation, early stopping, signals."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.loops import Recorder, make_trainer
from tunesmith.engine.stopping import EarlyStopping
from tunesmith.errors import GuardStopped, Interrupted
from tunesmith.objectives.next_token import NextToken
from tunesmith.types import Loss


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    trainer, recorder = make_trainer(tmp_path, scope="full", total_steps=30, checkpoint_every=30)
    outcome = trainer.run()
    assert outcome.steps == 30
    assert recorder.facts[-1].loss < 0.8 * recorder.facts[0].loss


def test_a_step_that_is_not_finite_is_not_applied_and_stops_the_run(tmp_path: Path) -> None:
    before: dict[str, torch.Tensor] = {}

    class Poisoned(NextToken):
        def __call__(self, model: Any, batch: Any, seen: Any) -> Loss:
            loss = super().__call__(model, batch, seen)
            if trainer.step == 3:
                before.update({name: tensor.clone() for name, tensor in trainer.adapter.state().items()})
                loss.totals["loss"] = loss.totals["loss"] * math.nan
            return loss

    trainer, recorder = make_trainer(tmp_path, scope="full", objective=Poisoned())
    with pytest.raises(GuardStopped) as raised:
        trainer.run()
    assert raised.value.exit_code == 4
    assert "step 4" in raised.value.what
    assert "rows" in raised.value.where
    assert len(recorder.facts) == 3
    for name, tensor in trainer.adapter.state().items():
        assert torch.equal(tensor, before[name]), name


def test_decay_moves_matrices_and_leaves_vectors_and_embeddings(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, scope="full", weight_decay=0.5)
    decays = {
        name: group["weight_decay"]
        for group, members in zip(trainer.optimiser.torch.param_groups, trainer.optimiser.groups, strict=True)
        for name, _ in members.parameters
    }
    assert decays["model.layers.0.mlp.up_proj.weight"] == 0.5
    assert decays["model.layers.0.input_layernorm.weight"] == 0.0
    assert decays["model.norm.weight"] == 0.0
    assert decays["model.embed_tokens.weight"] == 0.0


def test_clipping_bounds_the_norm_that_the_optimiser_sees(tmp_path: Path) -> None:
    """SGD without momentum moves the weights by rate times the clipped gradient, whose norm is the bound."""
    trainer, recorder = make_trainer(
        tmp_path,
        scope="full",
        optimiser="sgd",
        momentum=0.0,
        clip=0.01,
        weight_decay=0.0,
        total_steps=1,
        warmup_steps=0,
    )
    before = {name: tensor.clone() for name, tensor in trainer.adapter.state().items()}
    trainer.run()
    moved = math.sqrt(
        sum(float((tensor - before[name]).pow(2).sum()) for name, tensor in trainer.adapter.state().items())
    )
    assert recorder.facts[0].grad_norm > 0.01
    assert moved == pytest.approx(trainer.options.learning_rate * 0.01, rel=1e-3)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    trainer, recorder = make_trainer(tmp_path)

    class Killer(Recorder):
        def after_step(self, facts: object) -> None:
            if facts.step == 5:  # type: ignore[attr-defined]
                os.kill(os.getpid(), signal.SIGTERM)

    trainer.hooks.append(Killer())
    with pytest.raises(Interrupted) as raised:
        trainer.run()
    assert raised.value.exit_code == 130
    assert "same command" in raised.value.hint
    again, more = make_trainer(tmp_path)
    again.hooks.append(Recorder())
    checkpoint = again.checkpoints.newest()
    assert checkpoint is not None
    assert checkpoint.step in (5, 6)
    again.restore(checkpoint)
    assert again.run().steps == 12
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert [facts.step for facts in [*recorder.facts, *more.facts]] == list(range(1, 13))


def test_early_stopping_waits_and_remembers_the_best() -> None:
    stopping = EarlyStopping(patience=2, min_delta=0.1)
    assert stopping.see(1, 3.0) is None
    assert stopping.see(2, 2.95) is None
    assert stopping.see(3, 2.5) is None
    assert stopping.see(4, 2.6) is None
    copy = EarlyStopping(patience=2, min_delta=0.1)
    copy.load_state_dict(stopping.state_dict())
    said = copy.see(5, 2.45)
    assert said is not None
    assert "step 3" in said
    assert copy.best_step == 3


def test_early_stopping_on_a_measure_of_which_more_is_better() -> None:
    """Equal is not better, and neither is a gain of no more than ``min_delta``."""
    stopping = EarlyStopping(patience=2, min_delta=0.05, name="exact match", higher=True)
    assert stopping.see(1, 0.5) is None
    assert stopping.see(2, 0.54) is None
    assert stopping.waited == 1
    assert stopping.see(3, 0.7) is None
    assert stopping.see(4, 0.7) is None
    assert stopping.see(5, 0.1) == "exact match has not improved for 2 evaluations; the best was 0.7000 at step 3"
    assert stopping.best_step == 3


def test_a_best_of_nothing_is_a_best() -> None:
    stopping = EarlyStopping(patience=1, higher=True)
    assert stopping.see(2, 0.0) is None
    assert stopping.best_step == 2
    assert stopping.see(4, 0.0) is not None


def test_the_best_step_gets_a_checkpoint_of_its_own_between_the_due_ones(tmp_path: Path) -> None:
    """Evaluations need not fall on checkpoints: the step that early stopping wants back is on disk all the same."""
    trainer, _ = make_trainer(tmp_path, total_steps=12, checkpoint_every=5, evaluate_every=3)

    class Best(Recorder):
        best = 0

        def at_interval(self, step: int) -> str | None:
            self.best = 3 if step >= 3 else 0
            return None

        def state_dict(self) -> dict[str, object]:
            return {"best_step": self.best}

    trainer.hooks.append(Best())
    trainer.run()
    assert trainer.checkpoints.steps() == [3, 12]
    assert trainer.checkpoints.load(3) is not None
    assert trainer.checkpoints.load(4) is None
