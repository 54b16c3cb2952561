"""Early stopping that could do nothing is refused or told before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.engine.stopping import EarlyStopping
from tunesmith.errors import RecipeError
from tunesmith.planning.early_stopping import early_stopping_notes, require_validation
from tunesmith.recipe.codec import parse
from tunesmith.recipe.root import Recipe


def _recipe(validation: Any = 0.1, patience: int | None = 3) -> Recipe:
    training = {} if patience is None else {"early_stopping": {"patience": patience}}
    data = {"train": "a.jsonl", "validation": validation}
    return parse({"name": "r", "model": "m", "data": data, "training": training})


def _watching(metric: str, **objective: Any) -> Recipe:
    data = {"train": "a.jsonl", "validation": 0.1}
    training = {"early_stopping": {"metric": metric, "rows": 1000}}
    return parse({"name": "r", "model": "m", "data": data, "training": training, "objective": objective})


@pytest.mark.parametrize("metric", ["exact_match", "label_ranking", "instruction_following"])
def test_what_a_metric_of_answers_costs_is_told_and_documents_have_none(make_settings: Any, metric: str) -> None:
    settings = make_settings(evaluate_every=5, total_steps=100)
    (said,) = early_stopping_notes(_watching(metric), settings)
    assert f"up to 1,000 validation rows{', each whole and cut' if metric.startswith('instr') else ''} for" in said
    assert metric in said
    with pytest.raises(RecipeError, match="watches written answers, and documents under `clm`") as caught:
        early_stopping_notes(_watching(metric, type="clm"), settings)
    assert caught.value.where == "training.early_stopping.metric"
    with pytest.raises(RecipeError, match="watches written answers, and a head writes none"):
        early_stopping_notes(_watching(metric, type="classify"), settings)
    for kind in ("clm", "classify"):
        assert early_stopping_notes(_watching("loss", type=kind), settings) == []


def _can_stop(patience: int, every: int, total: int) -> bool:
    """Whether the engine's own rule stops before the last step on losses that only rise."""
    stopping = EarlyStopping(patience)
    return any(stopping.see(step, float(step)) is not None for step in range(every, total, every))


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("every", [1, 3, 10])
@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 9, 10, 12, 13, 20, 21, 30, 31, 40, 41])
def test_a_patience_that_cannot_run_out_is_told(make_settings: Any, patience: int, every: int, total: int) -> None:
    said = early_stopping_notes(_recipe(patience=patience), make_settings(evaluate_every=every, total_steps=total))
    assert bool(said) is not _can_stop(patience, every, total)


def test_the_words_name_the_numbers_and_the_keys(make_settings: Any) -> None:
    (said,) = early_stopping_notes(_recipe(), make_settings(evaluate_every=500, total_steps=1500))
    for words in ("4 evaluations", "every 500 steps", "step 2,000", "1,500", "training.evaluate_every"):
        assert words in said
    assert early_stopping_notes(_recipe(patience=None), make_settings(evaluate_every=500, total_steps=10)) == []


@pytest.mark.parametrize("validation", [0, {"fraction": 0.0}])
def test_no_validation_rows_asked_for_is_refused(make_settings: Any, validation: Any) -> None:
    with pytest.raises(RecipeError, match="there are none") as caught:
        early_stopping_notes(_recipe(validation), make_settings())
    assert caught.value.where == "training.early_stopping"
    assert "data.validation" in caught.value.hint
    assert early_stopping_notes(_recipe(validation, patience=None), make_settings()) == []
    assert early_stopping_notes(_recipe("b.jsonl"), make_settings()) == []


def test_no_validation_rows_held_out_is_refused() -> None:
    require_validation(_recipe(patience=None), has_rows=False)
    require_validation(_recipe(), has_rows=True)
    with pytest.raises(RecipeError):
        require_validation(_recipe(), has_rows=False)
