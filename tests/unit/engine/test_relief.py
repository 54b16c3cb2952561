"""Memory that runs out: recompute, then cut at document borders; the step stays the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.loops import LENGTHS, Recorder, make_trainer
from tests.tiny import batch
from tunesmith.engine.relief import is_out_of_memory
from tunesmith.engine.trainer import Trainer
from tunesmith.errors import GateRefused, GuardStopped
from tunesmith.objectives.next_token import NextToken
from tunesmith.types import Loss


class Small(NextToken):
    """A machine that holds so many tokens of a pass, twice as many when activations are recomputed."""

    def __init__(self, most_tokens: int, *, from_step: int = 0) -> None:
        super().__init__()
        self.most_tokens, self.from_step = most_tokens, from_step
        self.trainer: Any = None

    def __call__(self, model: Any, batch: Any, seen: Any) -> Loss:
        room = self.most_tokens * (2 if self.trainer.relief.recomputes else 1)
        loss = super().__call__(model, batch, seen)
        if batch.num_tokens > room and self.trainer.step >= self.from_step:
            loss.totals["loss"].backward()  # half of the work is in the gradients already
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss


def make(folder: Path, objective: Any = None, **changes: Any) -> tuple[Trainer, Recorder, list[str]]:
    said: list[str] = []
    trainer, recorder = make_trainer(
        folder, objective=objective, say=lambda kind, text: said.append(f"{kind}: {text}"), **changes
    )
    if objective is not None:
        objective.trainer = trainer
    return trainer, recorder, said


@pytest.mark.parametrize("from_step", [0, 4])
def test_measures_are_taken_in_order_and_the_numbers_stay(tmp_path: Path, from_step: int) -> None:
    """Steps have up to some 140 tokens: at 33 a pass, twice that when recomputing, passes must be cut too."""
    plain, plain_facts, _ = make(tmp_path / "plain", scope="full")
    plain.run()
    tight, tight_facts, said = make(tmp_path / "tight", Small(33, from_step=from_step), scope="full")
    if from_step:
        tight.stream.heaviest = lambda: None  # type: ignore[method-assign] - as if the rehearsal had fitted
    tight.run()
    kinds = [line.partition(":")[0] for line in said]
    assert kinds[0] == "recompute_on"
    assert set(kinds[1:]) == {"passes_cut"}
    assert f"step {from_step + 1}: a pass of" in said[0]
    assert tight.relief.most_tokens is not None
    assert tight.relief.most_tokens <= 66
    for ours, theirs in zip(tight_facts.facts, plain_facts.facts, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.tokens == theirs.tokens
    first, other = tight_facts.facts[0], plain_facts.facts[0]
    assert first.loss == pytest.approx(other.loss, rel=1e-6)
    assert first.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)


def test_the_rehearsal_finds_the_longest_row_before_step_one(tmp_path: Path) -> None:
    trainer, recorder, said = make(tmp_path, Small(8))
    trainer.reckoning.name_row = trainer.relief.name_row = trainer.name_row = lambda row: f"file.jsonl:{row}"
    with pytest.raises(GateRefused) as raised:
        trainer.run()
    longest = LENGTHS.index(max(LENGTHS))
    assert raised.value.exit_code == 3
    assert f"row file.jsonl:{longest} with 33 tokens does not fit into memory by itself" in raised.value.what
    assert "training.recompute" in raised.value.hint
    assert recorder.facts == []
    assert any(line.startswith("recompute_on") for line in said)


def test_in_training_it_is_a_guard_that_stops(tmp_path: Path) -> None:
    trainer, recorder, _ = make(tmp_path, Small(8, from_step=3))
    with pytest.raises(GuardStopped) as raised:
        trainer.run()
    assert raised.value.exit_code == 4
    assert "memory ran out at step 4" in raised.value.what
    assert len(recorder.facts) == 3


def test_dropout_is_said(tmp_path: Path) -> None:
    trainer, _, said = make(tmp_path, Small(33), dropout=0.1, has_dropout=True)
    trainer.run()
    assert "dropout draws other masks" in next(line for line in said if line.startswith("passes_cut"))


def test_another_error_is_not_swallowed(tmp_path: Path) -> None:
    class Broken(NextToken):
        def __call__(self, model: Any, batch: Any, seen: Any) -> Loss:
            raise RuntimeError("shapes differ")

    trainer, _, _ = make(tmp_path)
    trainer.gradients.objective = Broken()
    with pytest.raises(RuntimeError, match="shapes differ"):
        trainer.run()


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_parts_of_a_pack_hold_its_documents() -> None:
    whole = batch([5, 3, 7, 2], trained_from=2)
    pieces = [whole.part(0, 1), whole.part(1, 3), whole.part(3, 4)]
    assert torch.equal(torch.cat([piece.input_ids_T for piece in pieces]), whole.input_ids_T)
    assert torch.equal(torch.cat([piece.targets_S for piece in pieces]), whole.targets_S)
    assert [piece.lengths for piece in pieces] == [(5,), (3, 7), (2,)]
    assert [piece.rows for piece in pieces] == [(0,), (1, 2), (3,)]
    middle = pieces[1]
    assert middle.starts_D1.tolist() == [0, 3, 10]
    assert torch.equal(middle.input_ids_T[middle.scored_S + 1], middle.targets_S)
    assert middle.document_S.tolist() == [0, 1, 1, 1, 1, 1]
    assert middle.positions_T.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 6]
