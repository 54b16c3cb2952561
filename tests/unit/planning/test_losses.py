"""A loss of another level than validation's is told, a plain one is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tunesmith.errors import RecipeError
from tunesmith.planning.losses import loss_notes, passes_of_a_step, require_dropout
from tunesmith.planning.scope import scope_of
from tunesmith.planning.settings import Counts
from tunesmith.planning.sizing import fit_to_memory
from tunesmith.recipe.codec import parse
from tunesmith.recipe.root import Recipe

_VALUES = {"name": "r", "model": "m", "data": {"train": "a.jsonl"}, "adapter": {"type": "full"}}


def _recipe(**objective: Any) -> Recipe:
    return parse({"name": "r", "model": "m", "data": {"train": "a.jsonl"}, "objective": objective})


@pytest.mark.parametrize("kind", ["sft", "clm"])
def test_a_plain_loss_needs_no_word(kind: str) -> None:
    assert loss_notes(_recipe(type=kind)) == []
    assert loss_notes(_recipe(type=kind, label_smoothing=0.0, focal_gamma=0)) == []


@pytest.mark.parametrize(("key", "value"), [("label_smoothing", 0.1), ("focal_gamma", 2), ("rdrop_alpha", 1)])
def test_another_level_is_told_with_key_and_value(key: str, value: float) -> None:
    (said,) = loss_notes(_recipe(type="sft", **{key: value}))
    assert f"{key} {value:g}" in said
    assert "`nll`" in said


@pytest.mark.parametrize(
    ("adapter", "dropout", "hint"),
    [
        ({"type": "lora"}, {"attention": 0.0}, "adapter.dropout or model.dropout.attention"),
        ({"type": "full"}, {"attention": 0.0}, "set model.dropout.attention to 0.1"),
        ({"type": "full"}, {}, "neither this scope nor this model has dropout"),
    ],
)
def test_rdrop_without_dropout_is_refused_with_where_to_set_it(
    tiny: Any, adapter: dict[str, Any], dropout: dict[str, float], hint: str
) -> None:
    facts, recipe = replace(tiny, dropout=dropout), _recipe(type="sft", rdrop_alpha=1.0)
    recipe = parse({**recipe.model_dump(mode="json", exclude_unset=True), "adapter": adapter})
    with pytest.raises(RecipeError) as caught:
        require_dropout(recipe, facts)
    assert "nothing drops out here" in caught.value.what
    assert caught.value.where.endswith("objective.rdrop_alpha]")
    assert hint in caught.value.hint


@pytest.mark.parametrize("key", ["class_weights", "label_smoothing", "focal_gamma", "rdrop_alpha"])
def test_losses_of_heads_are_told_as_well(key: str) -> None:
    value: Any = "balanced" if key == "class_weights" else 0.5
    (said,) = loss_notes(_recipe(type="tag", **{key: value}))
    assert key in said
    assert passes_of_a_step(_recipe(type="classify", **{key: value})) == 1 + (key == "rdrop_alpha")


def test_under_a_head_alone_only_the_heads_own_dropout_counts(tiny: Any) -> None:
    facts = replace(tiny, dropout={"hidden": 0.1})
    values: dict[str, Any] = {
        **_VALUES,
        "adapter": {"type": "head"},
        "objective": {"type": "classify", "rdrop_alpha": 1},
    }
    with pytest.raises(RecipeError) as caught:
        require_dropout(parse(values), facts)
    assert caught.value.hint == "set objective.dropout to 0.1, or remove rdrop_alpha"
    values["objective"]["dropout"] = 0.1
    require_dropout(parse(values), facts)
    values["adapter"] = {"type": "full"}
    del values["objective"]["dropout"]
    require_dropout(parse(values), facts)


def test_rdrop_with_dropout_of_either_kind_and_the_plain_loss_without_go_on(tiny: Any) -> None:
    require_dropout(_recipe(type="sft"), tiny)
    require_dropout(_recipe(type="sft", rdrop_alpha=1.0), replace(tiny, dropout={"attention": 0.1}))
    values = {"name": "r", "model": "m", "data": {"train": "a.jsonl"}, "objective": {"rdrop_alpha": 1.0}}
    require_dropout(parse({**values, "adapter": {"type": "lora", "dropout": 0.1}}), tiny)


def test_two_passes_need_twice_the_activations(tiny: Any, make_settings: Any) -> None:
    scope, counts = scope_of(tiny, parse(_VALUES).adapter), Counts(100, 50_000, 50_000, attended=500.0)
    found = [
        fit_to_memory(tiny, scope, make_settings(context=128), counts, 1 << 40, "off", num_passes=passes)[1].parts
        for passes in (1, 2)
    ]
    assert found[1]["activations"] == 2 * found[0]["activations"]
    assert found[1]["weights"] == found[0]["weights"]
    assert [passes_of_a_step(_recipe(type="sft", rdrop_alpha=alpha)) for alpha in (0.0, 0.1)] == [1, 2]
