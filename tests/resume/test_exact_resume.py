"""A run that was cut and goes on has the bits of the run that was not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from tests.loops import VIRTUAL, Cut, make_trainer
from tunesmith.engine.randomness import use_deterministic


@pytest.fixture(autouse=True)
def _deterministic() -> object:
    use_deterministic(True)
    yield
    use_deterministic(False)


@pytest.mark.parametrize("scope", ["lora", "lora with tokens", "bottleneck", "full", *VIRTUAL])
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_cut_at_a_random_step_the_rest_is_bit_equal(tmp_path: Path, scope: str, optimiser: str) -> None:
    settings = {"scope": scope, "dropout": 0.0 if scope == "full" else 0.1, "optimiser": optimiser}
    whole, whole_facts = make_trainer(tmp_path / "whole", **settings)
    whole.run()
    cut_at = random.randrange(1, 12)
    cut, cut_facts = make_trainer(tmp_path / "cut", stop_after=cut_at, **settings)
    with pytest.raises(Cut):
        cut.run()
    again, again_facts = make_trainer(tmp_path / "cut", **settings)
    checkpoint = again.checkpoints.newest()
    saved = cut_at // 4 * 4
    assert (checkpoint.step if checkpoint else 0) == saved
    torch.rand(17)  # randomness of the process must not matter
    if checkpoint is not None:
        again.restore(checkpoint)
    again.run()
    expected = {facts.step: (facts.loss, facts.grad_norm) for facts in whole_facts.facts}
    found = {facts.step: (facts.loss, facts.grad_norm) for facts in [*cut_facts.facts, *again_facts.facts]}
    assert found == expected, f"cut after step {cut_at}"
    state = again.adapter.state()
    for name, tensor in whole.adapter.state().items():
        assert torch.equal(tensor, state[name]), name
    optimiser_state = again.optimiser.state()
    for name, tensor in whole.optimiser.state().items():
        assert torch.equal(tensor, optimiser_state[name]), name


def test_two_runs_have_the_same_bits_and_another_seed_has_others(tmp_path: Path) -> None:
    losses = []
    for number, seed in enumerate((0, 0, 1)):
        trainer, recorder = make_trainer(tmp_path / str(number), dropout=0.2, seed=seed)
        trainer.run()
        losses.append([facts.loss for facts in recorder.facts])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
