"""FLOPs against the table of performance.md §3, and time, energy, money and disk from them."""

from __future__ import annotations

import pytest

from tunesmith.planning.cost import disk_bytes, energy, flops_per_token, price, run_flops, run_time
from tunesmith.planning.scope import scope_of
from tunesmith.planning.settings import Counts, counts_of_lengths
from tunesmith.planning.speeds import Speed
from tunesmith.recipe.adapters import FullSection, LoraSection, PartialSection
from tunesmith.recipe.machine import MachineSection

GIGA = 1e9


def all_scored(facts, section, settings) -> float:
    """FLOPs of a token of a document of 4,096 tokens that is also scored."""
    cost = flops_per_token(facts, scope_of(facts, section), settings, 4096)
    return cost.per_token + cost.per_scored


def test_llama_8b_at_4096(facts_8b, make_settings) -> None:
    """Llama-3.1-8B, sequence 4,096: 48.25 GF a token full, 33.49 with LoRA r16; recompute adds 15.03.

    Our trained head computes its softmax twice: 2 · 4096 · 128256 beyond the table.
    """
    again = 2 * 4096 * 128256
    plain = make_settings()
    recompute = make_settings(recompute=True)
    assert all_scored(facts_8b, FullSection(), plain) - again == pytest.approx(48.25 * GIGA, rel=1e-3)
    assert all_scored(facts_8b, LoraSection(rank=16), plain) == pytest.approx(33.49 * GIGA, rel=1e-3)
    assert all_scored(facts_8b, FullSection(), recompute) - again == pytest.approx(63.28 * GIGA, rel=1e-3)
    assert all_scored(facts_8b, LoraSection(rank=16), recompute) == pytest.approx(48.61 * GIGA, rel=1e-3)


def test_partial_lies_between_and_pays_nothing_below_its_first_layer(facts_8b, make_settings) -> None:
    cost = lambda section: flops_per_token(facts_8b, scope_of(facts_8b, section), make_settings(), 0.0).per_token  # noqa: E731
    layer = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    assert cost(PartialSection(last_layers=1)) == pytest.approx(2 * 32 * layer + 4 * layer)
    assert cost(PartialSection(last_layers=32)) == pytest.approx(6 * 32 * layer)


def test_window_bounds_attention(facts_8b, make_settings) -> None:
    from dataclasses import replace

    windowed = replace(facts_8b, sliding_window=1024)
    scope = scope_of(facts_8b, LoraSection())
    full = flops_per_token(facts_8b, scope, make_settings(), 1024).per_token
    assert flops_per_token(windowed, scope, make_settings(), 4096).per_token == full


def test_run_counts_every_epoch_and_only_scored_tokens_reach_the_head(tiny, make_settings) -> None:
    scope = scope_of(tiny, LoraSection())
    settings = make_settings(total_steps=25, steps_per_epoch=10)
    counts = Counts(rows=100, tokens=1000, trained_tokens=200, attended=12.0)
    cost = flops_per_token(tiny, scope, settings, 12.0)
    assert run_flops(tiny, scope, settings, counts) == pytest.approx(
        2.5 * (1000 * cost.per_token + 200 * cost.per_scored)
    )


def test_time_joins_both_intervals() -> None:
    counts = Counts(rows=1, tokens=100, trained_tokens=1, exact=False, low=90, high=120)
    time = run_time(1e12, Speed(1e11, 1.25, 3, "measured"), counts)
    assert time is not None
    assert (time.seconds, time.low, time.high) == pytest.approx((10.0, 10 * 0.9 / 1.25, 10 * 1.2 * 1.25))
    assert run_time(1e12, None, counts) is None


def test_energy_and_price_only_where_stated() -> None:
    time = run_time(3600e9, Speed(1e9, 1.1, 1, "measured"), Counts(1, 1, 1))
    assert energy(time, MachineSection(watts=250.0)) == {"watt_hours": 250.0, "watts": 250.0}
    assert price(time, MachineSection(price_per_hour=2.5)) == {"amount": 2.5, "per_hour": 2.5}
    assert energy(time, MachineSection()) is price(time, MachineSection()) is None
    assert energy(None, MachineSection(watts=250.0)) is price(None, MachineSection(price_per_hour=1.0)) is None


def test_disk_holds_kept_checkpoints_and_one_in_writing(tiny, make_settings) -> None:
    scope = scope_of(tiny, LoraSection(rank=2))
    counts = Counts(rows=1, tokens=50, trained_tokens=1, stored_tokens=70)
    parts = disk_bytes(tiny, scope, make_settings(), counts, best_kept=False)
    assert parts["checkpoints"] == 3 * 12 * scope.num_trainable
    assert parts["result"] == 4 * scope.num_trainable
    assert parts["token_cache"] == 5 * 70
    assert (
        disk_bytes(tiny, scope, make_settings(), counts, best_kept=True)["checkpoints"] == 4 * 12 * scope.num_trainable
    )
    single = make_settings(total_steps=3, checkpoint_every=3)
    assert disk_bytes(tiny, scope, single, counts, best_kept=True)["checkpoints"] == 2 * 12 * scope.num_trainable
    full = disk_bytes(tiny, scope_of(tiny, FullSection()), make_settings(), counts, best_kept=False)
    assert full["result"] == 4 * tiny.num_parameters


def test_counts_of_lengths() -> None:
    counts = counts_of_lengths([2, 4, 6], 9)
    assert (counts.rows, counts.tokens, counts.trained_tokens, counts.longest) == (3, 12, 9, 6)
    assert counts.attended == pytest.approx((4 + 16 + 36) / 12)
    weighted = counts_of_lengths([2, 4, 6], 9, weights=[2.0, 0.5, 1.0])
    assert (weighted.rows, weighted.tokens) == (4, 12)
    assert Counts.from_json(counts.to_json()).tokens == 12
