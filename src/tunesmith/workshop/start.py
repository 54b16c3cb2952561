"""What a call of ``train`` knows before a model is loaded: base, data, plan, identity; and a run that is finished. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.models.locate import ModelFolder
from tunesmith.planning.plan import Plan, derived_values, require_fit
from tunesmith.planning.settings import Settings
from tunesmith.progress import Progress
from tunesmith.recipe.root import Recipe
from tunesmith.registry.lease import refuse_if_held
from tunesmith.registry.lineage import read_lineage
from tunesmith.registry.runs import RunFolder
from tunesmith.workshop.inputs import changed_inputs, run_identity
from tunesmith.workshop.planning import plan_with_data
from tunesmith.workshop.prepare import base_of, cached_data, open_data
from tunesmith.workshop.resuming import as_started, resumed_plan
from tunesmith.workshop.suite import unmeasured_note


@dataclass(frozen=True)
class Run:
    """A run on disk. ``loss`` is the last step's, in nats per trained token."""

    folder: Path
    status: str
    steps: int
    tokens: int
    loss: float | None
    nothing_to_do: bool = False
    scorecards: dict[str, dict[str, Any]] = field(default_factory=dict)


def finished_run(plan: Plan, run_folder: Path, progress: Progress) -> Run | None:
    """The run of a plan where there is nothing left to do for it; None where ``train`` must see to it.

    Raises:
        RunError: the folder holds another run or other files, or its data or base changed.
    """
    run = RunFolder(Path(run_folder))
    run.check_free()
    if not is_done(run) or not run.report_path.exists() or read_lineage(run) is not None:
        return None
    start = Start(plan.source or plan.resolved, run, progress)
    start.check_unchanged()
    return start.found_finished()


def check_start(plan: Plan, run_folder: Path, progress: Progress) -> None:
    """Refuse what ``train`` would refuse, as far as it shows at once: without a model, and without data to prepare.

    Raises:
        RunError: the folder holds other files or another run, another process works on it, or what it stands on changed.
        GateRefused: the plan does not fit this machine.
    """
    run = RunFolder(Path(run_folder))
    run.check_free()
    refuse_if_held(run.path)
    require_fit(plan)
    recipe = plan.source or plan.resolved
    if run.exists and read_lineage(run) is None and cached_data(recipe)[0] is not None:
        Start(recipe, run, progress).check_unchanged()


def is_done(run: RunFolder) -> bool:
    """Whether the folder holds a run that came to its end."""
    return run.exists and run.status()["status"] == "done"


def summary(run: RunFolder, *, nothing_to_do: bool = False) -> Run:
    """A run as its folder tells it."""
    status = run.status()
    return Run(
        folder=run.path,
        status=status["status"],
        steps=int(status.get("step", 0)),
        tokens=int(status.get("tokens", 0)),
        loss=status.get("loss"),
        nothing_to_do=nothing_to_do,
        scorecards=run.scorecards(),
    )


class Start:
    """A recipe at the door of a run folder.

    Args:
        recipe: what was asked for.
        run: the folder, of a run or free.
        progress: hears what takes time.
        parents: runs that the recipe may be the resolved one of, beside ``run`` itself.

    Raises:
        RunError: the folder holds the run of another recipe.
        TunesmithError: base, data or recipe are wrong.
    """

    def __init__(self, recipe: Recipe, run: RunFolder, progress: Progress, parents: Sequence[RunFolder] = ()) -> None:
        self.recipe = recipe = as_started(recipe, run, *parents)
        self.run = run
        self.progress = progress
        self.base: ModelFolder = base_of(recipe)
        self.data, self.renderer, notes = open_data(recipe, notify=progress.note)
        self.notes = notes
        self.plan = self._plan()
        self.settings: Settings = self.plan.settings
        self.identity = run_identity(self.plan.resolved, self.data, self.base)

    def _plan(self) -> Plan:
        """The plan with exact counts; on resume the run's own, with what may change taken anew."""
        fresh = plan_with_data(self.recipe, self.data, self.renderer)
        if self.run.exists:
            self.run.check_identity(fresh.resolved, derived_values(fresh))
        if not self.run.plan_path.exists() and not self.run.environment_path.exists():
            return fresh  # a run that is made now, or was cut off at its creation
        plan, said = resumed_plan(Plan.read(self.run.plan_path), fresh, self.recipe, self.run)
        self.notes = [*self.notes, *said]
        return plan

    def check_unchanged(self) -> None:
        """Refuse to go on with, or call finished, a run whose data or base is no longer what it was."""
        if not self.run.environment_path.exists():
            return
        if self.run.environment()["run_identity"] == self.identity:
            return
        raise changed_inputs(self.run, self.recipe, self.renderer, self.base)

    def found_finished(self) -> Run:
        """The run as it is; says so where the recipe asks for another evaluation."""
        note = unmeasured_note(self.run, self.recipe)
        if note is not None:
            self.progress.note(note)
        return summary(self.run, nothing_to_do=True)
