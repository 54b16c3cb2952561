"""Rows of single tokens beside LoRA: what trains, what the base keeps, merging, several adapters, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from tunesmith.adapters.lora import LoraAdapter
from tunesmith.adapters.trained_tokens import RELATIVE_RATE
from tunesmith.errors import RecipeError, RunError
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.generation import Generator
from tunesmith.recipe.adapters import LoraSection
from tunesmith.types import CannotMerge, Sampling

FAMILIES = ["llama", "llama-tied", "gpt2", "qwen3"]
TOKENS = [40, 3, 7]
VOCAB = 48
EMBEDDING = {"gpt2": "transformer.wte"}


def attach(model, seed=0, name="default", **settings):
    adapter = LoraAdapter(LoraSection(**{"rank": 4, "alpha": 8.0, "train_tokens": TOKENS, **settings}), seed)
    adapter.attach(model, name)
    return adapter


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def matrices(family):
    """Names of the matrices that hold rows of their own."""
    embedding = EMBEDDING.get(family, "model.embed_tokens")
    return [embedding, "lm_head"] if family == "llama" else [embedding]


def parameters(adapter):
    return {name: part for group in adapter.groups() for name, part in group.parameters}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_start_is_the_base_and_a_tied_matrix_has_one_set_of_rows(make, ids, family):
    model = make(family)
    base = logits(model, ids)
    adapter = attach(model)
    assert torch.equal(logits(model, ids), base)
    rows = {name: value.shape for name, value in adapter.state().items() if name.endswith(".token_rows")}
    assert rows == {f"{name}.token_rows": (3, 32) for name in matrices(family)}
    assert set(adapter.state()) == set(parameters(adapter))
    trained = {id(part) for part in model.parameters() if part.requires_grad}
    assert trained == {id(part) for part in parameters(adapter).values()}


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_move_these_rows_and_no_other(make, ids, family):
    model = make(family)
    before = {name: model.get_submodule(name).weight.detach().clone() for name in matrices(family)}
    adapter = attach(model)
    optimiser = torch.optim.AdamW(parameters(adapter).values(), lr=1e-2)
    read = ids.clone()
    read[:, 3], read[:, 5] = 3, 40
    for _ in range(3):
        functional.cross_entropy(model(read).logits[:, :-1].flatten(0, 1), read[:, 1:].flatten()).backward()
        optimiser.step()
    logits(model, ids)
    for name, weight in before.items():
        now = model.get_submodule(name).weight
        changed = (now != weight).any(-1).nonzero()[:, 0].tolist()
        assert changed == sorted(TOKENS) if name == matrices(family)[-1] else set(changed) <= set(TOKENS)
        assert torch.equal(now[TOKENS], adapter.state()[f"{name}.token_rows"])
        assert not now.requires_grad
        assert now.grad is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_active_is_the_untouched_base_bit_for_bit(make, ids, stir, family, dtype):
    model = make(family, dtype)
    base = logits(model, ids)
    adapter = attach(model)
    stir(adapter)
    tuned = logits(model, ids)
    assert not torch.equal(tuned, base)
    saved = {name: value.clone() for name, value in adapter.state().items()}
    with adapter.active(()):
        assert torch.equal(logits(model, ids), base)
        assert all(torch.equal(adapter.state()[name], value) for name, value in saved.items())
        with adapter.active(("default",)):
            assert torch.equal(logits(model, ids), tuned)
        assert torch.equal(logits(model, ids), base)
    assert torch.equal(logits(model, ids), tuned)
    adapter.detach()
    assert torch.equal(logits(model, ids), base)
    assert not any("token_rows" in name for name, _ in model.named_modules())


def test_a_graph_from_before_the_reference_pass_gives_the_same_gradients(make, ids, stir):
    def gradients(with_reference):
        model = make("llama-tied")
        adapter = attach(model)
        stir(adapter)
        loss = model(ids, labels=ids).loss
        if with_reference:
            with torch.no_grad(), adapter.active(()):
                model(ids)
        loss.backward()
        return {name: part.grad for name, part in parameters(adapter).items()}

    plain, referenced = gradients(False), gradients(True)
    assert all(torch.equal(plain[name], referenced[name]) for name in plain)


def test_rows_have_a_rate_that_fits_their_matrix_and_no_decay(make):
    model = make("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, 0.2)
        model.lm_head.weight.normal_(0, 0.02)
    groups = {name: group for group in attach(model).groups() for name, _ in group.parameters}
    assert groups["model.embed_tokens.token_rows"].rate_factor == pytest.approx(RELATIVE_RATE * 0.2, rel=0.1)
    assert groups["lm_head.token_rows"].rate_factor == pytest.approx(RELATIVE_RATE * 0.02, rel=0.1)
    assert not groups["lm_head.token_rows"].decay
    assert groups["model.layers.0.mlp.up_proj.lora_A.weight"].rate_factor == 1.0


def test_state_goes_into_a_fresh_model_and_shows_at_once(make, ids, stir):
    model = make("llama-tied")
    adapter = attach(model)
    stir(adapter)
    saved = {name: value.clone() for name, value in adapter.state().items()}
    fresh = make("llama-tied")
    other = attach(fresh, seed=9)
    other.load_state(saved)
    assert torch.equal(fresh.lm_head.weight[TOKENS], saved["model.embed_tokens.token_rows"])
    assert torch.equal(logits(fresh, ids), logits(model, ids))
    with pytest.raises(RunError, match="the model has"):
        attach(make("llama-tied"), train_tokens=[3, 7]).load_state(saved)


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_folds_the_rows_and_leaves_a_plain_model(make, ids, stir, family):
    model = make(family)
    types = [type(module) for module in model.modules()]
    adapter = attach(model)
    stir(adapter)  # no forward comes between the last step and the merge
    tuned = logits(copy.deepcopy(model), ids)
    rows = {name: value.clone() for name, value in adapter.state().items()}
    adapter.merge(model)
    torch.testing.assert_close(logits(model, ids), tuned, rtol=1e-4, atol=1e-5)
    assert [type(module) for module in model.modules()] == types
    for name in matrices(family):
        assert torch.equal(model.get_submodule(name).weight[TOKENS], rows[f"{name}.token_rows"])


def test_generation_with_a_cache_uses_the_rows(make, stir):
    """The trained model and its merged copy answer alike; without the rows the answer is another."""

    def answer(hf):
        how = Sampling(max_new_tokens=12)
        return Generator(CausalLM(hf), stop_ids=frozenset(), pad_id=0, decode=str).sample([[3, 9, 7, 11]], how)[0].ids

    model = make("llama-tied")
    adapter = attach(model)
    stir(adapter, size=0.5)
    merged = copy.deepcopy(model)
    merged.tunesmith_adapters["default"].merge(merged)
    assert answer(model) == answer(merged)
    with torch.no_grad():
        parameters(adapter)["model.embed_tokens.token_rows"].mul_(-1.0)
    assert answer(model) != answer(merged)


def test_two_adapters_may_not_train_the_same_row(make, ids, stir):
    model = make("llama")
    first = attach(model, name="first", train_tokens=[3, 7])
    stir(first)
    tuned = logits(model, ids)
    second = attach(model, name="second", train_tokens=[7, 9])
    stir(second, seed=4)
    with pytest.raises(ValueError, match=r"both train `.*`: only one"), first.active(("first", "second")):
        pass
    with first.active(("first",)):
        assert torch.equal(logits(model, ids), tuned)
    with pytest.raises(CannotMerge, match="detach it first"):
        second.merge(model)
    second.detach()
    third = attach(model, name="third", train_tokens=[9], also_train=["lm_head.weight"])
    assert set(third.state()) >= {"model.embed_tokens.token_rows", "lm_head.weight"}
    with pytest.raises(ValueError, match=r"both train `lm_head\.weight`"), first.active(("first", "third")):
        pass


def test_adapters_with_rows_of_their_own_stand_together(make, ids, stir):
    model = make("llama-tied")
    first = attach(model, name="first", train_tokens=[3])
    stir(first)
    second = attach(model, name="second", train_tokens=[9])
    stir(second, seed=4)
    with first.active(("first", "second")):
        both = logits(model, ids)
        weight = model.lm_head.weight.clone()
    assert torch.equal(weight[3], first.state()["model.embed_tokens.token_rows"][0])
    assert torch.equal(weight[9], second.state()["model.embed_tokens.token_rows"][0])
    second.merge(model)
    with first.active(("first",)):
        torch.testing.assert_close(logits(model, ids), both, rtol=1e-4, atol=1e-5)


def test_a_matrix_that_trains_fully_has_no_rows_beside(make):
    head_only = attach(make("llama"), also_train=["*embed_tokens*"]).state()
    assert {name for name in head_only if "lora" not in name} == {"model.embed_tokens.weight", "lm_head.token_rows"}
    with pytest.raises(RecipeError, match="train fully already") as error:
        attach(make("llama-tied"), also_train=["lm_head*"])
    assert error.value.where == "adapter.train_tokens"


def test_refusals_leave_the_model_as_it_was(make, ids):
    model = make()
    base = logits(model, ids)
    with pytest.raises(RecipeError, match=f"no token {VOCAB}: `model.embed_tokens` has {VOCAB} rows"):
        attach(model, train_tokens=[2, VOCAB])
    with pytest.raises(ValueError, match="must be made ids"):
        attach(model, train_tokens=["<|im_end|>", 3])
    assert all(part.requires_grad for part in model.parameters())
    assert torch.equal(logits(model, ids), base)


@pytest.mark.parametrize("value", ["auto", "none"])
def test_without_a_plan_auto_trains_no_row(make, value):
    assert not any("token_rows" in name for name in attach(make(), train_tokens=value).state())


def test_a_copy_of_an_adapted_model_is_independent(make, ids, stir):
    model = make("llama-tied")
    adapter = attach(model)
    stir(adapter)
    twin = copy.deepcopy(model)
    before = logits(twin, ids)
    assert torch.equal(before, logits(model, ids))
    stir(adapter, seed=8)
    logits(model, ids)
    assert torch.equal(logits(twin, ids), before)
