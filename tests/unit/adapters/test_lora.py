from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from tunesmith.adapters import build
from tunesmith.adapters.lora import LoraAdapter
from tunesmith.errors import RecipeError, RunError
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


@pytest.mark.parametrize("family", FAMILIES)
def test_the_start_is_the_base_and_only_the_adapter_trains(make, ids, family):
    model = make(family)
    base = logits(model, ids)
    adapter = attach(model)
    assert torch.equal(logits(model, ids), base)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    listed = [p for group in adapter.groups() for _, p in group.parameters]
    assert trained == {id(p) for p in listed}
    assert len(listed) == len(adapter.state())


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_values_of_the_base_stay(make, family):
    model = make(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attach(model)
    after = model.state_dict()
    assert [name for name in after if ".added." not in name] == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_active_is_the_untouched_base_bit_for_bit(make, ids, stir, family, dtype):
    model = make(family, dtype)
    base = logits(model, ids)
    adapter = attach(
        model, also_train=["*norm*" if family != "gpt2" else "*ln_*", "*embed_tokens*" if family != "gpt2" else "*wte*"]
    )
    stir(adapter)
    tuned = logits(model, ids)
    assert not torch.equal(tuned, base)
    with adapter.active(()):
        assert torch.equal(logits(model, ids), base)
        with adapter.active(("default",)):
            assert torch.equal(logits(model, ids), tuned)
        assert torch.equal(logits(model, ids), base)
    assert torch.equal(logits(model, ids), tuned)


def test_an_error_inside_the_context_still_switches_back(make, ids, stir):
    model = make()
    adapter = attach(model, also_train=["*norm*"])
    stir(adapter)
    tuned = logits(model, ids)
    with pytest.raises(KeyError), adapter.active(()):
        raise KeyError
    assert torch.equal(logits(model, ids), tuned)


def test_a_graph_from_before_the_reference_pass_gives_the_same_gradients(make, ids, stir):
    """DPO: policy forward, reference forward with the adapter off, then backward of the first."""

    def gradients(with_reference):
        model = make("llama-tied")
        adapter = attach(model, also_train=["*embed_tokens*", "*norm*"])
        stir(adapter)
        loss = model(ids, labels=ids).loss
        if with_reference:
            with torch.no_grad(), adapter.active(()):
                model(ids)
        loss.backward()
        return {name: p.grad for group in adapter.groups() for name, p in group.parameters}

    plain, referenced = gradients(False), gradients(True)
    assert all(torch.equal(plain[name], referenced[name]) for name in plain)


def test_single_layer_by_hand(stir):
    """y = W x + s B A x: dL/dB = s g (A x)^T, dL/dA = s B^T g x^T, dL/dx = W^T g + s A^T B^T g."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3))
    weight, bias = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    adapter = attach(model, rank=2, alpha=3.0, targets=["0"])
    stir(adapter)
    state = adapter.state()
    A, B, s = state["0.lora_A.weight"], state["0.lora_B.weight"], 3.0 / 2
    x_NI = torch.randn(4, 5, requires_grad=True)
    g_NO = torch.randn(4, 3)
    y_NO = model(x_NI)
    y_NO.backward(g_NO)
    x = x_NI.detach()
    torch.testing.assert_close(y_NO.detach(), x @ weight.T + bias + s * x @ A.T @ B.T)
    grads = {name: p.grad for group in adapter.groups() for name, p in group.parameters}
    torch.testing.assert_close(grads["0.lora_B.weight"], s * g_NO.T @ (x @ A.T))
    torch.testing.assert_close(grads["0.lora_A.weight"], s * (g_NO @ B).T @ x)
    torch.testing.assert_close(x_NI.grad, g_NO @ weight + s * g_NO @ B @ A)
    assert model[0].weight.grad is None


def test_a_is_uniform_within_the_bound_and_fixed_by_seed_and_name(make):
    first, again, other = attach(make()).state(), attach(make()).state(), attach(make(), seed=1).state()
    few = attach(make(), targets=["v_proj"]).state()
    key = "model.layers.1.self_attn.v_proj.lora_A.weight"
    assert torch.equal(first[key], again[key])
    assert torch.equal(first[key], few[key]), "other layers must not matter"
    assert not torch.equal(first[key], other[key])
    assert not torch.equal(first[key], first[key.replace("1.self", "0.self")])
    A = attach(make(), rank=64, alpha=1.0).state()[key]
    bound = 1 / math.sqrt(32)
    assert A.abs().max() <= bound
    assert A.abs().max() > 0.98 * bound
    assert float(A.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert all(not value.any() for name, value in first.items() if "lora_B" in name)


def test_initialisation_leaves_the_global_generator_alone(make):
    model = make()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    attach(model)
    assert torch.equal(torch.rand(1), expected)


def test_rslora_scales_by_the_root_of_the_rank(make, ids, stir):
    plain, rooted = make(), make()
    stir(attach(plain, rank=4, alpha=8.0))
    stir(attach(rooted, rank=4, alpha=4.0, rslora=True))
    torch.testing.assert_close(logits(plain, ids), logits(rooted, ids), rtol=0, atol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_on_a_bf16_base_the_parts_stay_fp32_and_the_output_is_the_bases(make, ids, stir, autocast):
    model = make("llama", torch.float32 if autocast else torch.bfloat16)
    layer = model.model.layers[0].mlp.up_proj
    seen = []
    layer.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    adapter = attach(model)
    stir(adapter)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(ids, labels=ids).loss.backward()
    assert seen == [torch.bfloat16]
    for group in adapter.groups():
        for _, parameter in group.parameters:
            assert parameter.dtype == parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all()
            assert parameter.grad.any()


def test_dropout_drops_the_input_of_a_only_while_training(stir):
    model = nn.Sequential(nn.Linear(2000, 1, bias=False))
    adapter = attach(model, rank=1, alpha=1.0, dropout=0.25, targets=["0"])
    state = adapter.state()
    state["0.lora_A.weight"].fill_(1.0)
    state["0.lora_B.weight"].fill_(1.0)
    model[0].weight.data.zero_()
    x = torch.eye(2000)
    model.train()
    torch.manual_seed(0)
    y = model(x).detach().flatten()
    assert sorted(set(y.tolist())) == [0.0, pytest.approx(1 / 0.75)]
    dropped = float((y == 0).float().mean())
    assert abs(dropped - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 2000)
    model.eval()
    assert torch.equal(model(x).detach().flatten(), torch.ones(2000))


def test_groups_decay_matrices_but_neither_vectors_nor_embeddings(make):
    adapter = attach(make("llama"), also_train=["*norm*", "*embed_tokens*", "lm_head*"])
    decay = {name: group.decay for group in adapter.groups() for name, _ in group.parameters}
    assert decay["model.norm.weight"] is False
    assert decay["model.embed_tokens.weight"] is False
    assert decay["lm_head.weight"] is True
    assert decay["model.layers.0.mlp.up_proj.lora_A.weight"] is True
    assert set(decay) == set(adapter.state())


def test_a_tied_head_is_an_embedding_and_trains_once(make, ids):
    model = make("llama-tied")
    adapter = attach(model, also_train=["lm_head.weight", "*embed_tokens*"])
    beside = [(g.decay, n) for g in adapter.groups() for n, _ in g.parameters if ".lora_" not in n]
    assert beside == [(False, "model.embed_tokens.weight")]


def test_state_goes_into_a_fresh_model(make, ids, stir):
    settings = {"also_train": ["*norm*"]}
    model = make()
    adapter = attach(model, **settings)
    stir(adapter)
    saved = {name: value.clone() for name, value in adapter.state().items()}
    with adapter.active(()):
        assert all(torch.equal(adapter.state()[name], value) for name, value in saved.items()), (
            "rest must not show the base"
        )
    fresh = make()
    other = attach(fresh, seed=9, **settings)
    other.load_state(saved)
    assert torch.equal(logits(fresh, ids), logits(model, ids))


def test_a_state_that_does_not_fit_changes_nothing(make):
    adapter = attach(make())
    before = {name: value.clone() for name, value in adapter.state().items()}
    key = next(iter(before))
    wrong_shape = {**{k: v + 1 for k, v in before.items()}, key: torch.zeros(3)}
    cases = [
        ({k: v for k, v in before.items() if k != key}, "1 tensors missing"),
        ({**before, "stranger": torch.zeros(1)}, "1 unknown"),
        (wrong_shape, "the model has"),
        ({k: v.to(torch.bfloat16) for k, v in before.items()}, "bfloat16"),
    ]
    for state, words in cases:
        with pytest.raises(RunError, match=words):
            adapter.load_state(state)
        assert all(torch.equal(adapter.state()[name], value) for name, value in before.items())


def test_misuse_is_told(make):
    model = make()
    adapter = attach(model)
    with pytest.raises(RuntimeError, match="attached already"):
        adapter.attach(make())
    with pytest.raises(ValueError, match="named `default` already"):
        attach(model)
    with pytest.raises(ValueError, match="cannot name"):
        attach(model, name="a.b")
    with pytest.raises(ValueError, match="cannot name"):
        attach(model, name="keys")
    with pytest.raises(ValueError, match="no adapter `other`; it has: default"), adapter.active(("other",)):
        pass
    with pytest.raises(TypeError):
        adapter.active("default")
    with pytest.raises(CannotMerge):
        adapter.merge(make())


def test_a_refused_recipe_leaves_the_model_as_it_was(make, ids):
    model = make()
    base = logits(model, ids)
    for settings in ({"targets": ["nope"]}, {"also_train": ["nope"]}, {"also_train": ["*q_proj.weight"]}):
        with pytest.raises(RecipeError):
            attach(model, **settings)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(".lora" in name for name, _ in model.named_modules())
    assert torch.equal(logits(model, ids), base)


def test_also_train_that_fits_nothing_lists_parameters(make):
    with pytest.raises(RecipeError) as error:
        attach(make(), also_train=["embed_token.weight"])
    assert error.value.where == "adapter.also_train"
    assert "did you mean `embed_tokens.weight`?" in error.value.hint
    assert "input_layernorm.weight (2 of 32)" in error.value.hint


def test_a_copy_of_an_adapted_model_is_independent(make, ids, stir):
    model = make()
    adapter = attach(model)
    stir(adapter)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, ids), logits(model, ids))
    before = logits(twin, ids)
    stir(adapter, seed=8)
    assert torch.equal(logits(twin, ids), before)


def test_the_table_builds_it_and_training_lowers_the_loss(make, ids):
    model = make()
    adapter = build(LoraSection(rank=4, also_train=["*norm*"]), seed=0)
    adapter.attach(model)
    optimiser = torch.optim.AdamW([p for group in adapter.groups() for _, p in group.parameters], lr=1e-2)
    losses = []
    for _ in range(60):
        loss = functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
