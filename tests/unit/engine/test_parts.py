"""Parts of an objective train, are saved and come back like everything else that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.loops import Cut, make_trainer
from tunesmith.engine.parts import parts_groups
from tunesmith.engine.randomness import use_deterministic
from tunesmith.objectives.next_token import NextToken


class Scaled(NextToken):
    """Next token with a scale that is learnt, and a matrix that nothing reads."""

    rate_factor = 4.0

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterDict({"scale": nn.Parameter(torch.ones(1)), "matrix": nn.Parameter(torch.ones(2, 2))})

    def __call__(self, model: Any, batch: Any, seen: Any) -> Any:
        loss = super().__call__(model, batch, seen)
        scale = self.parts["scale"].square().sum() + self.parts["matrix"].square().sum()
        return type(loss)({"loss": loss.totals["loss"] * scale}, loss.metrics)


@pytest.fixture(autouse=True)
def _deterministic() -> Any:
    use_deterministic(True)
    yield
    use_deterministic(False)


def test_parts_are_groups_of_their_own_with_their_own_rate(tmp_path: Path) -> None:
    objective = Scaled()
    trainer, _ = make_trainer(tmp_path, objective=objective)
    groups = {group.name: group for group in parts_groups(objective)}
    vectors, matrices = groups["parts, vectors"], groups["parts, matrices"]
    assert [name for name, _ in vectors.parameters] == ["parts.scale"]
    assert [name for name, _ in matrices.parameters] == ["parts.matrix"]
    assert (vectors.decay, matrices.decay) == (False, True)
    assert {vectors.rate_factor, matrices.rate_factor} == {4.0}
    assert trainer.optimiser.groups[-1].rate_factor == 4.0
    assert [group.name for group in trainer.groups][-2:] == ["parts, matrices", "parts, vectors"]


def test_an_objective_without_parts_adds_no_group(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path)
    assert [group.name for group in trainer.groups] == [group.name for group in trainer.adapter.groups()]


def test_parts_train_and_resume_with_equal_bits(tmp_path: Path) -> None:
    whole, facts = make_trainer(tmp_path / "whole", objective=Scaled())
    whole.run()
    assert whole.objective.parts["scale"].item() != 1.0  # type: ignore[index]
    cut, _ = make_trainer(tmp_path / "cut", objective=Scaled(), stop_after=6)
    with pytest.raises(Cut):
        cut.run()
    again, rest = make_trainer(tmp_path / "cut", objective=Scaled())
    checkpoint = again.checkpoints.newest()
    assert checkpoint is not None
    assert "parts/scale" in checkpoint.trained
    again.restore(checkpoint)
    again.run()
    for name, tensor in whole.objective.parts.state_dict().items():
        assert torch.equal(tensor, again.objective.parts.state_dict()[name]), name
    assert [one.loss for one in facts.facts][4:] == [one.loss for one in rest.facts]
    state = again.optimiser.state()
    assert any(name.startswith("parts.scale/") for name in state)
    for name, tensor in whole.optimiser.state().items():
        assert torch.equal(tensor, state[name]), name
