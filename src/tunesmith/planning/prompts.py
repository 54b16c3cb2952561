"""What virtual tokens ask of a plan: room in the context, the start text as token ids, how many numbers train. Torch-free."""

from __future__ import annotations

from typing import Any

from tunesmith.data.rendering import Renderer
from tunesmith.errors import RecipeError
from tunesmith.models import names
from tunesmith.models.facts import ModelFacts
from tunesmith.planning.settings import GIVEN, Derived
from tunesmith.recipe.prompts import PrefixSection, PTuningSection, VirtualSection, virtual_tokens_of
from tunesmith.recipe.root import Recipe

WHERE = "adapter.init_text"
_LEAST_ROOM = 2
"""Tokens of the shortest example that has something to predict."""


def room_behind(recipe: Recipe, facts: ModelFacts) -> int:
    """Tokens of the model's limit that virtual tokens leave to an example; the limit itself without any.

    Raises:
        RecipeError: they leave no room.
    """
    taken = virtual_tokens_of(recipe.adapter)
    room = facts.context - taken
    if taken and facts.context_stated and room < _LEAST_ROOM:
        raise RecipeError(
            f"`num_tokens` is {taken:,}, the model reads at most {facts.context:,} tokens: no example has room behind them",
            where=recipe.where("adapter.num_tokens"),
            hint="usual are 5 to 100",
        )
    return room if facts.context_stated else facts.context


def asks_text(recipe: Recipe) -> bool:
    """Whether ``settle_text`` needs the recipe's tokenizer."""
    return isinstance(getattr(recipe.adapter, "init_text", None), str)


def settle_text(recipe: Recipe, renderer: Renderer | None) -> tuple[Recipe, dict[str, Derived[Any]]]:
    """The recipe with ``init_text`` as token ids, and its value by key with how it fills ``num_tokens``.

    Raises:
        RecipeError: the text has no token.
    """
    section: Any = recipe.adapter
    text = getattr(section, "init_text", None)
    if text is None:
        return recipe, {}
    if not isinstance(text, str):
        return recipe, {WHERE: Derived(text, GIVEN)}
    assert renderer is not None
    ids = renderer.tokenizer.encode(text)
    if not ids:
        raise RecipeError(
            "`init_text` has no token", where=recipe.where(WHERE), hint="write some words, or leave it out"
        )
    settled = recipe.model_copy(update={"adapter": section.model_copy(update={"init_text": ids[: section.num_tokens]})})
    return settled, {WHERE: Derived(text, _filling(len(ids), section.num_tokens))}


def _filling(has: int, wanted: int) -> str:
    if has > wanted:
        return f"the text has {has} tokens, of which the first {wanted} are the start"
    if has < wanted:
        return f"the text has {has} tokens, repeated to {wanted}"
    return f"the text has {has} tokens, as many as train"


def trained_numbers(facts: ModelFacts, section: VirtualSection) -> int:
    """Elements of the virtual tokens, and of a network that makes them."""
    if isinstance(section, PrefixSection):
        keys = facts.num_kv_heads * facts.head_dim
        if not section.projection:
            return section.num_tokens * 2 * facts.num_layers * keys
        inner = section.projection_width
        return section.num_tokens * keys + _dense(keys, inner) + _dense(inner, 2 * facts.num_layers * keys)
    width = next((shape[1] for name, shape in facts.tensors.items() if names.is_embedding(name)), facts.hidden_size)
    count = section.num_tokens * width
    if not isinstance(section, PTuningSection):
        return count
    inner = section.encoder_width or width
    if section.encoder == "mlp":
        return count + _dense(width, inner) + _dense(inner, inner) + _dense(inner, width)
    lstm = 0
    for layer in range(section.encoder_layers):
        given = width if layer == 0 else 2 * inner
        lstm += 2 * 4 * inner * (given + inner + 2)  # two directions, four gates, two biases each
    return count + lstm + _dense(2 * inner, 2 * inner) + _dense(2 * inner, width)


def window_notes(recipe: Recipe, facts: ModelFacts) -> list[str]:
    """A sentence where a model's window hides virtual tokens."""
    if not virtual_tokens_of(recipe.adapter) or facts.sliding_window is None:
        return []
    return [
        f"layers with a window of {facts.sliding_window:,} tokens see virtual tokens only from that near: as they would see real tokens"
    ]


def _dense(num_in: int, num_out: int) -> int:
    return num_in * num_out + num_out
