"""Size, spectrum and products of updates from their factors, against the dense matrices."""

from __future__ import annotations

import pytest
import torch
from tests.adapter_folders import stirred

from tunesmith.adapters import lora_layer, updates
from tunesmith.adapters.updates import Update, reduced, summed, update_of, updates_of
from tunesmith.recipe.bottleneck import BottleneckSection
from tunesmith.recipe.low_rank import GraloraSection, LoraSection

SECTIONS = {
    "lora": LoraSection(rank=4, alpha=8.0),
    "rslora": LoraSection(rank=4, alpha=8.0, rslora=True),
    "pissa": LoraSection(rank=4, alpha=8.0, init="pissa"),
    "dora": LoraSection(rank=4, alpha=8.0, dora=True),
    "gralora": GraloraSection(rank=4, alpha=8.0, blocks=2, hybrid_rank=2),
}


def pair(seed=0, rank=3, shape=(12, 20)):
    generator = torch.Generator().manual_seed(seed)
    return Update(torch.randn(rank, shape[1], generator=generator), torch.randn(shape[0], rank, generator=generator))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", SECTIONS)
def test_the_update_is_what_merging_adds(make, family, name):
    model = make(family)
    adapter = stirred(model, SECTIONS[name], 0)
    found = updates_of(adapter)
    assert found.keys() == adapter.carriers().keys()
    assert all((update.rank is None) == (name == "dora") for update in found.values())
    before = {key: lora_layer.weight_of(site).clone() for key, site in adapter.carriers().items()}
    adapter.merge(model)
    for key, update in found.items():
        added = lora_layer.weight_of(model.get_submodule(key)) - before[key]
        torch.testing.assert_close(update.dense(), added, rtol=1e-4, atol=1e-5)
        assert update.shape == tuple(added.shape)


def test_a_bottleneck_has_no_updates(make):
    assert updates_of(stirred(make(), BottleneckSection(), 0)) == {}


def test_size_and_spectrum_without_the_matrix():
    update = pair()
    dense = update.dense()
    assert update.norm() == pytest.approx(float(torch.linalg.norm(dense)), rel=1e-6)
    left, values, right = update.directions()
    torch.testing.assert_close(values, torch.linalg.svdvals(dense)[:3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(left @ torch.diag(values) @ right, dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("one", ["factors", "whole"])
@pytest.mark.parametrize("other", ["factors", "whole"])
def test_inner_products(one, other):
    first, second = pair(0), pair(1, rank=5)
    expected = float((first.dense() * second.dense()).sum())
    first = first if one == "factors" else Update(whole=first.dense())
    second = second if other == "factors" else Update(whole=second.dense())
    assert first.inner(second) == pytest.approx(expected, rel=1e-5)


def test_sums_are_exact_and_stay_factors_where_they_can():
    first, second = pair(0), pair(1, rank=5)
    expected = 0.7 * first.dense() - 0.2 * second.dense()
    total = summed([first, second], [0.7, -0.2])
    assert total.rank == 8
    torch.testing.assert_close(total.dense(), expected)
    mixed = summed([first, Update(whole=second.dense())], [0.7, -0.2])
    assert mixed.rank is None
    torch.testing.assert_close(mixed.dense(), expected)


@pytest.mark.parametrize("form", ["factors", "whole"])
def test_reduction_is_the_best_there_is_and_says_what_it_leaves_out(form):
    update = pair(rank=6)
    values = torch.linalg.svdvals(update.dense())
    given = update if form == "factors" else Update(whole=update.dense())
    found, lost = reduced(given, 4)
    assert found.rank == 4
    assert lost == pytest.approx(float(torch.linalg.norm(values[4:])), rel=1e-4)
    assert float(torch.linalg.norm(update.dense() - found.dense())) == pytest.approx(lost, rel=1e-4)
    whole, nothing = reduced(given, 50)
    assert nothing == pytest.approx(0.0, abs=1e-4)
    torch.testing.assert_close(whole.dense(), update.dense(), rtol=1e-4, atol=1e-5)


def test_a_large_dense_matrix_has_its_first_values_by_power_iteration(monkeypatch):
    monkeypatch.setattr(updates, "LARGEST_EXACT", 16)
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(200, 150, generator=generator) * 0.01 + pair(2, rank=5, shape=(200, 150)).dense()
    found = Update(whole=whole).directions().values
    torch.testing.assert_close(found[:5], torch.linalg.svdvals(whole)[:5], rtol=1e-4, atol=1e-4)


def test_a_plain_layer_on_a_quantised_base(make):
    """Factors do not ask what the base is; DoRA's update is from the weight as it multiplies."""
    pytest.importorskip("bitsandbytes")
    from tunesmith.models.quantised import quantise

    model = make()
    quantise(model, "nf4", torch.float32)
    for name in ("lora", "dora"):
        adapter = stirred(model, SECTIONS[name], 0, name)
        place, site = next(iter(adapter.carriers().items()))
        part = adapter.part_at(site)
        found = update_of(site, part)
        torch.testing.assert_close(found.dense(), part.delta(lora_layer.weight_of(site)), rtol=1e-4, atol=1e-5)
        assert place in updates_of(adapter)
