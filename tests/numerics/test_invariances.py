"""A step does not depend on how it is cut: atoms, packing, micro-batches. fp32, dropout off (DESIGN §5)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.loops import LENGTHS, VIRTUAL, MemoryStore, make_trainer
from tunesmith.data.loader import PackedStream, StreamOptions
from tunesmith.objectives.next_token import NextToken

CUTS = [
    {"atom_tokens": 4096}, {"atom_tokens": 64}, {"atom_tokens": 33}, {"micro_batch_size": 1}, {"micro_batch_size": 3}
]  # fmt: skip
WEIGHTS = (np.arange(len(LENGTHS)) % 5).astype(np.float32) / 2


@pytest.mark.parametrize("scope", ["lora", "lora with tokens", "full", *VIRTUAL])
def test_one_step_has_the_same_loss_and_gradient_norm_however_it_is_cut(tmp_path: Path, scope: str) -> None:
    found = []
    for number, cut in enumerate(CUTS):
        trainer, recorder = make_trainer(tmp_path / str(number), scope=scope, total_steps=1, **cut)
        trainer.run()
        found.append(recorder.facts[0])
    for facts in found[1:]:
        assert facts.loss == pytest.approx(found[0].loss, rel=1e-6)
        assert facts.grad_norm == pytest.approx(found[0].grad_norm, rel=1e-5)
        assert facts.tokens == found[0].tokens


@pytest.mark.parametrize("scope", ["lora", "lora with tokens", "full", "prompt"])
def test_forty_steps_stay_together(tmp_path: Path, scope: str) -> None:
    losses = []
    for number, cut in enumerate(CUTS[:1] + CUTS[2:4]):
        trainer, recorder = make_trainer(
            tmp_path / str(number), scope=scope, total_steps=40, checkpoint_every=40, **cut
        )
        trainer.run()
        losses.append([facts.loss for facts in recorder.facts])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("settings", [{"label_smoothing": 0.1}, {"focal_gamma": 2.0}], ids=str)
def test_weighted_losses_of_another_shape_do_not_depend_on_the_cutting(
    tmp_path: Path, settings: dict[str, float]
) -> None:
    found = []
    for number, cut in enumerate(CUTS):
        trainer, recorder = make_trainer(
            tmp_path / str(number), objective=NextToken(**settings), scope="lora with tokens", total_steps=1, **cut
        )
        trainer.stream.store.weights = WEIGHTS  # type: ignore[attr-defined]
        trainer.run()
        found.append(recorder.facts[0])
    for facts in found[1:]:
        assert facts.loss == pytest.approx(found[0].loss, rel=1e-6)
        assert facts.grad_norm == pytest.approx(found[0].grad_norm, rel=1e-5)
        assert facts.metrics["nll"] == pytest.approx(found[0].metrics["nll"], rel=1e-6)
    assert found[0].loss != pytest.approx(found[0].metrics["nll"], rel=1e-3)


def test_packs_leave_room_for_virtual_tokens() -> None:
    """A pass of 30 tokens holds three rows of 10, and two with 4 virtual tokens in front of each."""
    store: Any = MemoryStore([10] * 8)
    options = StreamOptions(batch_size=8, total_steps=1, atom_tokens=30, seed=0)
    plain, virtual = PackedStream(store, options), PackedStream(store, replace(options, virtual_tokens=4))
    assert [len(batch.lengths) for batch in plain.atoms(0)] == [3, 3, 2]
    assert [len(batch.lengths) for batch in virtual.atoms(0)] == [2, 2, 2, 2]
    assert plain.rows_of(0).tolist() == virtual.rows_of(0).tolist()
    assert [len(stream.heaviest().lengths) for stream in (plain, virtual)] == [3, 2]  # type: ignore[union-attr]
    assert {batch.num_tokens for batch in virtual.atoms(0)} == {20}, "batches do not hold them"


def test_the_loss_is_the_mean_over_all_trained_tokens_of_the_step(tmp_path: Path) -> None:
    """Not the mean of the atoms' means: computed here by plain cross-entropy over each document alone."""
    trainer, recorder = make_trainer(tmp_path, total_steps=1, micro_batch_size=1)
    rows = trainer.stream.rows_of(0)  # type: ignore[attr-defined]
    store = trainer.stream.store  # type: ignore[attr-defined]
    total, count = 0.0, 0
    with trainer.model.plain_attention() as hf, torch.no_grad():
        for row in rows:
            ids, _ = store.row(int(row))
            tensor = torch.from_numpy(ids.astype("int64"))[None]
            logits = hf(input_ids=tensor, use_cache=False).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, tensor[0, 1:], reduction="sum").item()
            count += tensor.shape[1] - 1
    trainer.run()
    assert recorder.facts[0].loss == pytest.approx(total / count, rel=1e-5)


def test_a_weighted_step_is_the_weighted_mean_by_plain_cross_entropy(tmp_path: Path) -> None:
    """Each document alone through transformers; a row of weight 0 changes nothing, one of weight 2 counts twice."""
    trainer, recorder = make_trainer(tmp_path, total_steps=1, atom_tokens=64)
    rows = trainer.stream.rows_of(0)  # type: ignore[attr-defined]
    store = trainer.stream.store  # type: ignore[attr-defined]
    store.weights = WEIGHTS
    assert {0.0, 2.0} <= {float(WEIGHTS[row]) for row in rows}
    total = count = 0.0
    with trainer.model.plain_attention() as hf, torch.no_grad():
        for row in rows:
            tensor = torch.from_numpy(store.row(int(row))[0].astype("int64"))[None]
            logits = hf(input_ids=tensor, use_cache=False).logits[0, :-1]
            weight = float(WEIGHTS[row])
            total += weight * torch.nn.functional.cross_entropy(logits, tensor[0, 1:], reduction="sum").item()
            count += weight * (tensor.shape[1] - 1)
    trainer.run()
    assert recorder.facts[0].loss == pytest.approx(total / count, rel=1e-5)
