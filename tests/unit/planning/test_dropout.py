"""Dropout that a model does not have is refused with what it has; what it has is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tunesmith.errors import RecipeError
from tunesmith.planning.dropout import base_dropout, dropout_notes, has_dropout
from tunesmith.recipe.codec import parse
from tunesmith.recipe.root import Recipe


def _recipe(dropout: dict[str, Any] | None = None, adapter: dict[str, Any] | None = None) -> Recipe:
    model = {"name": "m"} | ({} if dropout is None else {"dropout": dropout})
    return parse({"name": "r", "model": model, "data": {"train": "a.jsonl"}, "adapter": adapter or {"type": "full"}})


@pytest.fixture
def facts(tiny: Any) -> Any:
    return replace(tiny, dropout={"attention": 0.0, "embedding": 0.1})


def test_given_rates_win_over_those_of_the_configuration(facts: Any) -> None:
    assert base_dropout(_recipe(), facts) == {"attention": 0.0, "embedding": 0.1}
    assert base_dropout(_recipe({"embedding": 0}), facts) == {"attention": 0.0, "embedding": 0.0}
    assert base_dropout(_recipe({"attention": 0.2}), facts) == {"attention": 0.2, "embedding": 0.1}


def test_a_kind_that_the_family_lacks_is_refused_even_at_nothing(facts: Any, tiny: Any) -> None:
    for rate in (0.0, 0.1):
        with pytest.raises(RecipeError) as caught:
            base_dropout(_recipe({"hidden": rate}), facts)
        assert caught.value.what == "models of type `llama` have no hidden dropout"
        assert caught.value.where.endswith("model.dropout.hidden]")
        assert "they have: attention, embedding" in caught.value.hint
    with pytest.raises(RecipeError) as caught:
        base_dropout(_recipe({"attention": 0.1}), tiny)
    assert "none that Tunesmith knows" in caught.value.hint


def test_whether_anything_drops_out(facts: Any, tiny: Any) -> None:
    assert has_dropout(_recipe(), facts)
    assert not has_dropout(_recipe(), tiny)
    assert not has_dropout(_recipe({"embedding": 0}), facts)
    assert not has_dropout(_recipe(adapter={"type": "lora"}), tiny)
    assert has_dropout(_recipe(adapter={"type": "lora", "dropout": 0.05}), tiny)


def test_what_is_set_is_told_with_its_source_and_what_attention_dropout_costs(facts: Any, make_settings: Any) -> None:
    assert dropout_notes(_recipe(), facts, make_settings()) == []
    (said,) = dropout_notes(_recipe({"attention": 0.2}), facts, make_settings())
    assert said == "dropout of the base in training: attention 0.2 (model.dropout), embedding 0.1 (its config.json)"
    slower = dropout_notes(_recipe({"attention": 0.2}), facts, make_settings(device="cuda"))[1]
    assert "variable-length kernel" in slower
