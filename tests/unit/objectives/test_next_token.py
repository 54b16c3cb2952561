"""Losses of the next token: worked numbers, torch's own formulae, and what holds at the edges."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.tiny import VOCABULARY, batch, family
from tunesmith.models.causal_lm import CausalLM
from tunesmith.objectives import build
from tunesmith.objectives.next_token import NLL, NextToken
from tunesmith.recipe.objectives import ClmSection, SftSection
from tunesmith.types import Batch, Outputs

SHARES = torch.tensor([0.7, 0.2, 0.1])
"""Of three tokens; the target is the first, at both positions of a worked example."""


class Fixed:
    """A model that gives the same three shares everywhere."""

    def __init__(self, shares: Tensor = SHARES) -> None:
        self.log_V = shares.log()
        self.wanted: list[tuple[str, ...]] = []

    def __call__(self, batch: Batch, want: Collection[str] = ("logprob",)) -> Outputs:
        self.wanted.append(tuple(want))
        count = len(batch.targets_S)
        mean = self.log_V.mean().expand(count) if "mean_logprob" in want else None
        return Outputs(logprob_S=self.log_V[0].expand(count), mean_logprob_S=mean)


def weighted(*weights: float) -> Batch:
    made = batch([len(weights) + 1])
    return Batch(**{**vars(made), "weights_S": torch.tensor(weights)})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0.3566749),  # -ln 0.7
        ({"label_smoothing": 0.1}, 0.4632973),  # 0.9 · 0.3566749 + 0.1 · (0.3566749 + 1.6094379 + 2.3025851) / 3
        ({"focal_gamma": 2.0}, 0.03210075),  # 0.3² · 0.3566749
        ({"focal_gamma": 0.5}, 0.1953589),  # √0.3 · 0.3566749
    ],
)
def test_worked_numbers(settings: dict[str, float], expected: float) -> None:
    """Two positions of weights 1 and 3: four times the loss of one, over a count of four."""
    loss = NextToken(**settings)(Fixed(), weighted(1.0, 3.0), {})
    assert loss.totals["loss"].item() == pytest.approx(4 * expected, rel=1e-6)
    assert NextToken(**settings).counts(weighted(1.0, 3.0))["loss"].item() == 4.0


def test_the_plain_loss_is_told_beside_another_and_not_twice() -> None:
    smoothed = NextToken(label_smoothing=0.1)(Fixed(), weighted(1.0, 3.0), {})
    assert (smoothed.metrics[NLL].total / smoothed.metrics[NLL].count).item() == pytest.approx(0.3566749, rel=1e-6)
    assert NextToken()(Fixed(), weighted(1.0), {}).metrics == {}


def test_the_mean_over_the_vocabulary_is_asked_for_only_where_it_is_needed() -> None:
    for settings in ({}, {"focal_gamma": 2.0}):
        model = Fixed()
        NextToken(**settings)(model, weighted(1.0), {})
        assert model.wanted == [("logprob",)]


def dense(model: CausalLM, pack: Batch) -> Tensor:
    """Logits ``[S, V]`` at scored positions, each document alone through transformers."""
    found, start = [], 0
    with model.plain_attention() as hf:
        for length in pack.lengths:
            ids = pack.input_ids_T[start : start + length]
            found.append(hf(input_ids=ids[None], use_cache=False).logits[0])
            start += length
    return torch.cat(found)[pack.scored_S]


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_label_smoothing_is_torchs(name: str, smoothing: float) -> None:
    """Values and gradients of every parameter, the head's among them."""
    model, pack = CausalLM(family(name)), batch([9, 4, 13], trained_from=2)
    total = NextToken(label_smoothing=smoothing)(model, pack, {}).totals["loss"]
    total.backward()
    ours = gradients(model)
    expected = F.cross_entropy(dense(model, pack), pack.targets_S, label_smoothing=smoothing, reduction="sum")
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    expected.backward()
    compare(ours, gradients(model))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_loss_is_the_formula_on_dense_logits(gamma: float) -> None:
    model, pack = CausalLM(family("llama")), batch([9, 4, 13])
    total = NextToken(focal_gamma=gamma)(model, pack, {}).totals["loss"]
    total.backward()
    ours = gradients(model)
    share_S = dense(model, pack).softmax(-1).gather(1, pack.targets_S[:, None])[:, 0]
    expected = (-((1 - share_S) ** gamma) * share_S.log()).sum()
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    expected.backward()
    compare(ours, gradients(model))


@pytest.mark.parametrize("gamma", [0.25, 1.0, 2.0])
def test_a_token_that_is_certain_gives_no_loss_and_a_finite_gradient(gamma: float) -> None:
    logprob_S = torch.tensor([0.0, 1e-7, -1e-9, -80.0], requires_grad=True)
    loss_S = NextToken(focal_gamma=gamma).losses(Outputs(logprob_S=logprob_S))
    loss_S.sum().backward()
    assert loss_S[:3].abs().max() < 1e-6
    assert loss_S[3].item() == pytest.approx(80.0)
    assert logprob_S.grad is not None
    assert bool(logprob_S.grad.isfinite().all())
    assert logprob_S.grad[3].item() == pytest.approx(-1.0)


def test_smoothing_is_least_where_the_model_has_the_smoothed_shares() -> None:
    """The minimum of the smoothed loss over distributions is the smoothed target: 1 − ε + ε/V and ε/V."""
    smoothing = 0.3
    loss = NextToken(label_smoothing=smoothing)
    best = torch.tensor([0.8, 0.1, 0.1])
    at_best = loss(Fixed(best), weighted(1.0), {}).totals["loss"].item()
    for shares in ([0.98, 0.01, 0.01], [0.79, 0.11, 0.1], [0.81, 0.1, 0.09], [0.4, 0.3, 0.3]):
        assert loss(Fixed(torch.tensor(shares)), weighted(1.0), {}).totals["loss"].item() > at_best


@pytest.mark.parametrize("section", [SftSection, ClmSection])
def test_a_section_reaches_the_loss(section: Any) -> None:
    assert vars(build(section(label_smoothing=0.2)))["label_smoothing"] == 0.2
    assert vars(build(section(focal_gamma=1.5)))["focal_gamma"] == 1.5
    plain = vars(build(section()))
    assert (plain["label_smoothing"], plain["focal_gamma"]) == (0.0, 0.0)


def gradients(model: CausalLM) -> dict[str, Tensor]:
    found = {name: item.grad.clone() for name, item in model.hf.named_parameters() if item.grad is not None}
    model.zero_grad(set_to_none=True)
    assert len(found) > VOCABULARY // 10
    return found


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-5, msg=name)
