"""A base whose linear layers are packed: what may train on it, and its bytes. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from tunesmith.errors import RecipeError
from tunesmith.models import names
from tunesmith.models.facts import ModelFacts
from tunesmith.planning.scope import Scope
from tunesmith.recipe.adapters import HeadOnlySection
from tunesmith.recipe.low_rank import AddedSection
from tunesmith.recipe.root import Recipe

_BYTES: Mapping[str, float] = {"nf4": 0.5 + (1 + 4 / 256) / 64, "int8": 1.0, "fp8": 1.0}
"""A weight; nf4 has a scale of one byte for each 64, and one of four for each 256 of those. Scales of rows are counted apart."""


def require_frozen_base(recipe: Recipe, facts: ModelFacts, scope: Scope) -> None:
    """Refuse to train weights that are packed.

    Raises:
        RecipeError: the adapter, or what trains beside it, is the base's own packed parameters; or there is a head alone.
    """
    kind, section = recipe.model.quantise, recipe.adapter
    if kind == "none":
        return
    if isinstance(section, AddedSection):
        packed = next((name for name in scope.trained if names.is_linear(name, facts.tensors[name])), None)
        if packed is not None:
            raise RecipeError(
                f"`quantise: {kind}` packs `{packed}`, and `also_train` trains it",
                where="adapter.also_train",
                hint="embeddings, head and norms stay unpacked and can train: narrow `also_train`, or take `quantise: none`",
            )
        return
    if isinstance(section, HeadOnlySection):
        raise RecipeError(
            f"`quantise: {kind}` goes with an adapter, and `adapter.type: head` reads the features of a base as it is",
            where="model.quantise",
            hint="take `quantise: none`; or train a head and an adapter together, with `adapter: {type: lora}`",
        )
    raise RecipeError(
        f"`quantise: {kind}` packs the base's weights, and `adapter.type: {section.type}` trains them",
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
