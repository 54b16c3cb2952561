"""What a resume takes from the run, what from the recipe, and what it refuses. Torch-free.

Whatever was chosen by looking at the machine (passes, recompute, threads) was chosen once: the run's choice holds where this
machine can follow it, for another choice rounds sums in another order.
"""

from __future__ import annotations

from dataclasses import replace

from tunesmith.errors import HardwareMissing
from tunesmith.planning.plan import Plan
from tunesmith.planning.settings import GIVEN, Settings
from tunesmith.recipe.root import Recipe
from tunesmith.registry.runs import RunFolder

_FROM_THE_RECIPE = ("micro_batch_size", "checkpoint_every", "keep_checkpoints", "log_every")


def as_started(recipe: Recipe, *runs: RunFolder) -> Recipe:
    """The recipe with ``data.overlong`` left open where the first of these runs that has a plan left it open.

    Left open, the policy is chosen row by row; the resolved recipe beside a run states one for all rows. Tokens are found by
    what was written, so a run's own ``recipe.json`` must mean what the run was started with.

    Raises:
        RunError: the plan of the run is torn.
    """
    plan = next((Plan.read(run.plan_path) for run in runs if run.plan_path.exists()), None)
    chosen = plan.values.get("data.overlong") if plan is not None else None
    if chosen is None or chosen.reason == GIVEN or chosen.value != recipe.data.overlong:
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"overlong": None})})


def resumed_plan(stored: Plan, fresh: Plan, recipe: Recipe, run: RunFolder) -> tuple[Plan, list[str]]:
    """The run's own plan with what may change, and a sentence for each change that may change bits.

    Args:
        stored: as the run was started.
        fresh: of the recipe as it is, on this machine.
        recipe: as it was written: what it states wins over what the run chose.
        run: names the run in errors.

    Raises:
        HardwareMissing: the run trains on a GPU, and there is none here.
    """
    before, here = stored.settings, fresh.settings
    if before.device == "cuda" and here.device != "cuda":
        raise HardwareMissing(
            "the run was started on a CUDA device and there is none here: its numbers would be others",
            where=str(run.path),
            hint=f"go on where it was started, or start a child run from its checkpoint here: `--fork {run.path}`",
        )
    settings = replace(before, **{name: getattr(here, name) for name in _FROM_THE_RECIPE})
    if recipe.machine.threads is not None or before.threads > fresh.machine.cores:
        settings = replace(settings, threads=here.threads)
    kept = _passes_fit(before, here) and recipe.training.recompute in ("auto", "on" if before.recompute else "off")
    memory = stored.memory
    if not kept:
        settings = replace(settings, atom_tokens=here.atom_tokens, recompute=here.recompute)
        memory = fresh.memory
    return replace(stored, settings=settings, memory=memory), _said(before, settings, here)


def _passes_fit(before: Settings, here: Settings) -> bool:
    """Whether memory that holds the choice made here holds the run's choice too."""
    return before.atom_tokens <= here.atom_tokens and (before.recompute or not here.recompute)


def _said(before: Settings, now: Settings, here: Settings) -> list[str]:
    notes = []
    changed = [
        f"{words} {_shown(getattr(before, name))} -> {_shown(getattr(now, name))}"
        for name, words in (
            ("threads", "threads"), ("atom_tokens", "tokens of a pass"), ("micro_batch_size", "micro_batch_size"),
            ("recompute", "recompute"),
        )
        if getattr(before, name) != getattr(now, name)
    ]  # fmt: skip
    if changed:
        notes.append(
            f"resumed with other settings ({', '.join(changed)}): the steps and their rows stay, sums are rounded in another "
            "order, and the bits are not those of the unbroken run"
        )
    if now.threads != here.threads:
        notes.append(
            f"{now.threads} threads as the run was started with, not {here.threads}: its bits depend on them "
            f"(machine.threads={here.threads} changes it)"
        )
    return notes


def _shown(value: int | None) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "any" if value is None else f"{value:,}"
