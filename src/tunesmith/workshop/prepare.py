"""A recipe's data: renderer, token cache and ledger. Torch-free."""

from __future__ import annotations

from collections.abc import Callable

from tunesmith.data.cache_key import cache_root
from tunesmith.data.prepare import Prepared, load_cached, prepare
from tunesmith.data.renderers import make_renderer
from tunesmith.data.rendering import Renderer
from tunesmith.models.facts import read_facts
from tunesmith.models.locate import ModelFolder, check_weights, locate
from tunesmith.planning.base import settled_objective
from tunesmith.planning.defaults import derive_context
from tunesmith.recipe.root import Recipe

Notify = Callable[[str], None]


def base_of(recipe: Recipe) -> ModelFolder:
    """The recipe's base model, its files checked.

    Raises:
        ModelError: not found, without weights, torn, pickled, or with a tokenizer that is too large.
    """
    folder = locate(recipe.model.name, recipe.folder)
    check_weights(folder.path)
    return folder


def renderer_of(recipe: Recipe, base: ModelFolder) -> tuple[Renderer, list[str]]:
    """The one rendering path of training, evaluation and use, with the sentences it wants said."""
    objective = settled_objective(recipe, read_facts(base.path))
    return make_renderer(base.path, recipe.model, objective, recipe.folder)


def open_data(
    recipe: Recipe, *, notify: Notify = lambda text: None, verify: bool = False
) -> tuple[Prepared, Renderer, list[str]]:
    """Build the token cache or take it from where it lies.

    Args:
        recipe: the recipe.
        notify: hears progress.
        verify: hash all sources again instead of trusting path, size and time.

    Returns:
        The prepared data, the renderer, and sentences to say aloud.

    Raises:
        DataError: a file or too many rows are wrong.
        ModelError: the base is.
    """
    base = base_of(recipe)
    renderer, notes = renderer_of(recipe, base)
    context = derive_context(recipe, read_facts(base.path)).value
    prepared = prepare(recipe, renderer, context, cache_root(), notify, verify=verify)
    return prepared, renderer, [*notes, *prepared.ledger.notes]


def cached_data(recipe: Recipe) -> tuple[Prepared | None, Renderer, list[str]]:
    """As ``open_data``, but never builds: None where there is no cache yet."""
    base = base_of(recipe)
    renderer, notes = renderer_of(recipe, base)
    context = derive_context(recipe, read_facts(base.path)).value
    return load_cached(recipe, renderer, context, cache_root()), renderer, notes
