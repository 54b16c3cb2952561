"""A base whose linear layers are packed: what may train on it, and its bytes. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from tunesmith.errors import RecipeError
from tunesmith.models import names
from tunesmith.models.facts import ModelFacts
from tunesmith.recipe.low_rank import AddedSection
from tunesmith.recipe.root import Recipe

_BYTES: Mapping[str, float] = {"nf4": 0.5 + (1 + 4 / 256) / 64, "int8": 1.0, "fp8": 1.0}
"""A weight; nf4 has a scale of one byte for each 64, and one of four for each 256 of those. Scales of rows are counted apart."""


def require_frozen_base(recipe: Recipe) -> None:
    """Refuse to train weights that are packed.

    Raises:
        RecipeError: the adapter trains the base's own parameters.
    """
    kind = recipe.model.quantise
    if kind == "none" or isinstance(recipe.adapter, AddedSection):
        return
    raise RecipeError(
        f"`quantise: {kind}` packs the base's weights, and `adapter.type: {recipe.adapter.type}` trains them",
        where="model.quantise",
        hint="train an adapter on it, such as `adapter: {type: lora}`, or take `quantise: none`",
    )


def packed_bytes(facts: ModelFacts, kind: str) -> tuple[int, int]:
    """Bytes of the packed layers with their scales, and how many weights they hold.

    Args:
        facts: sizes of the model.
        kind: ``none``, ``nf4``, ``int8`` or ``fp8``.
    """
    if kind == "none":
        return 0, 0
    shapes = [shape for name, shape in facts.tensors.items() if names.is_linear(name, shape)]
    count = sum(prod(shape) for shape in shapes)
    scales = 0 if kind == "nf4" else 4 * sum(max(shape) for shape in shapes)
    return int(count * _BYTES[kind]) + scales, count


def largest_layer(facts: ModelFacts) -> int:
    """Weights of the largest linear layer, which a product unpacks."""
    return max((prod(shape) for name, shape in facts.tensors.items() if names.is_linear(name, shape)), default=0)
