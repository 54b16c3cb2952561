"""What must be known of a loss that is not the plain one: what it needs, what it costs, what to say. Torch-free."""

from __future__ import annotations

from tunesmith.errors import RecipeError
from tunesmith.models.facts import ModelFacts
from tunesmith.planning.dropout import has_dropout
from tunesmith.recipe.adapters import HeadOnlySection
from tunesmith.recipe.objectives import SumSection
from tunesmith.recipe.root import Recipe


def require_dropout(recipe: Recipe, facts: ModelFacts) -> None:
    """Refuse R-Drop where its two passes would be one and the same.

    Raises:
        RecipeError: nothing drops out in training.
    """
    if not rdrop_alpha(recipe) or has_dropout(recipe, facts):
        return
    kinds = [f"model.dropout.{kind}" for kind in facts.dropout]
    own = ["adapter.dropout"] if hasattr(recipe.adapter, "dropout") else []
    own += ["objective.dropout"] if hasattr(recipe.objective, "dropout") else []
    kinds = [] if isinstance(recipe.adapter, HeadOnlySection) else kinds
    raise RecipeError(
        "R-Drop compares two passes under dropout, and nothing drops out here",
        where=recipe.where("objective.rdrop_alpha"),
        hint=f"set {' or '.join([*own, *kinds])} to 0.1, or remove rdrop_alpha"
        if own or kinds
        else "neither this scope nor this model has dropout: remove rdrop_alpha",
    )


def passes_of_a_step(recipe: Recipe) -> int:
    """How often the model runs over each row of a step: twice for R-Drop."""
    return 2 if rdrop_alpha(recipe) else 1


def rdrop_alpha(recipe: Recipe) -> float:
    """Weight of R-Drop's divergence; 0 where the objective has none."""
    return float(getattr(recipe.objective, "rdrop_alpha", 0.0))


def loss_notes(recipe: Recipe) -> list[str]:
    """The sentence about a training loss whose level is not that of the validation loss."""
    if isinstance(recipe.objective, SumSection):
        parts = " + ".join(f"{part.weight:g} · {part.type}" for part in recipe.objective.parts)
        return [
            f"the training loss is {parts}, each the mean over its own tokens in a step; the validation loss is the plain one of all "
            "tokens. `nll_sft` and `nll_clm` in metrics.jsonl are the plain losses of the parts"
        ]
    given = [
        f"{key} {value:g}"
        for key in ("label_smoothing", "focal_gamma", "rdrop_alpha")
        if (value := getattr(recipe.objective, key, 0.0))
    ]
    if (weights := getattr(recipe.objective, "class_weights", None)) is not None:
        given.append(f"class_weights {weights if isinstance(weights, str) else 'by label'}")
    if not given:
        return []
    return [
        f"the training loss has another level than the validation loss, which stays the plain one "
        f"(objective: {', '.join(given)}): `nll` in metrics.jsonl is the plain loss of training, and the report's curve"
    ]
