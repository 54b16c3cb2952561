"""With a token cache the plan's tokens are those that training sees, step by step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.data.loader import PackedStream, StreamOptions
from tunesmith.recipe.codec import parse
from tunesmith.workshop.planning import plan_recipe, plan_with_data
from tunesmith.workshop.prepare import open_data


@pytest.mark.parametrize("weight", [1.0, 2.5, 0.5])
@pytest.mark.parametrize("training", [{"max_steps": 3}, {"max_steps": 11}, {"epochs": 2}])
def test_tokens_of_the_run_are_counted(tmp_path: Path, weight: float, training: dict[str, int]) -> None:
    rows = [{"prompt": "word " * (index % 9 + 1), "completion": f"answer {index}"} for index in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": "a.jsonl", "format": "prompt-completion", "weight": weight}
    recipe = parse(
        {
            "name": "x",
            "model": "tunesmith-base-8m",
            "data": {"train": [source]},
            "training": {**training, "batch_size": 8},
        }
    ).placed(tmp_path)
    data, renderer, _ = open_data(recipe)
    plan = plan_with_data(recipe, data, renderer)
    stream = PackedStream(data.train, StreamOptions(8, plan.settings.total_steps, 4096, recipe.seed, None, (weight,)))
    assert plan.total_tokens == sum(batch.num_tokens for step in stream for batch in step)
    assert plan_recipe(recipe).total_tokens == plan.total_tokens


def test_with_a_token_cache_too_the_plan_says_that_nothing_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("The tide is high.\n\nThe boat is away.")
    recipe = parse(
        {
            "name": "x",
            "model": "tunesmith-base-8m",
            "data": {"train": "book.txt", "test": 0.01},
            "objective": {"type": "clm"},
        }
    ).placed(tmp_path)
    data, renderer, _ = open_data(recipe)
    for plan in (plan_with_data(recipe, data, renderer), plan_recipe(recipe)):
        (note,) = [note for note in plan.notes if "held out" in note]
        assert "nothing is held out for validation or test" in note
        assert "data.train.0.row" in note
