"""Rates by layer and freezing schedules of a recipe, settled for a model and a number of steps. Torch-free.

recipe's section ──here──> Timetable: a window of steps for each depth ──engine/pace.py──> rates and frozen parameters
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from tunesmith.engine.windows import PrefixRule, Timetable, Window, shown_depths
from tunesmith.errors import RecipeError
from tunesmith.models import names
from tunesmith.models.facts import ModelFacts
from tunesmith.planning.cost import run_flops
from tunesmith.planning.scope import Scope, first_layer
from tunesmith.planning.settings import Counts, Derived, Settings
from tunesmith.recipe.adapters import HeadOnlySection
from tunesmith.recipe.layers import AutoFreezeSection, FreezeOutSection, GradualUnfreezingSection
from tunesmith.recipe.root import Recipe

_MOST_LIFT = 100.0


def timetable(recipe: Recipe, settings: Settings, depths: Collection[int], num_layers: int) -> Timetable | None:
    """What trains when; None where everything trains all the time.

    The lowest depth that trains comes first and the highest last; what follows the layers goes with the topmost of them.

    Args:
        recipe: its ``training.freezing``.
        settings: number of steps, of an epoch, of warm-up.
        depths: that hold what trains.
        num_layers: of the model.
    """
    section = recipe.training.freezing
    if section is None:
        return None
    units = sorted(depth for depth in depths if depth <= num_layers)
    if isinstance(section, GradualUnfreezingSection):
        return Timetable(_unfreezing(section, units, settings), num_layers=num_layers)
    if isinstance(section, FreezeOutSection):
        windows = _freezeout(section, units or [num_layers], settings)
        windows[num_layers + 1] = windows[max(windows)]
        return Timetable(windows, num_layers=num_layers)
    interval = math.ceil(settings.total_steps / section.intervals)
    return Timetable(rule=PrefixRule(interval, section.percentile, num_layers + 1), num_layers=num_layers)


def _unfreezing(section: GradualUnfreezingSection, units: list[int], settings: Settings) -> dict[int, Window]:
    """What is not among the first to train starts after whole strides; those who start at once have no warm-up of their own."""
    stride = settings.steps_per_epoch if section.every == "epoch" else section.every
    later = list(reversed(units))[section.start :]
    return {
        depth: Window(first=(1 + place // section.layers) * stride, warmup=section.warmup)
        for place, depth in enumerate(later)
    }


def _freezeout(section: FreezeOutSection, units: list[int], settings: Settings) -> dict[int, Window]:
    """Brock et al. 2017: shares t_i from ``first`` to 1, cubed or not; a cosine from the end of warm-up to t_i of the rest."""
    start, rest = settings.warmup_steps, settings.total_steps - settings.warmup_steps
    windows = {}
    for place, depth in enumerate(units):
        share = section.first + (1 - section.first) * (place / (len(units) - 1) if len(units) > 1 else 1.0)
        share = share**3 if section.cubed else share
        peak = 1 / share if section.scale_rates else 1.0
        windows[depth] = Window(end=start + share * rest, peak=peak, falls_from=start)
    return windows


def depths_of(facts: ModelFacts, scope: Scope) -> list[int]:
    """Depths that hold what trains, from the input up."""
    trained = (*scope.trained, *scope.adapted, *scope.rows)
    return sorted({names.depth(name, facts.num_layers) for name in trained})


def freezing_values(recipe: Recipe, facts: ModelFacts, scope: Scope, settings: Settings) -> dict[str, Derived[Any]]:
    """Peak rate of each depth and when it trains, from the top down, where the recipe tells layers apart.

    Depths with the same rate and steps stand together; keys are ``layers.`` and their names.
    """
    rates, depths = recipe.training.layer_rates, depths_of(facts, scope)
    table = timetable(recipe, settings, depths, facts.num_layers)
    if rates is None and table is None:
        return {}
    found: dict[tuple[float, str], list[int]] = {}
    for depth in reversed(depths):
        share = 1.0 if rates is None else rates.share(depth, facts.num_layers)
        window = table.windows.get(depth, Window()) if table is not None else Window()
        rate = float(f"{settings.learning_rate * share * window.peak:.3g}")
        found.setdefault((rate, _when(window, table, depth, settings)), []).append(depth)
    return {
        f"layers.{shown_depths(members, facts.num_layers)}": Derived(rate, when)
        for (rate, when), members in found.items()
    }


def _when(window: Window, table: Timetable | None, depth: int, settings: Settings) -> str:
    """The steps of a depth in words, counted from 1."""
    if table is not None and table.rule is not None and depth < table.rule.top:
        rule = table.rule
        return (
            f"peak rate; trains until its gradients and those below hardly change, looked at every {rule.interval:,} steps from "
            f"step {2 * rule.interval:,} on"
        )
    first, last = window.first + 1, _end(window, settings)
    if first > last:
        return "never trains"
    when = "all steps" if (first, last) == (1, settings.total_steps) else f"steps {first:,} to {last:,}"
    fall = " by a cosine of its own" if window.falls_from is not None else ""
    return f"peak rate; trains in {when}{fall}"


def _end(window: Window, settings: Settings) -> int:
    """The step that no longer trains a depth; the number of steps where all do."""
    return min(settings.total_steps, math.ceil(min(window.end, settings.total_steps)))


def require_sense(recipe: Recipe, facts: ModelFacts, scope: Scope, settings: Settings) -> None:
    """Refuse a schedule that would change nothing, or whose rates are beyond use.

    Raises:
        RecipeError: all that trains lies at one depth, or trains from the first step on; or a rate is lifted too far.
    """
    section, depths = recipe.training.freezing, depths_of(facts, scope)
    table = timetable(recipe, settings, depths, facts.num_layers)
    if section is None or table is None:
        return
    where = "training.freezing"
    units = {min(depth, facts.num_layers) for depth in depths} | ({facts.num_layers} if scope.head else set())
    if len(units) < 2:
        raise RecipeError(
            f"`{section.type}` has no layers to tell apart: all that trains lies at one depth",
            where=where,
            hint="leave `training.freezing` out, or train more layers: `adapter: {type: full}`, `lora`, `last_layers`",
        )
    if isinstance(section, GradualUnfreezingSection) and not table.windows:
        raise RecipeError(
            f"`start` is {section.start}, and so all that trains would train from the first step on",
            where=f"{where}.start",
            hint=f"there are {len(units)} depths that train, the embeddings among them where they do: give fewer, or leave it out",
        )
    highest = max((window.peak for window in table.windows.values()), default=1.0)
    if highest > _MOST_LIFT:
        raise RecipeError(
            f"`scale_rates` would lift the rate of the lowest layer {highest:,.0f} times, to {settings.learning_rate * highest:.3g}",
            where=f"{where}.first",
            hint="give a larger `first` (0.5 to 0.9 are usual), or `cubed: false`, or `scale_rates: false`",
        )


def freezing_notes(recipe: Recipe, facts: ModelFacts, scope: Scope, settings: Settings) -> list[str]:
    """Sentences about what a schedule does not reach, or does not go with."""
    section, depths = recipe.training.freezing, depths_of(facts, scope)
    table = timetable(recipe, settings, depths, facts.num_layers)
    if section is None or table is None:
        return []
    notes = []
    never = [depth for depth in depths if table.windows.get(depth, Window()).first >= settings.total_steps]
    if never:
        notes.append(
            f"{shown_depths(never, facts.num_layers)} would be unfrozen after step {settings.total_steps:,}, the last: they never "
            "train (training.freezing.every, training.freezing.layers, training.epochs)"
        )
    if isinstance(section, GradualUnfreezingSection) and recipe.training.early_stopping is not None:
        notes.append(
            "early stopping may end the run before all layers are unfrozen: patience counts from the first evaluation on "
            "(training.early_stopping, training.freezing)"
        )
    guards = [
        key
        for key, is_set in (
            ("training.guards.spikes", recipe.training.guards.spikes), ("training.adaptive_clip", recipe.training.adaptive_clip),
        )
        if is_set is not None
    ]  # fmt: skip
    if isinstance(section, GradualUnfreezingSection) and guards:
        notes.append(
            f"the gradient norm rises with each layer that is unfrozen, and {' and '.join(guards)} may take that for a spike"
        )
    if isinstance(section, AutoFreezeSection):
        notes.append(
            "autofreeze keeps the sum of the gradients of an interval, 4 bytes more for each trained parameter; time and arithmetic "
            "are planned as if nothing were frozen"
        )
    return notes


def schedule_of(recipe: Recipe) -> str:
    """The schedule of the rate that all layers share: constant after warm-up where each layer has a cosine of its own."""
    return "constant" if isinstance(recipe.training.freezing, FreezeOutSection) else recipe.training.schedule


def frozen_flops(recipe: Recipe, facts: ModelFacts, scope: Scope, settings: Settings, counts: Counts) -> float:
    """Operations of the whole run, each stretch of steps with what trains in it; a rule that looks freezes nothing here."""
    if (
        isinstance(recipe.adapter, HeadOnlySection) and recipe.adapter.cache_features
    ):  # the base runs once over the rows
        return run_flops(facts, scope, settings, counts) / max(1.0, settings.total_steps / settings.steps_per_epoch)
    table = timetable(recipe, settings, depths_of(facts, scope), facts.num_layers)
    if table is None or table.rule is not None:
        return run_flops(facts, scope, settings, counts)
    total = 0.0
    for steps, part in _stretches(table, facts, scope, settings):
        total += run_flops(facts, part, settings, counts) * steps / settings.total_steps
    return total


def _stretches(table: Timetable, facts: ModelFacts, scope: Scope, settings: Settings) -> Iterator[tuple[int, Scope]]:
    """Numbers of steps with the same trained depths, and the scope of each."""
    depths = depths_of(facts, scope)
    edges = {0, settings.total_steps}
    for depth in depths:
        window = table.windows.get(depth, Window())
        edges.update(edge for edge in (window.first, _end(window, settings)) if 0 < edge < settings.total_steps)
    ordered = sorted(edges)
    for start, end in pairwise(ordered):
        trains = {depth for depth in depths if table.share(depth, start) > 0}
        yield end - start, _restricted(scope, facts, trains)


def _restricted(scope: Scope, facts: ModelFacts, depths: Collection[int]) -> Scope:
    """The part of a scope that lies at these depths."""

    def kept(sizes: Any) -> dict[str, int]:
        return {name: size for name, size in sizes.items() if names.depth(name, facts.num_layers) in depths}

    trained, adapted, rows = kept(scope.trained), kept(scope.adapted), kept(scope.rows)
    return replace(
        scope, trained=trained, adapted=adapted, rows=rows, first_layer=first_layer(facts, [*trained, *adapted, *rows])
    )
