"""Heads: what they read, what they cost, and that cutting a step changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tests.tiny import batch, family
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.head_shape import HeadShape
from tunesmith.models.task_head import FEATURES, TaskHead, pool
from tunesmith.objectives.headed import CLASSES, VALUES, Headed
from tunesmith.types import Batch

LENGTHS = (5, 12, 1, 9)


def rows(targets: tuple[int, ...] = (2, 0, 1, 2), lengths: tuple[int, ...] = LENGTHS, **extras: torch.Tensor) -> Batch:
    """A pack whose scored positions are its documents."""
    pack = batch(lengths)
    return replace(
        pack,
        scored_S=pack.starts_D1[1:].long() - 1,
        targets_S=torch.tensor(targets),
        weights_S=torch.ones(len(lengths)),
        document_S=torch.arange(len(lengths)),
        extras=extras,
    )


def bare() -> CausalLM:
    model = CausalLM(family("llama"))
    model.drop_head()
    return model


def shape(**changes: object) -> HeadShape:
    return HeadShape(**{"task": "classify", "kind": "linear", "inputs": 32, "outputs": 3, **changes})  # type: ignore[arg-type]


def test_pooling_takes_last_first_and_mean_of_each_document() -> None:
    pack = rows()
    hidden = torch.randn(sum(LENGTHS), 32)
    parts = hidden.split(list(LENGTHS))
    assert torch.equal(pool(hidden, pack, "last"), torch.stack([part[-1] for part in parts]))
    assert torch.equal(pool(hidden, pack, "first"), torch.stack([part[0] for part in parts]))
    assert torch.allclose(pool(hidden, pack, "mean"), torch.stack([part.mean(0) for part in parts]), atol=1e-6)
    words = replace(pack, scored_S=torch.tensor([1, 6]))
    assert torch.equal(pool(hidden, words, "words"), hidden[[1, 6]])


def test_the_loss_of_a_class_is_cross_entropy_of_the_pooled_state() -> None:
    model, objective, pack = bare(), Headed(shape(), seed=5), rows()
    loss = objective(model, pack, {})
    hidden = torch.stack([model.hidden(batch(LENGTHS))[end - 1] for end in pack.starts_D1[1:].tolist()])
    logits = hidden @ objective.head.out.weight.T + objective.head.out.bias
    assert loss.totals["loss"].item() == pytest.approx(
        F.cross_entropy(logits, pack.targets_S, reduction="sum").item(), rel=1e-5
    )
    assert objective.counts(pack)["loss"] == 4
    right = (logits.argmax(-1) == pack.targets_S).sum()
    assert (loss.metrics["accuracy"].total, loss.metrics["accuracy"].count) == (right, 4)


def test_a_row_of_no_weight_counts_for_nothing() -> None:
    model, objective, pack = bare(), Headed(shape()), rows()
    light = replace(pack, weights_S=torch.tensor([1.0, 0.0, 1.0, 1.0]))
    other = replace(light, targets_S=torch.tensor([2, 2, 1, 2]))
    assert objective(model, light, {}).totals["loss"] == objective(model, other, {}).totals["loss"]
    assert objective.counts(light)["loss"] == 3
    assert objective(model, light, {}).metrics["accuracy"].count == 3


def test_a_number_costs_its_squared_error_and_labels_their_binary_cross_entropy() -> None:
    model = bare()
    values = torch.tensor([0.5, -1.0, 2.0, 0.0])
    number = Headed(shape(task="regress", outputs=1), seed=2)
    said = number.logits(model, rows(value_S=values))[:, 0]
    assert number(model, rows(value_S=values), {}).totals["loss"].item() == pytest.approx(
        ((said - values) ** 2).sum().item(), rel=1e-5
    )
    hot = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    several = Headed(shape(task="multi_label"), seed=2)
    pack = rows(classes_S=hot)
    p = torch.sigmoid(several.logits(model, pack))
    expected = -(hot * p.log() + (1 - hot) * (1 - p).log()).mean(-1).sum()
    assert several(model, pack, {}).totals["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert (VALUES, CLASSES) == ("value_S", "classes_S")


def test_an_mlp_is_dense_activation_and_output() -> None:
    for activation, function in (("tanh", torch.tanh), ("gelu", F.gelu)):
        head = TaskHead(shape(kind="mlp", width=8, activation=activation), seed=1)
        x = torch.randn(5, 32)
        expected = function(x @ head.dense.weight.T + head.dense.bias) @ head.out.weight.T + head.out.bias
        assert torch.allclose(head(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    "made",
    [shape(), shape(bias=False), shape(kind="mlp", width=8), shape(kind="mlp", width=32, norm=True, dense_bias=False)],
)
def test_a_shape_counts_what_its_head_has(made: HeadShape) -> None:
    assert made.num_parameters == sum(item.numel() for item in TaskHead(made).parameters())


def test_a_head_starts_as_its_seed_says() -> None:
    one, same, other = (TaskHead(shape(), seed) for seed in (3, 3, 4))
    assert torch.equal(one.out.weight, same.out.weight)
    assert not torch.equal(one.out.weight, other.out.weight)
    assert 0.01 < one.out.weight.std() < 0.03
    assert not one.out.bias.any()


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_step_is_the_same_however_it_is_cut(pooling: str) -> None:
    model, objective, pack = bare(), Headed(shape(pooling=pooling), seed=1), rows()
    whole = objective(model, pack, {}).totals["loss"]
    whole.backward()
    expected = [item.grad.clone() for item in objective.parts.parameters() if item.grad is not None]
    for item in objective.parts.parameters():
        item.grad = None
    parts = [objective(model, pack.part(first, last), {}).totals["loss"] for first, last in ((0, 2), (2, 4))]
    sum(parts).backward()  # type: ignore[union-attr]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)  # type: ignore[union-attr]
    for item, gradient in zip(objective.parts.parameters(), expected, strict=True):
        assert item.grad is not None
        assert (item.grad - gradient).norm() <= 1e-5 * gradient.norm()


def test_features_that_were_kept_stand_in_for_the_model() -> None:
    model, objective, pack = bare(), Headed(shape(), seed=1), rows()
    kept = pool(model.hidden(pack), pack, "last").detach()
    carried = replace(pack, extras={FEATURES: kept})

    def refuses(*_: object) -> None:
        raise AssertionError("the model is not asked")

    assert torch.allclose(objective.logits(model, pack), objective.logits(refuses, carried))  # type: ignore[arg-type]


def test_a_layer_in_the_middle_is_read() -> None:
    model, pack = bare(), rows()
    objective = Headed(shape(layer=1), seed=1)
    hidden = model.hidden(pack, 1)
    assert not torch.allclose(hidden, model.hidden(pack))
    assert torch.allclose(objective.logits(model, pack), objective.head(pool(hidden, pack, "last")))
