"""Losses of labels against closed forms, torch and numbers derived by hand; every one is the same however a step is cut."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.unit.objectives.test_headed import bare, rows, shape
from tunesmith.errors import RecipeError
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.head_shape import HeadShape
from tunesmith.objectives.headed import Headed
from tunesmith.objectives.label_losses import LabelLoss, divergence, loss_of
from tunesmith.recipe.codec import parse
from tunesmith.recipe.heads import ClassifySection
from tunesmith.types import Batch

LOGITS = torch.tensor([[math.log(2), 0.0, 0.0], [0.0, math.log(6), 0.0]])
"""Shares 1/2, 1/4, 1/4 and 1/8, 3/4, 1/8."""
TARGETS = torch.tensor([0, 2])
HOT = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])


def test_class_weights_weigh_the_right_class() -> None:
    loss = LabelLoss(class_weights=(2.0, 1.0, 0.5)).of_one(LOGITS, TARGETS)
    assert loss.tolist() == pytest.approx([2 * math.log(2), 0.5 * math.log(8)])


def test_label_smoothing_spreads_a_share_over_all_labels() -> None:
    loss = LabelLoss(label_smoothing=0.3).of_one(LOGITS, TARGETS)
    mean = (math.log(2) + 2 * math.log(4)) / 3
    other = (2 * math.log(8) + math.log(4 / 3)) / 3
    assert loss.tolist() == pytest.approx([0.7 * math.log(2) + 0.3 * mean, 0.7 * math.log(8) + 0.3 * other])


def test_focal_loss_lets_go_of_what_is_known() -> None:
    loss = LabelLoss(focal_gamma=2.0, class_weights=(3.0, 1.0, 1.0)).of_one(LOGITS, TARGETS)
    assert loss.tolist() == pytest.approx([3 * 0.25 * math.log(2), (7 / 8) ** 2 * math.log(8)])


def test_the_gradient_goes_through_the_focal_factor() -> None:
    logits = LOGITS.double().requires_grad_()
    torch.autograd.gradcheck(lambda z: LabelLoss(focal_gamma=1.5).of_one(z, TARGETS), logits)
    sure = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    LabelLoss(focal_gamma=0.5).of_one(sure, torch.tensor([0])).sum().backward()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


def test_several_labels_each_by_itself() -> None:
    logits = torch.tensor([[0.0, math.log(3)]])
    hot = torch.tensor([[1.0, 0.0]])
    plain = [math.log(2), math.log(4)]
    found = [
        LabelLoss().of_several(logits, hot),
        LabelLoss(class_weights=(5.0, 7.0)).of_several(logits, hot),
        LabelLoss(label_smoothing=0.2).of_several(logits, hot),
        LabelLoss(focal_gamma=2.0).of_several(logits, hot),
    ]
    smooth = 0.9 * math.log(2) + 0.1 * math.log(2) + 0.9 * math.log(4) + 0.1 * math.log(4 / 3)
    expected = [
        sum(plain) / 2,
        (5 * plain[0] + plain[1]) / 2,
        smooth / 2,
        (0.25 * plain[0] + (3 / 4) ** 2 * plain[1]) / 2,
    ]
    assert [item.item() for item in found] == pytest.approx(expected)


def test_divergence_is_half_of_both_relative_entropies() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.2, 0.2, 0.6]])
    expected = 0.5 * ((p * (p / q).log()).sum() + (q * (q / p).log()).sum())
    assert divergence(p.log(), q.log() + 3, each=False).item() == pytest.approx(expected.item(), rel=1e-5)
    a, b = torch.tensor([[0.3, 0.9]]), torch.tensor([[0.6, 0.4]])
    both = [
        0.5
        * (
            (a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log())
            + (b * (b / a).log() + (1 - b) * ((1 - b) / (1 - a)).log())
        )
    ]
    assert divergence(a.logit(), b.logit(), each=True).item() == pytest.approx(both[0].mean().item(), rel=1e-5)
    assert divergence(LOGITS, LOGITS, each=False).tolist() == [0, 0]


def dropping(task: str) -> tuple[CausalLM, HeadShape]:
    return bare(), shape(task=task, dropout=0.3)


@pytest.mark.parametrize("task", ["classify", "multi_label"])
def test_r_drop_is_two_passes_and_their_divergence(task: str) -> None:
    model, head = dropping(task)
    pack = rows(classes_S=HOT)
    objective = Headed(head, seed=2, loss=LabelLoss(rdrop_alpha=0.7))
    objective.parts.train()
    torch.manual_seed(5)
    found = objective(model, pack, {})
    torch.manual_seed(5)
    one, other = objective.logits(model, pack), objective.logits(model, pack)
    assert not torch.equal(one, other)

    def plain(logits: Tensor) -> Tensor:
        if task == "classify":
            return F.cross_entropy(logits, pack.targets_S, reduction="none")
        return F.binary_cross_entropy_with_logits(logits, HOT, reduction="none").mean(-1)

    apart = divergence(one, other, each=task == "multi_label")
    expected = (0.5 * (plain(one) + plain(other)) + 0.7 * apart).sum()
    assert found.totals["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.metrics["divergence"].total.item() == pytest.approx(apart.sum().item(), rel=1e-5)
    assert found.metrics["nll"].total.item() == pytest.approx(0.5 * (plain(one) + plain(other)).sum().item(), rel=1e-5)


def test_weighted_rows_are_divided_by_their_weights_and_their_classes_weights() -> None:
    """Torch's weighted mean, with a row's own weight as if the row stood there as often."""
    model, pack = bare(), rows()
    pack = replace(pack, weights_S=torch.tensor([1.0, 2.0, 0.0, 1.0]))
    weights = (0.5, 2.0, 4.0)
    objective = Headed(shape(), seed=3, loss=LabelLoss(class_weights=weights, label_smoothing=0.1))
    logits = objective.logits(model, pack).detach()
    often = [0, 1, 1, 3]
    expected = F.cross_entropy(logits[often], pack.targets_S[often], weight=torch.tensor(weights), label_smoothing=0.1)
    total, count = objective(model, pack, {}).totals["loss"], objective.counts(pack)["loss"]
    assert (total / count).item() == pytest.approx(expected.item(), rel=1e-5)


LOSSES = [
    LabelLoss(class_weights=(0.5, 2.0, 4.0)), LabelLoss(label_smoothing=0.2), LabelLoss(focal_gamma=2.0),
    LabelLoss(class_weights=(0.5, 2.0, 4.0), rdrop_alpha=0.5),
]  # fmt: skip


@pytest.mark.parametrize("task", ["classify", "multi_label", "tag"])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_the_step_is_the_same_however_it_is_cut(task: str, loss: LabelLoss) -> None:
    pooling: dict[str, Any] = {"pooling": "words"} if task == "tag" else {}
    model, objective = bare(), Headed(shape(task=task, **pooling), seed=1, loss=loss)
    pack = rows(classes_S=HOT)
    whole, counted = _gradient(objective, model, [pack])
    parts = [pack.part(0, 1), pack.part(1, 4)]
    cut, recounted = _gradient(objective, model, parts)
    assert recounted == pytest.approx(counted)
    for name, gradient in whole.items():
        assert (cut[name] - gradient).norm() <= 1e-5 * gradient.norm()


def _gradient(objective: Headed, model: nn.Module, atoms: list[Batch]) -> tuple[dict[str, Tensor], float]:
    objective.parts.zero_grad()
    count = sum(objective.counts(atom)["loss"] for atom in atoms)
    for atom in atoms:
        (objective(model, atom, {}).totals["loss"] / count).backward()
    return {
        name: item.grad.clone() for name, item in objective.parts.named_parameters() if item.grad is not None
    }, float(count)


def test_without_any_of_them_the_loss_is_the_plain_one_bit_for_bit() -> None:
    model, pack = bare(), rows()
    one, other = Headed(shape(), seed=1), Headed(shape(), seed=1, loss=LabelLoss())
    assert torch.equal(one(model, pack, {}).totals["loss"], other(model, pack, {}).totals["loss"])
    assert "nll" not in one(model, pack, {}).metrics


def test_balanced_weights_make_labels_weigh_alike() -> None:
    counts = {"": 100, "a": 10, "b": 30, "c": 60}
    found = loss_of(ClassifySection(class_weights="balanced"), ("a", "b", "c"), counts, several=False).class_weights
    assert found == pytest.approx((100 / 30, 100 / 90, 100 / 180))
    assert found is not None
    assert [weight * counts[label] for weight, label in zip(found, "abc", strict=True)] == pytest.approx([100 / 3] * 3)
    each = loss_of(ClassifySection(class_weights="balanced", multi_label=True), ("a", "b"), counts, several=True)
    assert each.class_weights == pytest.approx((90 / 10, 70 / 30))


def test_weights_are_given_by_label_and_1_where_not() -> None:
    section = ClassifySection(class_weights={"b": 3.0})
    assert loss_of(section, ("a", "b"), {}, several=False).class_weights == (1.0, 3.0)
    with pytest.raises(RecipeError, match="weighs 'x', which is no label of the head") as caught:
        loss_of(ClassifySection(class_weights={"x": 3.0}), ("a", "b"), {}, several=False)
    assert "a, b" in caught.value.hint


@pytest.mark.parametrize(
    ("objective", "needle"),
    [
        ({"type": "classify", "class_weights": {"a": 0}}, "the weight of 'a' is 0: above 0"),
        ({"type": "classify", "class_weights": {"a": -1}}, "the weight of 'a' is -1"),
        ({"type": "tag", "class_weights": {"a": float("inf")}}, "a"),
        ({"type": "classify", "class_weights": "even"}, "class_weights"),
        ({"type": "tag", "label_smoothing": 0.1, "focal_gamma": 2}, "pull against each other"),
        ({"type": "regress", "focal_gamma": 2}, "belongs to"),
        ({"type": "regress", "label_smoothing": 0.1}, "belongs to"),
        ({"type": "regress", "class_weights": "balanced"}, "belongs to `type: classify` and `type: tag`"),
        ({"type": "regress", "rdrop_alpha": 1}, "belongs to"),
    ],
)
def test_what_cannot_be_is_refused_by_name(objective: dict[str, Any], needle: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse({"name": "r", "model": "m", "data": {"train": "a.jsonl"}, "objective": objective})
    assert needle in f"{caught.value.what} {caught.value.hint}"
