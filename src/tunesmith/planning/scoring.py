"""When AFLoRA's matrices are frozen, settled for a number of steps. Torch-free.

    r(x) = 1 - (1 - x)^3        share that is frozen, x from 0 at the first step of freezing to 1 where all is (§2)

The schedule is looked at on a few boundaries only, so that what a compiled or sharded model trains changes a few times.
"""

from __future__ import annotations

import math
from typing import Any

from tunesmith.engine.windows import ScoreRule
from tunesmith.models.facts import ModelFacts
from tunesmith.planning.scope import Scope
from tunesmith.planning.settings import Derived, Settings
from tunesmith.recipe.low_rank import AfloraSection
from tunesmith.recipe.root import Recipe


def score_rule(recipe: Recipe, settings: Settings) -> ScoreRule | None:
    """When and how matrices are frozen; None where the adapter does not do that."""
    section = recipe.adapter
    if not isinstance(section, AfloraSection):
        return None
    return ScoreRule(
        boundaries=boundaries(section, settings),
        pooled=section.procedure == "released",
        window=section.window,
        level_decay=section.level_decay,
        spread_decay=section.spread_decay,
    )


def boundaries(section: AfloraSection, settings: Settings) -> tuple[tuple[int, float], ...]:
    """Steps (from 0) before which a share is frozen, and the share.

    They lie evenly in what follows the first step of freezing, and all but the last, where all is frozen, are rounded up
    to the end of a window; those that fall on one step are one.
    """
    first, last = _first(section, settings), _last(section, settings)
    found: dict[int, float] = {}
    for number in range(1, section.boundaries):
        step = first + (last - first) * number / section.boundaries
        step = math.ceil(step / section.window) * section.window
        if step < last:
            found[step] = frozen_share((step - first) / (last - first))
    return (*found.items(), (last, 1.0))


def frozen_share(x: float) -> float:
    """Share of the matrices that the cubic schedule freezes, x of the way from its first step to its last."""
    return float(1 - (1 - min(max(x, 0.0), 1.0)) ** 3)


def _last(section: AfloraSection, settings: Settings) -> int:
    return max(1, math.ceil(round(section.freeze_by * settings.total_steps, 6)))


def _first(section: AfloraSection, settings: Settings) -> float:
    if section.freeze_from is not None:
        return section.freeze_from * settings.total_steps
    return min(settings.steps_per_epoch, _last(section, settings) / 2)


def scoring_values(recipe: Recipe, scope: Scope, settings: Settings) -> dict[str, Derived[Any]]:
    """The procedure, the steps of freezing and what trains at the end, where the adapter freezes matrices."""
    section = recipe.adapter
    if not isinstance(section, AfloraSection):
        return {}
    values: dict[str, Derived[Any]] = {
        "adapter.vector_rate": Derived(
            float(f"{settings.learning_rate * section.vector_rate:.3g}"),
            f"peak rate of d and b, {section.vector_rate:g} times `training.learning_rate`",
        )
    }
    if not scope.scored:
        return values
    at = [f"{step + 1:,} ({share:.0%})" for step, share in boundaries(section, settings) if step < settings.total_steps]
    values["adapter.procedure"] = Derived.given(section.procedure)
    values["adapter.frozen_from"] = Derived(
        ", ".join(at) or "never",
        f"first step without what is frozen, and the share by the cubic schedule from step {math.floor(_first(section, settings)) + 1:,} "
        f"on, rounded to ends of windows of {section.window} steps",
    )
    return values


def scoring_notes(recipe: Recipe, facts: ModelFacts, scope: Scope, settings: Settings) -> list[str]:
    """Sentences about freezing by scores that does not do what was asked."""
    section = recipe.adapter
    if not isinstance(section, AfloraSection):
        return []
    if not scope.scored:
        asked = (
            "`train_projections: none`" if section.train_projections == "none" else "none of `targets` is feed-forward"
        )
        return [f"{asked}: A and B stay as they are drawn, and only the vectors train (adapter.train_projections)"]
    last = boundaries(section, settings)[-1][0]
    if last >= settings.total_steps:
        return ["A and B are not all frozen before the run ends (adapter.freeze_by)"]
    if all(step < section.window for step, _ in boundaries(section, settings)):
        return [
            f"all of A and B is frozen at step {last + 1:,}, before the first window of {section.window} steps has a score to choose "
            "by (adapter.window, adapter.freeze_by)"
        ]
    return []
