"""Whether the model has the dropout that a recipe sets, and what is said of it. Torch-free."""

from __future__ import annotations

from tunesmith.errors import RecipeError
from tunesmith.models.facts import ModelFacts
from tunesmith.planning.settings import Settings
from tunesmith.recipe.adapters import HeadOnlySection
from tunesmith.recipe.root import Recipe


def base_dropout(recipe: Recipe, facts: ModelFacts) -> dict[str, float]:
    """Rates of the base in training by kind, the recipe's before the configuration's.

    Raises:
        RecipeError: the recipe sets a kind that the model's family does not have.
    """
    given = recipe.model.dropout.rates()
    for kind in given:
        if kind not in facts.dropout:
            has = ", ".join(facts.dropout) or "none that Tunesmith knows"
            raise RecipeError(
                f"models of type `{facts.model_type}` have no {kind} dropout",
                where=recipe.where(f"model.dropout.{kind}"),
                hint=f"they have: {has}; adapters have a `dropout` of their own (adapter.dropout)",
            )
    return {**facts.dropout, **given}


def has_dropout(recipe: Recipe, facts: ModelFacts) -> bool:
    """Whether anything drops out in training: the base, or what is added to it."""
    own = max(getattr(section, "dropout", 0.0) for section in (recipe.adapter, recipe.objective))
    if isinstance(recipe.adapter, HeadOnlySection):  # a base that is frozen whole stays in evaluation mode
        return own > 0
    return own > 0 or any(rate > 0 for rate in base_dropout(recipe, facts).values())


def dropout_notes(recipe: Recipe, facts: ModelFacts, settings: Settings) -> list[str]:
    """What is said of dropout in the base: what the recipe sets, and what it costs."""
    rates = base_dropout(recipe, facts)
    given = recipe.model.dropout.rates()
    said = []
    if given:
        sources = {kind: "model.dropout" if kind in given else "its config.json" for kind in rates}
        shown = ", ".join(f"{kind} {rate:g} ({sources[kind]})" for kind, rate in rates.items())
        said.append(f"dropout of the base in training: {shown}")
    if rates.get("attention", 0.0) > 0 and settings.device == "cuda":
        said.append("attention dropout keeps attention out of the variable-length kernel: training is slower")
    return said
