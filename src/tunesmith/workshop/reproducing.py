"""A finished run trained once more from what it recorded, and held against it step by step, bit by bit.

Nothing is scored. The repetition is a run folder of its own; an interrupted one goes on with the same call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.engine.checkpoint import Checkpoint, CheckpointFolder
from tunesmith.engine.misfit import plain_fault
from tunesmith.engine.randomness import use_deterministic
from tunesmith.errors import GuardStopped, HardwareMissing, RunError
from tunesmith.files import remove_folder, sha256_of, write_json, write_sealed
from tunesmith.planning.plan import Plan
from tunesmith.progress import Progress, SilentProgress
from tunesmith.recipe.fingerprint import differences, identity
from tunesmith.recipe.machine import LoggingSection
from tunesmith.recipe.root import Recipe
from tunesmith.registry.lineage import read_lineage
from tunesmith.registry.repetition import NOTHING, Difference, difference_of, first_difference, place_of
from tunesmith.registry.runs import RunFolder
from tunesmith.workshop.endings import recorded
from tunesmith.workshop.environment import environment, environment_differences
from tunesmith.workshop.fitting import Fit
from tunesmith.workshop.forking import Fork
from tunesmith.workshop.headed import make_objective
from tunesmith.workshop.inputs import changed_inputs, run_identity
from tunesmith.workshop.machinery import assemble_for, attach, load_base
from tunesmith.workshop.masking import hides_in, masking_of
from tunesmith.workshop.prepare import base_of, open_data
from tunesmith.workshop.results import write_result
from tunesmith.workshop.resuming import as_started

_OTHER_SETTINGS = "resumed with other settings"
_GONE = "put it back as it was: a run can be trained again only from what it was trained on"


@dataclass(frozen=True)
class Reproduction:
    """What came of it.

    Attributes:
        run: the run that was repeated.
        folder: of the repetition; None where it was removed, being equal.
        steps: optimiser steps that were compared.
        first: the first number that differs; None where all are equal.
        environment: what may change bits and differs, as ``name: recorded -> here`` lines.
        notes: what else may explain a difference.
    """

    run: Path
    folder: Path | None
    steps: int
    first: Difference | None
    environment: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether every number and the trained tensors are the same bits."""
        return self.first is None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = asdict(self) | {"run": str(self.run), "folder": str(self.folder) if self.folder else None}
        return {**values, "equal": self.equal, "first": self.first.to_json() if self.first else None}


def reproduce(run_folder: Path, into: Path | None = None, *, progress: Progress | None = None) -> Reproduction:
    """Train a finished run again and compare.

    Args:
        run_folder: the run.
        into: folder of the repetition, which is kept; None takes ``RUN-reproduced`` and removes it where all is equal.
        progress: hears all that happens.

    Raises:
        RunError: no finished run, its files do not belong together, data or base changed, or ``into`` is taken.
        DataError, ModelError: data or base are gone.
        HardwareMissing: the run trained on hardware that is not here.
        GuardStopped, Interrupted: as in training; the same call goes on.
    """
    progress = progress or SilentProgress()
    job = _Repetition(RunFolder.open(Path(run_folder)), into, progress)
    with job.copy.held():
        job.open()
        with recorded(job.copy, job):
            first = job.train()
            job.close(first)
        if first is None and into is None:  # while it is held: the next call makes a folder of its own
            remove_folder(job.copy.path)
    steps = first.step if first is not None else job.steps
    return Reproduction(
        run=job.run.path, folder=job.copy.path if job.copy.path.exists() else None, steps=steps, first=first,
        environment=job.differs, notes=job.notes,
    )  # fmt: skip


class _Differs(Exception):
    """A line that is not the recorded one: there is no need to go on."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class _Witness(RunFolder):
    """The repetition's folder: each line of metrics is held against the recorded one as it comes."""

    expected: Mapping[tuple[int, str], Mapping[str, Any]] | None = None

    def append_metric(self, line: Mapping[str, Any]) -> None:
        """Write the line; raises _Differs where it is another than the run's. Layers are told before their step, and wait."""
        super().append_metric(line)
        step, kind = place_of(line)
        if self.expected is None or kind == "layers":
            return
        if difference_of(self.expected.get((step, kind)), line) is not None:
            raise _Differs(step)


