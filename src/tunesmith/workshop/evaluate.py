"""MODEL against a suite: scorecard, and a paired comparison where a second model is named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, ModelError
from tunesmith.evaluation.comparison import Comparison, compare
from tunesmith.evaluation.scorecard import Scorecard
from tunesmith.files import sha256_of
from tunesmith.models.locate import open_model
from tunesmith.progress import Progress, SilentProgress
from tunesmith.recipe.codec import load
from tunesmith.recipe.root import Recipe
from tunesmith.workshop.headed import is_headed
from tunesmith.workshop.headed_scoring import make_scoring
from tunesmith.workshop.masking import hides_in, masking_of
from tunesmith.workshop.opening import open_machine
from tunesmith.workshop.prepare import base_of, open_data

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Evaluation:
    """A scorecard with sentences to say aloud; and where a second model was named its card, and what compares the two."""

    card: Scorecard
    notes: list[str]
    against: Scorecard | None = None
    comparison: Comparison | None = None

    def to_json(self) -> dict[str, Any]:
        """The card as plain values, with ``notes``, and where they are there ``against`` and ``comparison``."""
        values: dict[str, Any] = {**self.card.to_json(), "notes": self.notes}
        if self.against is not None:
            values["against"] = self.against.to_json()
        if self.comparison is not None:
            values["comparison"] = self.comparison.to_json()
        return values


def evaluate(model: str | Path, suite: Path | Recipe, *, progress: Progress | None = None) -> Scorecard:
    """Score a model on the evaluation and data sections of a recipe.

    Args:
        model: embedded name, model folder, run folder or adapter folder.
        suite: a recipe file, or a recipe.
        progress: hears phases, and what is to be said of the scores.

    Raises:
        TunesmithError: recipe, data or model are wrong.
    """
    progress = progress or SilentProgress()
    measured = measure(str(model), suite, progress=progress)
    for note in measured.notes:
        progress.note(note)
    return measured.card


def measure(
    model: str, suite: Path | Recipe, *, against: str | None = None, progress: Progress | None = None
) -> Evaluation:
    """Score a model as ``evaluate`` does, alone or beside another.

    Args:
        model: embedded name, model folder, run folder or adapter folder.
        suite: a recipe file, or a recipe.
        against: a second model, scored on the same rows; the first is compared with it.
        progress: hears phases.

    Raises:
        TunesmithError: recipe, data or model are wrong; the two models do not see the same prompts.
    """
    progress = progress or SilentProgress()
    recipe = suite if isinstance(suite, Recipe) else load(suite)
    suite_tokens, notes = _tokenizer_of(recipe), []
    if _tokenizer_at(model) != suite_tokens:
        notes = [f"{model} has another tokenizer than the suite's {recipe.model.name}: rows are rendered with its own"]
        recipe = _with_model(recipe, model)
    if against is not None and _tokenizer_at(against) != _tokenizer_at(model):
        raise ModelError(
            f"{model} and {against} do not see the same prompts: their tokenizers differ",
            where=str(open_model(against).base.path / _TOKENIZER),
            hint="score them one by one, without --against: what is measured per token does not compare",
        )
    card, said = _card(model, recipe, progress)
    if against is None:
        return Evaluation(card, [*notes, *said])
    other, _ = _card(against, recipe, progress)
    return Evaluation(card, [*notes, *said], other, compare(other, card))


def _card(model: str, recipe: Recipe, progress: Progress) -> tuple[Scorecard, list[str]]:
    data, renderer, notes = open_data(recipe, notify=progress.note)
    opened = open_machine(model, batch_tokens=recipe.evaluation.batch_tokens)
    scoring = make_scoring(recipe, data, renderer, progress)
    if opened.machine.headed is not None and not is_headed(recipe):
        raise ModelError(
            f"{model} has a head: it answers with labels, not with text",
            where=f"recipe {recipe.name} [objective]",
            hint="score it on a recipe with the objective it was trained for, such as `objective: {type: classify}`",
        )
    if not scoring.tasks and (is_headed(recipe) or not recipe.evaluation.preserve):
        raise DataError(
            f"there is nothing to score: {'; '.join(scoring.notes) or 'no task and no probe is named'}",
            where=f"recipe {recipe.name} [evaluation]",
            hint="hold rows out (data.validation, data.test), or name a task on rows that there are",
        )
    machine = hides_in(opened.machine, masking_of(recipe, renderer))
    return scoring.score(model, machine), [*notes, *scoring.notes]


def _tokenizer_at(model: str) -> str:
    """Hex sha256 of the tokenizer of what a MODEL argument names; empty where it has none."""
    return _sha256(open_model(model).base.path)


def _tokenizer_of(recipe: Recipe) -> str:
    return _sha256(base_of(recipe).path)


def _sha256(folder: Path) -> str:
    path = folder / _TOKENIZER
    return sha256_of(path) if path.is_file() else ""


def _with_model(recipe: Recipe, model: str) -> Recipe:
    """The suite, rendered as another model takes it; a template that the suite names stays."""
    section = recipe.model.model_copy(update={"name": str(open_model(model).base.path)})
    return recipe.model_copy(update={"model": section})
