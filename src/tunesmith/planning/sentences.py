"""What a plan says of choices that a recipe makes, and which of them it refuses. Torch-free."""

from __future__ import annotations

from tunesmith.models.facts import ModelFacts
from tunesmith.planning.base import packing_notes
from tunesmith.planning.dropout import dropout_notes
from tunesmith.planning.early_stopping import early_stopping_notes
from tunesmith.planning.freezing import freezing_notes, require_sense
from tunesmith.planning.losses import loss_notes, require_dropout
from tunesmith.planning.packed import require_frozen_base
from tunesmith.planning.prompts import window_notes
from tunesmith.planning.scope import Scope
from tunesmith.planning.scoring import scoring_notes
from tunesmith.planning.settings import Settings
from tunesmith.planning.start import start_notes
from tunesmith.recipe.root import Recipe


def recipe_notes(recipe: Recipe, facts: ModelFacts, scope: Scope, settings: Settings) -> list[str]:
    """Sentences about loss, start, dropout, freezing and early stopping.

    Raises:
        RecipeError: one of them cannot be done with this model, scope or data.
    """
    require_frozen_base(recipe, facts, scope)
    require_sense(recipe, facts, scope, settings)
    require_dropout(recipe, facts)
    return [
        *packing_notes(facts),
        *start_notes(recipe),
        *loss_notes(recipe),
        *dropout_notes(recipe, facts, settings),
        *window_notes(recipe, facts),
        *freezing_notes(recipe, facts, scope, settings),
        *scoring_notes(recipe, facts, scope, settings),
        *early_stopping_notes(recipe, settings),
    ]
