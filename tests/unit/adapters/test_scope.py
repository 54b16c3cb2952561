from __future__ import annotations

import pytest
import torch
from tests.tiny import family
from torch import nn

from tunesmith.adapters import build
from tunesmith.adapters.scope import layer_names
from tunesmith.errors import RecipeError, RunError
from tunesmith.recipe.adapters import FullSection, PartialSection
from tunesmith.types import NoBase


def attach(model, **choices):
    adapter = build(PartialSection(**choices), seed=0)
    adapter.attach(model)
    return adapter


def names_of(adapter):
    return {name for group in adapter.groups() for name, _ in group.parameters}


def test_full_trains_everything_with_tied_weights_once(make):
    model = make("llama-tied")
    adapter = build(FullSection(), seed=0)
    adapter.attach(model)
    assert names_of(adapter) == {name for name, _ in model.named_parameters()}
    assert "lm_head.weight" not in adapter.state()
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2"])
def test_only_matrices_that_are_no_embeddings_decay(make, family):
    model = make(family)
    adapter = build(FullSection(), seed=0)
    adapter.attach(model)
    groups = {group.decay: group for group in adapter.groups()}
    assert sorted(groups) == [False, True]
    for name, parameter in groups[True].parameters:
        assert parameter.ndim == 2
        assert "embed" not in name
        assert "wte" not in name
        assert "wpe" not in name
    kept = {name for name, _ in groups[False].parameters}
    assert kept == {n for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n or "wte" in n or "wpe" in n}
    assert ("lm_head.weight" in dict(groups[True].parameters)) is (family == "llama")


@pytest.mark.parametrize("section", [FullSection(), PartialSection(norms=True)])
def test_both_keep_no_base(make, section):
    adapter = build(section, seed=0)
    model = make()
    adapter.attach(model)
    for names in ((), ("other",)):
        with pytest.raises(NoBase):
            adapter.active(names)
    with adapter.active(("default",)):
        pass
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapter.merge(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(RuntimeError, match="attached already"):
        adapter.attach(model)


@pytest.mark.parametrize("section", [FullSection(), PartialSection(norms=True, last_layers=1)])
def test_state_goes_into_a_fresh_model(make, ids, stir, section):
    model, fresh = make(), make()
    adapter, other = build(section, seed=0), build(section, seed=1)
    adapter.attach(model)
    other.attach(fresh)
    stir(adapter)
    assert not torch.equal(model(ids).logits, fresh(ids).logits)
    other.load_state({name: value.clone() for name, value in adapter.state().items()})
    assert torch.equal(model(ids).logits, fresh(ids).logits)
    with pytest.raises(RunError, match="1 unknown"):
        other.load_state({**adapter.state(), "stranger": torch.zeros(1)})


def test_export_marks_the_scope(make):
    full, part = build(FullSection(), seed=0), attach(make(), norms=True)
    model = make()
    full.attach(model)
    configuration, tensors = full.export()
    assert configuration == {"tunesmith_scope": "full"}
    assert list(tensors) == [name for name, _ in model.named_parameters()]
    configuration, tensors = part.export()
    assert configuration == {"tunesmith_scope": "partial", "parameters": list(tensors)}
    assert all("norm" in name for name in tensors)


NORMS = {"model.norm.weight"} | {
    f"model.layers.{i}.{n}_layernorm.weight" for i in (0, 1) for n in ("input", "post_attention")
}


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"norms": True}, NORMS),
        ({"embeddings": True}, {"model.embed_tokens.weight"}),
        ({"head": True}, {"lm_head.weight"}),
        ({"patterns": ["*.0.mlp.*"]}, {f"model.layers.0.mlp.{n}_proj.weight" for n in ("gate", "up", "down")}),
        ({"patterns": ["q_proj.weight"]}, {f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)}),
        ({"head": True, "norms": True}, {"lm_head.weight"} | NORMS),
    ],
)
def test_choices_add_up(make, choices, expected):
    model = make()
    adapter = attach(model, **choices)
    assert names_of(adapter) == expected == set(adapter.state())
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == expected


def test_last_layers(make):
    adapter = attach(make(), last_layers=1)
    assert names_of(adapter) == {name for name, _ in make().named_parameters() if name.startswith("model.layers.1.")}
    assert layer_names(make("gpt2")) == ["transformer.h.0", "transformer.h.1"]
    with pytest.raises(RecipeError, match="`last_layers` is 3, the model has 2"):
        attach(make(), last_layers=3)


@pytest.mark.parametrize(
    ("choices", "layers"),
    [
        ({"first_layers": 2}, {0, 1}),
        ({"every_nth": 2}, {1, 3}),
        ({"every_nth": 3}, {2}),
        ({"every_nth": 5}, {4}),
        ({"every_nth": 1}, {0, 1, 2, 3, 4}),
        ({"first_layers": 1, "last_layers": 2}, {0, 3, 4}),
        ({"first_layers": 1, "every_nth": 2, "last_layers": 1}, {0, 1, 3, 4}),
    ],
)
def test_layers_are_chosen_from_either_end_or_by_number(choices, layers):
    model = family("llama", num_hidden_layers=5)
    prefixes = tuple(f"model.layers.{layer}." for layer in layers)
    expected = {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    assert names_of(attach(model, **choices)) == expected


@pytest.mark.parametrize("key", ["first_layers", "every_nth"])
def test_more_layers_than_there_are(make, key):
    model = make()
    with pytest.raises(RecipeError, match=f"`{key}` is 3, the model has 2 layers") as error:
        attach(model, **{key: 3})
    assert error.value.where == f"adapter.{key}"
    assert "at most 2" in error.value.hint
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_biases_are_every_bias(make):
    adapter = attach(make("gpt2"), biases=True)
    assert names_of(adapter) == {name for name, _ in make("gpt2").named_parameters() if name.endswith(".bias")}
    assert [group.decay for group in adapter.groups()] == [False]


def test_experts_inside_layers_are_no_layers():
    block = lambda: nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(2, 2) for _ in range(8))})  # noqa: E731
    model = nn.ModuleDict({"layers": nn.ModuleList(block() for _ in range(3))})
    assert layer_names(model) == ["layers.0", "layers.1", "layers.2"]


@pytest.mark.parametrize("choice", ["embeddings", "head"])
def test_a_tied_weight_trains_once_and_it_is_said(make, choice):
    adapter = attach(make("llama-tied"), **{choice: True})
    assert names_of(adapter) == {"model.embed_tokens.weight"}
    assert adapter.notes == [
        "`model.embed_tokens.weight` and `lm_head.weight` are one tied weight: training one trains the other"
    ]
    assert attach(make("llama"), **{choice: True}).notes == []


def test_a_choice_that_fits_nothing_lists_parameters(make):
    model = make()
    with pytest.raises(RecipeError) as error:
        attach(model, biases=True, norms=True)
    assert error.value.where == "adapter.biases"
    assert "self_attn.q_proj" not in error.value.hint
    assert "q_proj.weight (2 of 32×32)" in error.value.hint
    with pytest.raises(RecipeError) as error:
        attach(model, patterns=["model.norms.weight"])
    assert error.value.where == "adapter.patterns"
    assert "did you mean `model.norm.weight`?" in error.value.hint
    with pytest.raises(RecipeError, match="no parameter is chosen"):
        attach(model)
    assert all(parameter.requires_grad for parameter in model.parameters()), "a refused recipe changes nothing"


def test_integer_weights_cannot_train():
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(RecipeError, match="int8"):
        build(FullSection(), seed=0).attach(model)
