"""What must be said about a loss that is not the plain one. Torch-free."""

from __future__ import annotations

from tunesmith.recipe.root import Recipe


def loss_notes(recipe: Recipe) -> list[str]:
    """The sentence about a training loss whose level is not that of the validation loss."""
    given = [
        f"{key} {value:g}"
        for key in ("label_smoothing", "focal_gamma")
        if (value := getattr(recipe.objective, key, 0.0))
    ]
    if not given:
        return []
    return [
        f"the training loss has another level than the validation loss, which stays the plain one "
        f"(objective: {', '.join(given)}): `nll` in metrics.jsonl is the plain loss of training, and the report's curve"
    ]
