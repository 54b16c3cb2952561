"""MODEL against a suite: scorecard, and a paired comparison where a second model is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.evaluation.comparison import compare
from tunesmith.evaluation.scorecard import Scorecard
from tunesmith.progress import Progress, SilentProgress
from tunesmith.recipe.codec import load
from tunesmith.recipe.root import Recipe
from tunesmith.workshop.opening import open_machine
from tunesmith.workshop.prepare import open_data
from tunesmith.workshop.scoring import Scoring


def evaluate(
    model: str, suite: Path | Recipe, *, against: str | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Score a model on the evaluation and data sections of a recipe.

    Args:
        model: embedded name, model folder, run folder or adapter folder.
        suite: a recipe file, or a recipe.
        against: a second model, scored on the same rows; the first is compared with it.
        progress: hears phases.

    Returns:
        The scorecard as plain values; with ``against`` also that card and the comparison.

    Raises:
        TunesmithError: recipe, data or model are wrong; the two models do not see the same prompts.
    """
    progress = progress or SilentProgress()
    recipe = suite if isinstance(suite, Recipe) else load(suite)
    card, notes = _card(model, recipe, progress)
    result: dict[str, Any] = {**card.to_json(), "notes": notes}
    if against is not None:
        other, _ = _card(against, recipe, progress)
        result["against"] = other.to_json()
        result["comparison"] = compare(other, card).to_json()
    return result


def _card(model: str, recipe: Recipe, progress: Progress) -> tuple[Scorecard, list[str]]:
    data, renderer, notes = open_data(recipe, notify=progress.note)
    opened = open_machine(model, batch_tokens=recipe.evaluation.batch_tokens)
    scoring = Scoring(recipe.evaluation, data, renderer, recipe.seed, progress)
    return scoring.score(model, opened.machine), [*notes, *scoring.notes]
