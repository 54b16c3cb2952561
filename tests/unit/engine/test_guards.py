"""Numbers gone wrong: never applied, and stop, skip or roll back as asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.loops import OPTIONS, Recorder, make_trainer
from tunesmith.engine.level import LossLevel
from tunesmith.engine.recovery import GuardOptions
from tunesmith.engine.spikes import SpikeOptions
from tunesmith.engine.trainer import Trainer
from tunesmith.errors import GuardStopped
from tunesmith.objectives.next_token import NextToken
from tunesmith.types import Batch, Loss


class Spoiling(NextToken):
    """Multiplies the loss of chosen passes."""

    def __init__(self, factor: float, when: Callable[[Batch], bool]) -> None:
        super().__init__()
        self.factor, self.when = factor, when
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, model: Any, batch: Any, seen: Any) -> Loss:
        self.seen.append(batch.rows)
        loss = super().__call__(model, batch, seen)
        if self.when(batch):
            loss.totals["loss"] = loss.totals["loss"] * self.factor
        return loss


def at_steps(*indices: int) -> Callable[[Batch], bool]:
    """Passes of these steps, counted from 0: a pass tells how far training is."""
    return lambda batch: round(batch.progress * OPTIONS.total_steps) in indices and batch.progress > 0


def holds(row: int) -> Callable[[Batch], bool]:
    return lambda batch: row in batch.rows


def make(folder: Path, objective: NextToken | None = None, **changes: Any) -> tuple[Trainer, Recorder, list[str]]:
    said: list[str] = []
    trainer, recorder = make_trainer(
        folder, objective=objective, say=lambda kind, text: said.append(f"{kind}: {text}"), **changes
    )
    return trainer, recorder, said


def test_a_skipped_step_leaves_weights_and_moments_as_they_were(tmp_path: Path) -> None:
    """After the skipped step, the run equals one that takes the same later steps from the same state."""
    states: dict[int, dict[str, torch.Tensor]] = {}

    class Keeper(Recorder):
        def after_step(self, facts: Any) -> None:
            super().after_step(facts)
            tensors = {**trainer.adapter.state(), **trainer.optimiser.state()}
            states[facts.step] = {name: tensor.clone() for name, tensor in tensors.items()}

    trainer, recorder, said = make(
        tmp_path, Spoiling(math.nan, at_steps(3)), guards=GuardOptions(non_finite="skip"), scope="full"
    )
    trainer.hooks.append(Keeper())
    outcome = trainer.run()
    assert outcome.steps == 12
    assert trainer.reckoning.updates == 11
    assert [facts.step for facts in recorder.facts if not facts.applied] == [4]
    assert recorder.facts[3].refused_by == "non_finite"
    for name, tensor in states[4].items():
        assert torch.equal(tensor, states[3][name]), name
    assert any(not torch.equal(tensor, states[4][name]) for name, tensor in states[5].items())
    assert [line for line in said if line.startswith("step_skipped")] == [
        "step_skipped: loss or gradient was not finite at step 4 (loss nan, gradient norm nan); that step was not applied, training goes on"
    ]


def test_too_many_skips_in_a_row_end_the_run(tmp_path: Path) -> None:
    trainer, recorder, _ = make(
        tmp_path, Spoiling(math.inf, at_steps(2, 5, 6, 7, 8)), guards=GuardOptions(non_finite="skip", max_skipped=3)
    )
    with pytest.raises(GuardStopped) as raised:
        trainer.run()
    assert raised.value.exit_code == 4
    assert "at step 9" in raised.value.what
    assert "3 steps before it were skipped" in raised.value.what
    assert [facts.step for facts in recorder.facts if not facts.applied] == [3, 6, 7, 8]


@pytest.mark.parametrize("checkpoint_every", [1, 4, 100])
def test_a_rollback_goes_around_and_equals_a_run_that_left_the_steps_out(tmp_path: Path, checkpoint_every: int) -> None:
    """Row 5 comes once an epoch of three steps; the steps that hold it and the one before are left out."""
    settings = {"guards": GuardOptions(non_finite="rollback", rollback_window=1, max_rollbacks=9), "dropout": 0.1}
    objective = Spoiling(math.nan, holds(5))
    trainer, recorder, said = make(tmp_path / "a", objective, checkpoint_every=checkpoint_every, **settings)
    outcome = trainer.run()
    assert outcome.steps == 12
    bad = [index for index in range(12) if 5 in trainer.stream.rows_of(index)]  # type: ignore[attr-defined]
    assert len(bad) == 4
    left_out = {index for last in bad for index in (last - 1, last) if index >= 0}
    assert trainer.recovery.left_out == left_out
    assert len([line for line in said if line.startswith("rolled_back")]) == len(bad) == trainer.recovery.rollbacks
    other, other_facts, _ = make(tmp_path / "b", Spoiling(math.nan, lambda batch: False), **settings)
    other.recovery.left_out = set(left_out)
    other.run()
    for name, tensor in other.adapter.state().items():
        assert torch.equal(tensor, trainer.adapter.state()[name]), name
    assert [(facts.step, facts.applied) for facts in recorder.facts] == [
        (facts.step, facts.applied) for facts in other_facts.facts
    ]
    losses = [(facts.loss, facts.grad_norm) for facts in recorder.facts if facts.applied]
    assert losses == [(facts.loss, facts.grad_norm) for facts in other_facts.facts if facts.applied]


def test_a_rollback_that_does_not_help_goes_further_back_and_then_gives_up(tmp_path: Path) -> None:
    broken = Spoiling(math.nan, lambda batch: batch.progress >= 0.5)
    trainer, _, said = make(
        tmp_path, broken, checkpoint_every=2, guards=GuardOptions(non_finite="rollback", rollback_window=0)
    )
    with pytest.raises(GuardStopped) as raised:
        trainer.run()
    assert "after 3 rollbacks" in raised.value.what
    back = [line for line in said if line.startswith("rolled_back")]
    assert ["back to the checkpoint of step 6" in line for line in back] == [True, False, False]
    assert "back to the checkpoint of step 4" in back[1]
    assert trainer.checkpoints.newest() is not None


def test_a_crash_after_a_rollback_takes_the_same_way_again(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "guards": GuardOptions(non_finite="rollback", max_rollbacks=9), "checkpoint_every": 4, "dropout": 0.1,
    }  # fmt: skip
    whole, _, _ = make(tmp_path / "whole", Spoiling(math.nan, holds(5)), **settings)
    whole.run()
    for stop_after in (3, 5, 8, 11):
        folder = tmp_path / str(stop_after)
        cut, _, _ = make(folder, Spoiling(math.nan, holds(5)), stop_after=stop_after, **settings)
        with pytest.raises(Exception, match=str(stop_after)):
            cut.run()
        again, _, _ = make(folder, Spoiling(math.nan, holds(5)), **settings)
        checkpoint = again.checkpoints.newest()
        assert checkpoint is not None
        again.restore(checkpoint)
        again.run()
        for name, tensor in whole.adapter.state().items():
            assert torch.equal(tensor, again.adapter.state()[name]), (stop_after, name)
        assert again.recovery.left_out == whole.recovery.left_out


def test_a_poisoned_row_is_named_alone(tmp_path: Path) -> None:
    trainer, _, _ = make(tmp_path, Spoiling(math.nan, holds(5)), micro_batch_size=3)
    trainer.reckoning.name_row = lambda row: f"file.jsonl:{row}"
    with pytest.raises(GuardStopped) as raised:
        trainer.run()
    assert "1 of the step's rows are not finite by themselves" in raised.value.what
    assert raised.value.where.endswith("rows file.jsonl:5")
    assert "data show" in raised.value.hint


def test_damaged_weights_of_the_base_are_named(tmp_path: Path) -> None:
    trainer, _, _ = make(tmp_path)
    with torch.no_grad():
        trainer.model.hf.model.layers[1].mlp.up_proj.weight[3, 2] = math.nan
    with pytest.raises(GuardStopped) as raised:
        trainer.run()
    assert "Weights of the base are not finite: model.layers.1.mlp.up_proj.weight" in raised.value.what
    assert "copy them again" in raised.value.hint


def test_a_rising_loss_before_points_at_the_rate(tmp_path: Path) -> None:
    trainer, _, _ = make(
        tmp_path, Spoiling(math.inf, at_steps(9)), scope="full", learning_rate=5.0, warmup_steps=0, schedule="constant"
    )
    with pytest.raises(GuardStopped) as raised:
        trainer.run()
    assert "The loss was rising" in raised.value.what
    assert "training.learning_rate=5.0e-01" in raised.value.hint


def test_an_update_that_spoils_the_weights_stops_at_once(tmp_path: Path) -> None:
    trainer, recorder, _ = make(tmp_path, scope="full", learning_rate=1e38, warmup_steps=0, clip=None)
    with pytest.raises(GuardStopped) as raised:
        trainer.run()
    assert "left weights that are not finite at step 1" in raised.value.what
    assert recorder.facts == []
    assert trainer.checkpoints.steps() == []


def test_a_spike_is_skipped_once_half_the_window_is_known(tmp_path: Path) -> None:
    spikes = SpikeOptions(window=8, threshold=6.0, statistic="median")  # an early spike would widen a deviation
    early, late = 2, 9
    trainer, recorder, said = make(tmp_path, Spoiling(50.0, at_steps(early, late)), spikes=spikes, learning_rate=1e-5)
    trainer.run()
    assert [facts.step for facts in recorder.facts if not facts.applied] == [late + 1]
    assert recorder.facts[late].refused_by == "spike"
    assert len([line for line in said if line.startswith("step_skipped")]) == 1


def test_a_spike_may_roll_back_or_stop(tmp_path: Path) -> None:
    for action in ("rollback", "stop"):
        spikes = SpikeOptions(window=8, action=action)  # type: ignore[arg-type]
        trainer, _, said = make(tmp_path / action, Spoiling(50.0, at_steps(9)), spikes=spikes, learning_rate=1e-5)
        if action == "stop":
            with pytest.raises(GuardStopped, match="stood out at step 10"):
                trainer.run()
        else:
            assert trainer.run().steps == 12
            assert "back to the checkpoint of step 4" in "".join(said)
            assert trainer.recovery.left_out == {7, 8, 9}


def test_a_loss_that_rises_and_stays_is_divergence() -> None:
    level = LossLevel()
    falling = [3.0 - 0.02 * step for step in range(60)]
    assert [level.see(loss) for loss in falling] == [None] * 60
    copy = LossLevel()
    copy.load_state_dict(level.state_dict())
    # the first 8 have the median 2.93, so that 6.86 is too high; 16 of the last 32 must be above for their median to be
    risen = [next((number for number in range(64) if item.see(12.0)), None) for item in (level, copy)]
    assert risen == [15, 15], "the median of 32 lies between the 16th and the 17th: (12 + 2) / 2 is above the bound"


def test_a_loss_that_rises_late_is_compared_with_the_lowest_stretch() -> None:
    level = LossLevel()
    losses = [3.0] * 8 + [1.0] * 128
    assert [level.see(loss) for loss in losses] == [None] * len(losses)
    assert next(number for number in range(64) if level.see(2.6)) == 16, "2.5 is the bound, and 1.8 is not above it"


def test_a_noisy_loss_that_does_not_rise_is_left_alone() -> None:
    """Single rows, from a log-normal with median 1.6 and deviation 0.7 of its logarithm, over 20,000 steps."""
    generator = torch.Generator().manual_seed(0)
    losses = (torch.randn(20_000, generator=generator) * 0.7).exp() * 1.6
    level = LossLevel()
    assert not any(level.see(loss) for loss in losses.tolist())


def test_divergence_stops_warns_or_is_off(tmp_path: Path) -> None:
    def rising(policy: str) -> tuple[Trainer, Recorder, list[str]]:
        objective = Spoiling(6.0, lambda batch: batch.progress > 0.2)
        return make(
            tmp_path / policy, objective, total_steps=60, learning_rate=1e-6,
            guards=GuardOptions(divergence=policy),  # type: ignore[arg-type]
        )  # fmt: skip

    trainer, recorder, _ = rising("stop")
    with pytest.raises(GuardStopped) as raised:
        trainer.run()
    assert "training diverged: the loss rose from" in raised.value.what
    assert "rows" not in raised.value.where
    assert 30 < len(recorder.facts) < 60
    trainer, _, said = rising("warn")
    assert trainer.run().steps == 60
    assert len([line for line in said if line.startswith("diverging")]) == 1
    trainer, _, said = rising("off")
    assert trainer.run().steps == 60
    assert not any(line.startswith("diverging") for line in said)


def test_fp16_overflow_halves_the_scale_and_is_no_fault_until_the_scale_is_one(tmp_path: Path) -> None:
    trainer, recorder, _ = make(tmp_path / "a", Spoiling(math.inf, at_steps(2, 3)), precision="fp16", total_steps=12)
    first = trainer.precision.state_dict()["scale"]
    trainer.run()
    assert [facts.step for facts in recorder.facts if not facts.applied] == [3, 4]
    assert recorder.facts[2].refused_by == "overflow"
    assert trainer.precision.state_dict() == {"scale": first / 4, "good_steps": 8}
    assert trainer.reckoning.updates == 10
    stuck, facts, _ = make(tmp_path / "b", Spoiling(math.nan, lambda batch: True), precision="fp16", total_steps=30)
    with pytest.raises(GuardStopped) as raised:
        stuck.run()
    assert "at step 15" in raised.value.what, "2^14 is halved 14 times"
    assert len(facts.facts) == 14
