"""A weighted sum: each part is the mean over its own tokens of the whole step, however packs are made of the step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import batch, family
from tunesmith.errors import RecipeError
from tunesmith.models.causal_lm import CausalLM
from tunesmith.objectives import build
from tunesmith.objectives.next_token import NextToken
from tunesmith.objectives.weighted_sum import PARTS, WeightedSum
from tunesmith.recipe.codec import parse
from tunesmith.recipe.objectives import SumSection
from tunesmith.types import Batch

LENGTHS = (9, 14, 6, 11)
MEMBERS = (0, 1, 1, 0)


def pack() -> Batch:
    made = batch(list(LENGTHS))
    weights = torch.linspace(0.5, 2.0, len(made.weights_S))
    return replace(made, weights_S=weights, extras={PARTS: torch.tensor(MEMBERS)})


def summed(**first: float) -> WeightedSum:
    return WeightedSum([("sft", 1.0, NextToken(**first)), ("clm", 0.25, NextToken(label_smoothing=0.1))])  # type: ignore[arg-type]


def gradients(objective: WeightedSum, model: CausalLM, atoms: list[Batch]) -> tuple[float, dict[str, Tensor]]:
    """The step's loss and gradients, as the engine makes them."""
    model.zero_grad()
    counts = {name: sum(objective.counts(atom)[name] for atom in atoms) for name in ("sft", "clm")}
    total = 0.0
    for atom in atoms:
        share = sum(value / counts[name] for name, value in objective(model, atom, {}).totals.items())
        assert isinstance(share, Tensor)
        share.backward()
        total += share.item()
    return total, {name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None}


def test_each_part_is_the_mean_of_its_own_tokens() -> None:
    model, whole = CausalLM(family("llama")), pack()
    objective = summed(focal_gamma=2.0)
    found = objective(model, whole, {})
    outputs = model(whole, want=("logprob", "mean_logprob"))
    logprob, mean = outputs.logprob_S, outputs.mean_logprob_S
    assert logprob is not None
    assert mean is not None
    member = torch.tensor(MEMBERS)[whole.document_S]
    losses = [(1 - logprob.exp()) ** 2 * -logprob, -0.9 * logprob - 0.1 * mean]
    for number, (name, factor) in enumerate((("sft", 1.0), ("clm", 0.25))):
        weights = torch.where(member == number, whole.weights_S, 0.0)
        assert objective.counts(whole)[name].item() == pytest.approx(weights.sum().item())
        assert found.totals[name].item() == pytest.approx(factor * (weights * losses[number]).sum().item(), rel=1e-5)
        plain = found.metrics[f"nll_{name}"]
        assert (plain.total / plain.count).item() == pytest.approx(
            ((weights * -logprob).sum() / weights.sum()).item(), rel=1e-5
        )
    assert found.metrics["nll"].count.item() == pytest.approx(whole.weights_S.sum().item())


@pytest.mark.parametrize("cut", [[(0, 1), (1, 4)], [(0, 2), (2, 4)], [(0, 1), (1, 2), (2, 3), (3, 4)]], ids=str)
def test_the_step_is_the_same_however_it_is_cut(cut: list[tuple[int, int]]) -> None:
    """Cuts in which a pass holds rows of one part alone are among them."""
    model, objective, whole = CausalLM(family("llama")), summed(), pack()
    loss, expected = gradients(objective, model, [whole])
    again, found = gradients(objective, model, [whole.part(first, last) for first, last in cut])
    assert again == pytest.approx(loss, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm().clamp_min(1e-8), name


def test_a_part_counts_the_same_however_few_tokens_are_its_own() -> None:
    """Twice the rows of one part leave its mean, and so its say in the sum, as they were."""
    model, objective = CausalLM(family("llama")), WeightedSum([("sft", 1.0, NextToken()), ("clm", 1.0, NextToken())])
    one, twice = _of((9, 14), (0, 1)), _of((9, 14, 14), (0, 1, 1))
    loss, expected = gradients(objective, model, [one])
    again, found = gradients(objective, model, [twice])
    assert again == pytest.approx(loss, rel=1e-5)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm().clamp_min(1e-8), name


def _of(lengths: tuple[int, ...], members: tuple[int, ...]) -> Batch:
    """A pack whose rows of one length are the same row."""
    whole = batch(list(dict.fromkeys(lengths)))
    rows = [whole.part(place, place + 1) for place in range(len(whole.lengths))]
    chosen = [rows[list(dict.fromkeys(lengths)).index(length)] for length in lengths]
    starts = [sum(lengths[:place]) for place in range(len(lengths) + 1)]
    joined: dict[str, Any] = {
        name: torch.cat([getattr(row, name) for row in chosen])
        for name in ("input_ids_T", "positions_T", "targets_S", "weights_S")
    }
    return replace(
        whole, **joined, lengths=lengths, starts_D1=torch.tensor(starts, dtype=torch.int32), rows=tuple(range(len(lengths))),
        scored_S=torch.cat([row.scored_S + start for row, start in zip(chosen, starts, strict=False)]),
        document_S=torch.cat([row.document_S + place for place, row in enumerate(chosen)]),
        extras={PARTS: torch.tensor(members)},
    )  # fmt: skip


def test_one_part_is_that_loss_alone() -> None:
    model, whole = CausalLM(family("llama")), replace(pack(), extras={PARTS: torch.zeros(4, dtype=torch.int64)})
    alone, single = NextToken(), WeightedSum([("sft", 1.0, NextToken())])
    assert torch.equal(single(model, whole, {}).totals["sft"], alone(model, whole, {}).totals["loss"])
    assert isinstance(single.parts, nn.Module)


def test_the_recipe_builds_it() -> None:
    built = build(SumSection())
    assert isinstance(built, WeightedSum)
    assert set(built.counts(pack())) == {"sft", "clm"}


@pytest.mark.parametrize(
    ("parts", "needle"),
    [
        ([{"type": "sft", "weight": 0}, {"type": "clm", "weight": 0}], "the weights of the parts sum to 0"),
        ([{"type": "sft", "weight": -1}, {"type": "clm"}], "weight"),
        ([{"type": "sft"}, {"type": "sft", "weight": 2}], "two parts are `sft`: a row would belong to both"),
        ([{"type": "sft", "rdrop_alpha": 1}], "`rdrop_alpha` of the part `sft`"),
        ([{"type": "classify"}], "classify"),
        ([], "parts"),
    ],
)
def test_sums_that_cannot_be_are_refused(parts: list[dict[str, Any]], needle: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse({"name": "r", "model": "m", "data": {"train": "a"}, "objective": {"type": "sum", "parts": parts}})
    assert needle in f"{caught.value.what} {caught.value.where} {caught.value.hint}"
