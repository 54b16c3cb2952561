"""Whether early stopping can do what the recipe asks of it. Torch-free."""

from __future__ import annotations

from tunesmith.errors import RecipeError
from tunesmith.planning.settings import Settings
from tunesmith.recipe.data import SplitSection
from tunesmith.recipe.objectives import ClmSection, MlmSection, SumSection, trains_answers
from tunesmith.recipe.root import Recipe

_KEY = "training.early_stopping"


def early_stopping_notes(recipe: Recipe, settings: Settings) -> list[str]:
    """The sentence about a patience that cannot run out before the last step.

    Evaluations stand at the multiples of ``evaluate_every`` before the last step; the first is the best so far, and
    ``patience`` more must follow it.

    Raises:
        RecipeError: early stopping is asked for, and no validation rows are; or it watches answers, and there are none.
    """
    section = recipe.training.early_stopping
    if section is None:
        return []
    _require_answers(recipe)
    given = recipe.data.validation
    require_validation(recipe, has_rows=not isinstance(given, SplitSection) or given.fraction > 0)
    said = []
    if section.metric != "loss":
        twice = ", each whole and cut" if section.metric == "instruction_following" else ""
        said.append(
            f"each evaluation answers up to {section.rows:,} validation rows{twice} for early stopping on {section.metric}, which takes "
            "its time (training.early_stopping.rows, training.evaluate_every)"
        )
    needed = (section.patience + 1) * settings.evaluate_every
    if needed < settings.total_steps:
        return said
    return [
        *said,
        f"early stopping cannot end this run: {section.patience + 1} evaluations, one every {settings.evaluate_every:,} steps, "
        f"are over at step {needed:,}, and the run has {settings.total_steps:,}; the best of its evaluations is the result "
        "all the same (training.evaluate_every, training.early_stopping.patience)",
    ]


def _require_answers(recipe: Recipe) -> None:
    section = recipe.training.early_stopping
    if section is not None and section.metric != "loss" and not trains_answers(recipe.objective):
        documents = isinstance(recipe.objective, ClmSection | MlmSection | SumSection)
        none = f"documents under `{recipe.objective.type}` have none" if documents else "a head writes none"
        raise RecipeError(
            f"early stopping on `{section.metric}` watches written answers, and {none}",
            where=f"{_KEY}.metric",
            hint="stop on `loss`",
        )


def _watched(recipe: Recipe) -> str:
    section = recipe.training.early_stopping
    return "the loss on" if section is None or section.metric == "loss" else f"{section.metric} of"


def require_validation(recipe: Recipe, *, has_rows: bool) -> None:
    """Refuse early stopping without rows to measure.

    Raises:
        RecipeError: it is asked for, and there are none.
    """
    if recipe.training.early_stopping is not None and not has_rows:
        raise RecipeError(
            f"early stopping watches {_watched(recipe)} validation rows, and there are none",
            where=_KEY,
            hint="hold rows out with data.validation, or remove training.early_stopping",
        )
