"""A recipe's plan, with exact counts where the token cache has them. Torch-free."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tunesmith.data.notes import document_notes
from tunesmith.data.ordering import epoch_order
from tunesmith.data.prepared import Prepared
from tunesmith.data.reading import resolve
from tunesmith.data.rendering import Renderer
from tunesmith.planning.early_stopping import require_validation
from tunesmith.planning.plan import Plan, make_plan
from tunesmith.planning.settings import Counts, counts_of_lengths
from tunesmith.planning.speeds import record
from tunesmith.recipe.root import Recipe
from tunesmith.workshop.prepare import cached_data
from tunesmith.workshop.sinks import check_sinks

_FEWEST_STEPS = 5


def exact_counts(recipe: Recipe, data: Prepared) -> Counts:
    """Rows and tokens of an epoch from the token cache."""
    weights = np.asarray([source.weight for source in recipe.data.train])
    rows = None if np.all(weights == 1.0) else weights[np.asarray(data.train.sources)]
    stored = sum(store.num_tokens for store in (data.train, data.validation, data.test) if store is not None)
    counts = counts_of_lengths(data.train.lengths, data.train.num_trained, weights=rows, stored_tokens=stored)
    empty = [name for name, store in (("validation", data.validation), ("test", data.test)) if store is None]
    said = document_notes(empty, resolve(recipe), recipe.data)
    return replace(counts, notes=(*counts.notes, *said), labels=len(data.label_counts))


def plan_recipe(recipe: Recipe) -> Plan:
    """Plan a recipe: counts from the cache if there is one, else estimated.

    Raises:
        TunesmithError: as ``make_plan``; or a sink of the recipe is not installed.
    """
    check_sinks(recipe.logging)
    data, renderer, _ = cached_data(recipe)
    return plan_with_data(recipe, data, renderer) if data is not None else make_plan(recipe)


def plan_with_data(recipe: Recipe, data: Prepared, renderer: Renderer) -> Plan:
    """Plan a recipe whose data is prepared: every count is exact.

    Raises:
        TunesmithError: as ``make_plan``; or a sink of the recipe is not installed, or early stopping is asked for and
            no row is held out for validation.
    """
    check_sinks(recipe.logging)
    require_validation(recipe, has_rows=data.validation is not None)
    plan = make_plan(recipe, counts=exact_counts(recipe, data), renderer=renderer)
    return replace(plan, run_tokens=_run_tokens(plan, recipe, data))


def _run_tokens(plan: Plan, recipe: Recipe, data: Prepared) -> int:
    """Tokens of all steps in their order: whole epochs, then as many steps of the next as are left."""
    weights = np.asarray([source.weight for source in recipe.data.train])
    per_row = None if np.all(weights == 1.0) else weights[np.asarray(data.train.sources)]
    lengths = np.asarray(data.train.lengths)
    left, epoch, tokens = plan.settings.total_steps, 0, 0
    while left > 0:
        order = epoch_order(data.train.num_rows, recipe.seed, epoch, per_row)[: left * plan.settings.batch_size]
        tokens += int(lengths[order].sum())
        left -= max(1, -(-len(order) // plan.settings.batch_size))
        epoch += 1
    return tokens


def remember_speed(plan: Plan, seconds: float, steps: int) -> None:
    """Keep the measured speed of a run for later plans; a cache that cannot be written is left alone."""
    share = steps / max(1, plan.settings.total_steps)
    if steps < _FEWEST_STEPS or seconds <= 0:
        return
    freezing = plan.settings.freezing
    if freezing == "autofreeze" or (
        freezing is not None and share < 1
    ):  # the steps were not of the arithmetic that was planned
        return
    try:
        record(plan.speed_key, plan.flops * share / seconds)
    except (OSError, ValueError):
        return