class _Repetition:
    """One call of ``reproduce``."""

    def __init__(self, run: RunFolder, into: Path | None, progress: Progress) -> None:
        self.run = run
        self.progress = progress
        self.step, self.doing, self.has_begun = 0, "preparing", False
        status = run.status()
        if status["status"] != "done":
            raise RunError(
                f"this run is {status['status']}, not done",
                where=str(run.path),
                hint="finish it first: start the same `tunesmith train` again",
            )
        self.steps = int(status["step"])
        self.facts = run.environment()
        if self.facts.get("ranks", 1) != 1:
            raise RunError(
                f"{self.facts['ranks']} ranks trained this run together, and it is reproduced by one process: sums would be "
                "rounded in another order",
                where=str(run.path),
                hint=f"train {run.recipe_path} again with as many ranks and another --run, then `tunesmith runs compare` the two",
            )
        self.copy = _Witness(into if into is not None else run.path.with_name(f"{run.name}-reproduced"))
        self._require_free()
        self.plan = Plan.read(run.plan_path)
        self.recipe = self._recipe()
        self.base = base_of(self.recipe)
        self.data, self.renderer, _ = open_data(self.recipe, notify=progress.note)
        lineage = read_lineage(run)
        self.fork = Fork(lineage) if lineage else None
        self.identity = run_identity(
            self.plan.resolved, self.data, self.base, self.fork.identity if self.fork is not None else None
        )
        if self.identity != self.facts["run_identity"]:
            raise changed_inputs(run, self.recipe, self.renderer, self.base, hint=_GONE)
        self.notes = [
            line["message"] for line in run.events() if str(line.get("message", "")).startswith(_OTHER_SETTINGS)
        ]
        self.differs: list[str] = []

    def _require_free(self) -> None:
        """Refuse a folder that is not ours to write into."""
        self.copy.check_free()
        if not self.copy.exists:
            return
        is_ours = self.copy.environment_path.exists() and self.copy.environment().get("reproduces") == str(
            self.run.path.resolve()
        )
        if not is_ours or self.copy.status()["status"] in ("done", "stopped"):
            raise RunError(
                "this folder holds a run already",
                where=str(self.copy.path),
                hint="remove it, or name another folder with --into",
            )

    def _recipe(self) -> Recipe:
        """The recorded recipe, without sinks and samples, which do not change training."""
        recipe = self.plan.resolved
        if torn := differences(identity(self.run.recipe()), identity(recipe)):
            raise RunError(
                f"recipe.json and plan.json of the run do not belong together: {'; '.join(torn)}",
                where=str(self.run.path),
                hint="put the changed one back from a copy",
            )
        training = recipe.training.model_copy(update={"samples": 0})
        quiet = recipe.model_copy(update={"training": training, "logging": LoggingSection()})
        return as_started(quiet, self.run).placed(Path(self.facts.get("recipe_folder", ".")))

    def open(self) -> None:
        """Check the machine, find where a child starts from, and write what the repetition starts from."""
        settings = self.plan.settings
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise HardwareMissing(
                "the run was trained on a CUDA device, and there is none here",
                where=str(self.run.path),
                hint="reproduce it on a machine like the one that environment.json names",
            )
        if settings.device == "cuda" and not settings.deterministic:
            self._note(
                "the run was not deterministic (machine.deterministic), and CUDA's fast kernels sum in changing order: "
                "equal bits are not promised"
            )
        self._find_start()
        use_deterministic(settings.deterministic)
        self.model = load_base(self.base.path, self.recipe, settings)
        self.objective = make_objective(self.recipe, self.data, settings)
        self.objective.parts.to(settings.device)
        here = environment(self.recipe.folder, settings)
        self.differs = environment_differences(self.facts, here)
        if self.copy.environment_path.exists():
            return
        facts = here | {key: self.facts[key] for key in ("run_identity", "data_key", "base_sha256", "template")}
        lineage = self.fork.lineage if self.fork is not None else None
        with self.copy.creating(self.plan.recipe, lineage):
            write_sealed(self.copy.plan_path, self.plan.to_json())
            self.copy.append_event("started", 0, f"reproduction of {self.run.path} started")
            write_json(self.copy.environment_path, facts | {"reproduces": str(self.run.path.resolve())})

    def _find_start(self) -> None:
        """A child's first checkpoint: its own where it is still kept, else the parent's."""
        if self.fork is None:
            return
        own = CheckpointFolder(self.run.checkpoints_path, self.identity, fits=plain_fault)
        found = own.look(self.fork.lineage["starts_at"])
        if isinstance(found, Checkpoint):
            self.fork = replace(self.fork, own=found)
            return
        try:
            self.fork.parents_checkpoint()
        except GuardStopped as error:
            raise RunError(f"the run is a child, and {error.what}", where=error.where, hint=_GONE) from error

    def train(self) -> Difference | None:
        """Train, and return the first difference."""
        self.doing, self.has_begun = "training", True
        self.copy.set_status("running", steps=self.plan.settings.total_steps)
        expected = {place_of(line): line for line in self.run.metrics()}
        went_back = any(line.get("kind") == "rolled_back" for line in self.run.events())
        # Steps that a rollback takes back are told and taken back in both: there only the whole can be compared.
        self.copy.expected = None if went_back else expected
        settings = self.plan.settings
        machine = assemble_for(self.recipe, settings, self.model, self.objective, self.data, self.renderer)
        machine = hides_in(machine, masking_of(self.recipe, self.renderer))
        adapter = attach(self.model, self.recipe, self.plan.settings)
        fit = Fit(
            self.recipe, self.plan, self.plan.settings, self.copy, self.data, self.renderer, self.identity, self.progress,
            self._say, self.objective, at_step=self._at_step, fork=self.fork,
        )  # fmt: skip
        last, result_step = self.steps, 0
        try:
            _, result_step = fit.train(self.model, adapter, machine)
        except _Differs as stop:
            last = stop.step
        self.doing = "comparing"
        found = first_difference([line for line in expected.values() if line["step"] <= last], self.copy.metrics())
        if found is not None:
            return found
        result = (self.copy, adapter, self.model, self.recipe, self.base.path, self.renderer.stop_ids, result_step)
        write_result(*result, machine.headed)
        return self._weights(result_step)

    def _weights(self, result_step: int) -> Difference | None:
        """The trained tensors of the last step where the run still has them, and the files of the result."""
        recorded, found = (
            _trained(CheckpointFolder(run.checkpoints_path, self.identity), self.steps) for run in (self.run, self.copy)
        )
        if recorded is not None and recorded != found:
            return Difference(self.steps, "sha256 of the trained tensors", recorded, found)
        for name, digest in _result(self.run).items():
            other = _result(self.copy).get(name, NOTHING)
            if digest != other:
                return Difference(result_step, f"sha256 of {name}", digest, other)
        if not _result(self.run):
            return Difference(result_step, "the files of the result", NOTHING, "a result")
        return None

    def close(self, first: Difference | None) -> None:
        """Write into the repetition how it ended."""
        if first is not None:
            self._say("differs", f"differs from {self.run.path} first at {first}")
            self.copy.set_status("stopped", message=f"differs from {self.run.path} at step {first.step}")
            return
        self.copy.append_event("done", self.steps, f"equal to {self.run.path}")
        self.copy.set_status("done", step=self.steps, message=f"equal to {self.run.path}")

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.progress.note(text)

    def _say(self, kind: str, text: str) -> None:
        self.copy.append_event(kind, self.step, text)
        self.progress.note(text)

    def _at_step(self, step: int) -> None:
        self.step = step


def _trained(folder: CheckpointFolder, step: int) -> str | None:
    """Hex sha256 of the trained tensors in a good checkpoint, or None."""
    place = folder.path / f"{step:08d}"
    if not place.is_dir() or folder.fault(place) is not None:
        return None
    return sha256_of(place / "trained.safetensors")


def _result(run: RunFolder) -> dict[str, str]:
    """Name in the run folder -> hex sha256 of each file of tensors of the result."""
    folders = (run.adapter_path, run.model_path, run.path / "head")
    files = [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]
    return {file.relative_to(run.path).as_posix(): sha256_of(file) for file in files}
