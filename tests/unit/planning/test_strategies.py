"""Strategies: names, files, rates, and what an override may not decide."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import UserError
from tunesmith.planning.strategies import (
    STRATEGIES,
    USUAL,
    beyond,
    choose,
    rates_around,
    read_strategies,
    refuse_lost_overrides,
)
from tunesmith.recipe.adapters import AdapterSection
from tunesmith.recipe.codec import apply_overrides, parse
from tunesmith.recipe.root import Recipe


def _recipe(overrides: list[str]) -> Recipe:
    return parse(apply_overrides({"name": "x", "model": "m", "data": {"train": "a.jsonl"}}, overrides))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_is_a_recipe(name: str) -> None:
    strategy = STRATEGIES[name]
    recipe = _recipe(strategy.overrides())
    assert recipe.adapter.type == strategy.values.get("adapter", {"type": "lora"})["type"]
    assert strategy.does


def test_every_type_of_adapter_has_a_strategy() -> None:
    types = {section.model_fields["type"].default for section in AdapterSection.__args__}
    assert types == {_recipe(STRATEGIES[name].overrides()).adapter.type for name in USUAL}


def test_no_two_strategies_train_the_same() -> None:
    written = [_recipe(STRATEGIES[name].overrides()).model_dump_json() for name in USUAL]
    assert len(set(written)) == len(written)


def test_without_names_the_usual_ones_and_ones_own() -> None:
    own = {"mine": STRATEGIES["lora"]}
    assert [strategy.name for strategy in choose([], {})] == list(USUAL)
    assert len(choose([], own)) == len(USUAL) + 1
    assert [strategy.name for strategy in choose(["full", "lora"], {})] == ["full", "lora"]


def test_wrong_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError) as error:
        choose(["lora", "gralorra"], {})
    assert "did you mean `gralora`?" in error.value.hint
    with pytest.raises(UserError, match="given twice"):
        choose(["lora", "lora"], {})


def test_a_file_of_strategies(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("lora-64: {adapter: {type: lora, rank: 64, alpha: 128}, training.warmup: 0.1}\n", encoding="utf-8")
    found = read_strategies(path)
    recipe = _recipe(found["lora-64"].overrides())
    assert (recipe.adapter.type, recipe.training.warmup) == ("lora", 0.1)
    assert getattr(recipe.adapter, "rank", None) == 64


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lora: 3\n", "no mapping"),
        ("a/b: {adapter: {type: full}}\n", "names no strategy"),
        ("mine: {seed: 1}\n", "decided by the comparison"),
        ("mine: {training.learning_rate: 1e-3}\n", "decided by the comparison"),
        ("- lora\n", "mapping of sections"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        read_strategies(path)


@pytest.mark.parametrize("item", ["adapter.rank=8", "adapter={type: full}", "seed=3", "training.learning_rate=1"])
def test_overrides_that_would_be_lost_are_refused(item: str) -> None:
    with pytest.raises(UserError, match="decided by the comparison"):
        refuse_lost_overrides(["training.epochs=1", item])


def test_other_overrides_pass() -> None:
    refuse_lost_overrides(["training.epochs=1", "data.test=0.2", "seedling=1"])


def test_rates_rise_and_have_three_digits() -> None:
    assert rates_around(2.5e-3, [2, 0.5, 1, 1]) == [1.25e-3, 2.5e-3, 5e-3]
    assert rates_around(1 / 3, [1, 2]) == [0.333, 0.667]


def test_the_rate_beyond_an_edge_is_as_far_as_its_neighbour() -> None:
    assert beyond([1e-3, 2e-3, 8e-3], 8e-3) == pytest.approx(3.2e-2)
    assert beyond([1e-3, 2e-3, 8e-3], 1e-3) == pytest.approx(5e-4)
    assert beyond([1e-3, 2e-3, 8e-3], 2e-3) is None
    assert beyond([1e-3], 1e-3) is None
