"""Merging, and several adapters on one model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tunesmith.adapters.lora import LoraAdapter
from tunesmith.recipe.adapters import LoraSection
from tunesmith.types import CannotMerge

FAMILIES = ["llama", "llama-tied", "gpt2", "qwen3"]


def attach(model, seed=0, name="default", **settings):
    adapter = LoraAdapter(LoraSection(**{"rank": 4, "alpha": 8.0, **settings}), seed)
    adapter.attach(model, name)
    return adapter


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_logits_equal_the_attached_ones_and_the_model_is_plain_again(make, ids, stir, family):
    model = make(family)
    plain = [(name, type(module)) for name, module in model.named_modules()]
    keys = list(model.state_dict())
    adapter = attach(model, also_train=["*norm*" if family != "gpt2" else "*ln_*"])
    stir(adapter)
    attached = logits(model, ids)
    adapter.merge(model)
    assert relative(logits(model, ids), attached) <= 1e-5
    assert [(name, type(module)) for name, module in model.named_modules()] == plain
    assert list(model.state_dict()) == keys
    with pytest.raises(RuntimeError, match="not attached"):
        adapter.merge(model)


def test_merge_sums_in_fp32_and_casts_once(make, stir):
    model = make("llama", torch.bfloat16)
    adapter = attach(model, targets=["q_proj"])
    stir(adapter, size=0.02)
    layer = model.model.layers[0].self_attn.q_proj
    weight = layer.weight.detach().clone()
    A, B = (adapter.state()[f"model.layers.0.self_attn.q_proj.lora_{half}.weight"].clone() for half in "AB")
    adapter.merge(model)
    assert torch.equal(layer.weight, (weight.float() + 2.0 * (B @ A)).bfloat16())


def test_a_shared_weight_cannot_be_merged(stir):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    adapter = attach(model, targets=["0"])
    stir(adapter)
    before = model[0].weight.detach().clone()
    with pytest.raises(CannotMerge, match="shared by 0, 1"):
        adapter.merge(model)
    assert torch.equal(model[0].weight, before)


def test_one_module_under_two_names_is_adapted_and_merged_once(stir):
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, layer)
    adapter = attach(model, targets=["all-linear"])
    assert len(adapter.state()) == 2
    stir(adapter)
    x = torch.randn(3, 4)
    attached = model(x).detach()
    adapter.merge(model)
    torch.testing.assert_close(model(x).detach(), attached, rtol=1e-5, atol=1e-6)


def test_several_adapters_by_name(make, ids, stir):
    model = make()
    base = logits(model, ids)
    first = attach(model, name="first", also_train=["*norm*"])
    stir(first, seed=1)
    alone = logits(model, ids)
    second = attach(model, name="second", targets=["mlp.*"], also_train=["*embed_tokens*"])
    assert torch.equal(logits(model, ids), base), "a new adapter starts from the base, alone"
    assert not any(p.requires_grad for group in first.groups() for _, p in group.parameters)
    stir(second, seed=2)
    other = logits(model, ids)
    with second.active(("first",)):
        assert torch.equal(logits(model, ids), alone)
        assert not any(p.requires_grad for group in first.groups() for _, p in group.parameters)
    with first.active(("second", "first")):
        both = logits(model, ids)
    assert not torch.equal(both, alone)
    assert not torch.equal(both, other)
    with second.active(()):
        assert torch.equal(logits(model, ids), base)
    assert torch.equal(logits(model, ids), other)
    assert all(p.requires_grad for group in second.groups() for _, p in group.parameters)
    second.detach()
    with first.active(("first",)):
        assert torch.equal(logits(model, ids), alone)
    first.detach()
    assert torch.equal(logits(model, ids), base)


def test_merging_one_of_two_leaves_the_other(make, ids, stir):
    model = make()
    first, second = attach(model, name="first"), attach(model, name="second", targets=["attention"])
    stir(first, seed=1)
    stir(second, seed=2)
    with first.active(("first", "second")):
        both = logits(model, ids)
    first.merge(model)
    with second.active(("second",)):
        assert relative(logits(model, ids), both) <= 1e-5


def test_two_adapters_that_train_one_parameter_cannot_both_be_active(make):
    model = make()
    first = attach(model, name="first", also_train=["*norm*"])
    second = attach(model, name="second", also_train=["model.norm.weight"])
    with pytest.raises(ValueError, match=r"both train `model\.norm\.weight`"), first.active(("first", "second")):
        pass
    with pytest.raises(CannotMerge, match="keeps base values"):
        second.merge(model)
