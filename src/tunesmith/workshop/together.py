"""Several ranks on one run: what is asked before they begin, and what a rank does that only follows.

main rank   reads, plans, scores the base ── orders ──> all train ──> scores the result, writes the report
the others  wait ……………………………………………… orders ──> all train ──> end
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.engine.randomness import use_deterministic
from tunesmith.engine.ranks import Ranks, joined
from tunesmith.errors import GateRefused, GuardStopped
from tunesmith.planning.machine import detect
from tunesmith.planning.plan import Plan
from tunesmith.planning.settings import Settings
from tunesmith.progress import SilentProgress
from tunesmith.recipe.root import Recipe
from tunesmith.registry.lineage import parse_fork
from tunesmith.registry.runs import RunFolder
from tunesmith.workshop.fitting import Fit, rows_of_a_pass
from tunesmith.workshop.headed import make_objective
from tunesmith.workshop.machinery import attach, load_base
from tunesmith.workshop.prepare import base_of, open_data
from tunesmith.workshop.resuming import as_started

FINISHED = {"finished": True}
"""Orders where there is nothing to do."""


def require_work(settings: Settings, ranks: Ranks, run: Path) -> list[str]:
    """Refuse more ranks than a step has examples; returns what to say of how a step is shared out.

    Raises:
        GateRefused: some ranks could never have anything to do.
    """
    if ranks.size == 1:
        return []
    if settings.batch_size < ranks.size:
        raise GateRefused(
            f"a step has {settings.batch_size} examples, and there are {ranks.size} ranks",
            where=str(run),
            hint=f"start at most {settings.batch_size} ranks, or raise `training.batch_size`, which changes the run",
        )
    most = rows_of_a_pass(settings, ranks.size)
    said = [f"{ranks.size} ranks train together; a pass holds at most {most} examples, so that each has its share"]
    if (idle := ranks.size - -(-settings.batch_size // (most or 1))) > 0:
        said.append(
            f"a step of {settings.batch_size} examples makes fewer passes than there are ranks: {idle} may have nothing to do; "
            "a multiple of the ranks as `training.batch_size` shares out evenly"
        )
    return said


def follow(recipe: Recipe, run_folder: Path, fork: str | None = None) -> None:
    """Train as a rank that is not the main one: no file is written, nothing is said.

    Args:
        recipe: as every rank was given it.
        run_folder: of the run, on a disk that all ranks share.
        fork: as for ``train``.

    Raises:
        GuardStopped: another rank ended, or this one sees other data or another base than the main one.
        Interrupted: a signal came to one of them.
    """
    run = RunFolder(Path(run_folder))
    with joined(detect(recipe.machine).device) as ranks:
        orders = ranks.told(None)
        if orders != FINISHED:
            _obey(orders, recipe, run, fork, ranks)


def _obey(orders: dict[str, Any], recipe: Recipe, run: RunFolder, fork: str | None, ranks: Ranks) -> None:
    plan, settings = Plan.from_json(orders["plan"]), Settings.from_json(orders["settings"])
    parents = [RunFolder(parse_fork(fork)[0])] if fork is not None else []
    recipe = as_started(recipe, run, *parents)
    base = base_of(recipe)
    data, renderer, _ = open_data(recipe)
    for what, mine, said in (("data", data.key, orders["data"]), ("base model", base.sha256, orders["base"])):
        if mine != said:
            raise GuardStopped(
                f"rank {ranks.rank} sees another {what} than the main rank",
                where=str(base.path if what == "base model" else run.path),
                hint="all ranks must see the same files: put them on a disk that they share",
            )
    use_deterministic(settings.deterministic)
    model = load_base(base.path, recipe, settings)
    objective = make_objective(recipe, data, settings)
    objective.parts.to(settings.device)
    adapter = attach(model, plan.resolved, settings)
    fit = Fit(
        recipe, plan, settings, run, data, renderer, orders["identity"], SilentProgress(), lambda kind, text: None,
        objective, ranks=ranks,
    )  # fmt: skip
    fit.follow(model, adapter, orders["step"])
