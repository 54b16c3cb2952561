"""Blends against PEFT's functions and closed forms."""

from __future__ import annotations

import pytest
import torch
from peft.utils import merge_utils

from tunesmith.adapters.blending import Blending, agreed, drop, trim


def changes(count=3, shape=(6, 10), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def draws(seed=0):
    return lambda number: torch.Generator().manual_seed(100 * seed + number)


@pytest.mark.parametrize("density", [0.2, 0.5, 0.75])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, 0.2, 0.4), (1.0, -0.5, 0.3)])
def test_ties_is_that_of_peft_on_weighted_changes(density, weights):
    """PEFT elects without weights: it is given the changes multiplied by them."""
    given = changes()
    weighted = [weight * change for weight, change in zip(weights, given, strict=True)]
    expected = merge_utils.ties(weighted, torch.ones(3), density)
    found = Blending("ties", weights, density, normalise=False).of(given, draws())
    torch.testing.assert_close(found, expected)


def test_linear_is_that_of_peft():
    given = changes()
    expected = merge_utils.task_arithmetic(given, torch.tensor([0.5, -1.0, 2.0]))
    torch.testing.assert_close(Blending("linear", (0.5, -1.0, 2.0), normalise=False).of(given, draws()), expected)


@pytest.mark.parametrize(("method", "theirs"), [("dare", "dare_linear"), ("dare-ties", "dare_ties")])
def test_dare_is_that_of_peft_with_the_same_entries_dropped(monkeypatch, method, theirs):
    given, weights, density = changes(), (0.7, 0.2, 0.4), 0.3
    generators = [draws()(number) for number in range(3)]
    masks = iter([(torch.rand(6, 10, generator=generator) < density).float() for generator in generators])
    monkeypatch.setattr(torch, "bernoulli", lambda _: next(masks))
    weighted = [weight * change for weight, change in zip(weights, given, strict=True)]
    expected = getattr(merge_utils, theirs)(weighted, torch.ones(3), density)
    found = Blending(method, weights, density, normalise=False).of(given, draws())
    torch.testing.assert_close(found, expected)


def test_shares_are_divided_by_their_sum():
    given = changes(2)
    found = Blending("linear", (7.0, 3.0)).of(given, draws())
    torch.testing.assert_close(found, 0.7 * given[0] + 0.3 * given[1])
    for method in ("ties", "dare", "dare-ties"):
        one, other = (Blending(method, weights).of(given, draws()) for weights in ((7.0, 3.0), (0.7, 0.3)))
        torch.testing.assert_close(one, other)


def test_the_mean_of_ties_is_over_those_that_agree():
    """By hand: entry 0 all agree; 1 a lone voice; 2 the majority by weight wins against the larger number; 3 nobody."""
    given = [
        torch.tensor([1.0, 0.0, 4.0, 0.0]),
        torch.tensor([2.0, 0.0, -1.0, 0.0]),
        torch.tensor([4.0, 3.0, -1.0, 0.0]),
    ]
    found = agreed(given, (0.5, 0.25, 0.25), weighted=True)
    torch.testing.assert_close(found, torch.tensor([0.5 + 0.5 + 1.0, 3.0, 4.0, 0.0]))
    found = agreed(given, (0.5, 0.25, 0.25), weighted=False)
    torch.testing.assert_close(found, torch.tensor([2.0 / 3, 0.75, 2.0, 0.0]))


@pytest.mark.parametrize("method", ["linear", "ties", "dare", "dare-ties"])
def test_a_blend_of_one_change_with_itself_is_the_change(method):
    change = changes(1)[0]
    found = Blending(method, (0.7, 0.3), density=1.0).of([change, change], draws())
    torch.testing.assert_close(found, change)


def test_trim_keeps_the_largest_and_at_least_one():
    change = torch.tensor([[0.1, -3.0], [2.0, 0.5]])
    assert torch.equal(trim(change, 0.5), torch.tensor([[0.0, -3.0], [2.0, 0.0]]))
    assert torch.equal(trim(change, 0.01), torch.tensor([[0.0, -3.0], [0.0, 0.0]]))


def test_drop_keeps_the_expectation_and_its_share():
    change = torch.full((200, 200), 2.0)
    dropped = drop(change, 0.25, torch.Generator().manual_seed(0))
    assert set(dropped.unique().tolist()) == {0.0, 8.0}
    # 40,000 draws: the share is within 5 standard deviations, 5 · sqrt(0.25 · 0.75 / 40000)
    assert abs(float((dropped != 0).float().mean()) - 0.25) < 5 * (0.25 * 0.75 / 40_000) ** 0.5
    assert torch.equal(dropped, drop(change, 0.25, torch.Generator().manual_seed(0)))
    assert not torch.equal(dropped, drop(change, 0.25, torch.Generator().manual_seed(1)))
