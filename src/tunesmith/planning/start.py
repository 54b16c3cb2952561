"""What a run starts from: the weights of its base, or its shape alone. Torch-free."""

from __future__ import annotations

from tunesmith.errors import RecipeError
from tunesmith.recipe.adapters import FullSection
from tunesmith.recipe.root import Recipe


def start_notes(recipe: Recipe) -> list[str]:
    """The sentence about a start from random weights.

    Raises:
        RecipeError: random weights are asked for, and not all of them train.
    """
    if recipe.model.init != "random":
        return []
    if not isinstance(recipe.adapter, FullSection):
        raise RecipeError(
            f"`init: random` starts from weights that nobody trained, and `{recipe.adapter.type}` would leave them so",
            where=recipe.where("model.init"),
            hint="train everything: `adapter: {type: full}`; what is tuned in part needs a base that knows something",
        )
    return [
        f"training starts from random weights in the shape of {recipe.model.name} (model.init, seed {recipe.seed}): of the model "
        "itself only configuration, tokenizer and template are used, and `base` in every score is that random start"
    ]
