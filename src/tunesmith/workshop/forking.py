"""A child run from a checkpoint of another run, although recipe or data changed: what is asked, carried, said and written.

The child's first checkpoint is its own, so that nothing of the parent is needed once training has begun.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.adapters import build as build_adapter
from tunesmith.adapters.added import AddedAdapter
from tunesmith.data.prepared import Prepared
from tunesmith.engine.checkpoint import Checkpoint, CheckpointFolder, Say, trained_of
from tunesmith.engine.forking import Carried, first_checkpoint, tensor_differences
from tunesmith.engine.misfit import plain_fault
from tunesmith.engine.optim import Optimiser
from tunesmith.engine.options import TrainerOptions
from tunesmith.engine.parts import parts_groups
from tunesmith.engine.tensor_form import trained_fault
from tunesmith.engine.trainer import Trainer
from tunesmith.errors import GuardStopped, RunError
from tunesmith.files import read_json
from tunesmith.models.causal_lm import CausalLM
from tunesmith.planning.plan import Plan
from tunesmith.recipe.low_rank import AddedSection, AfloraSection
from tunesmith.recipe.root import Recipe
from tunesmith.registry.compare import changed
from tunesmith.registry.lineage import parse_fork, read_lineage
from tunesmith.registry.runs import RunFolder
from tunesmith.types import Objective
from tunesmith.workshop.inputs import changes

_MOST_LINES = 12
FORMAT = 1


@dataclass
class Fork:
    """Where a child comes from.

    Attributes:
        lineage: what ``lineage.json`` says or will say.
        checkpoint: the parent's, once it was looked at.
        own: the child's own first checkpoint, where there is no need to ask the parent.
    """

    lineage: dict[str, Any]
    checkpoint: Checkpoint | None = None
    own: Checkpoint | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What makes the child another run than one of the same recipe: the parent and its checkpoint, not its folder."""
        return {key: self.lineage["parent"][key] for key in ("run_identity", "step", "manifest_sha256")}

    def require_fit(self, model: CausalLM, recipe: Recipe, objective: Objective) -> None:
        """Refuse a recipe that trains other tensors than the parent did; the model is left as it was.

        Args:
            model: the base.
            recipe: of the child.
            objective: of the recipe; its parts train too.

        Raises:
            RunError: lists the tensors that differ, or says what else of the checkpoint does not fit.
        """
        adapter = build_adapter(recipe.adapter, recipe.seed)
        adapter.attach(model.hf)
        wanted = trained_of(adapter, objective.parts)
        parents = self.parents_checkpoint()
        found = tensor_differences(parents.trained, wanted)
        fault = trained_fault(parents.trained, wanted)
        if self.lineage["carried"]["optimiser"]:
            options = TrainerOptions(1, learning_rate=1.0, warmup_steps=0, optimiser=recipe.training.optimiser)
            groups = [*adapter.groups(), *parts_groups(objective)]
            fault = fault or Optimiser(groups, options).fault(parents.optimiser)
        if isinstance(adapter, AddedAdapter):
            adapter.detach()
        if found:
            raise RunError(
                _listed(f"the parent trained other tensors: {len(found)} differ (parent -> child)", found),
                where=self.lineage["parent"]["path"],
                hint="a child keeps the parent's `adapter` section; to change it, export the parent merged and train on that as the base",
            )
        if fault is not None:
            raise RunError(
                f"the parent's checkpoint of step {parents.step:,} cannot be used: {fault}",
                where=self.lineage["parent"]["path"],
                hint="fork from another of its steps with `--fork RUN@STEP`, or put the checkpoint back from a copy",
            )

    def start(self, trainer: Trainer, say: Say) -> None:
        """Put the trainer where the child starts, and save that as the child's own checkpoint.

        Raises:
            GuardStopped: the checkpoint could not be written, or the parent's is gone.
        """
        carried = Carried(**self.lineage["carried"])
        first = self.own or first_checkpoint(self.parents_checkpoint(), trainer.state(), carried)
        if fault := trainer.checkpoints.fits(first):
            raise self._unusable(fault)
        trainer.restore(first)
        self.checkpoint = self.own = None
        for sentence in self.lineage["said"]:
            say("forked", sentence)
        trainer.save()
        trainer.saver.wait()
        if trainer.saver.saved_step != trainer.step:
            raise GuardStopped(
                "the child's first checkpoint could not be written",
                where=str(trainer.checkpoints.path),
                hint="free some space, then start the same command again",
            )

    def parents_checkpoint(self) -> Checkpoint:
        """The checkpoint that the child starts from, verified again where it was not looked at yet.

        Raises:
            GuardStopped: it is gone, damaged, or another one than the child was forked from.
        """
        if self.checkpoint is None:
            parent = self.lineage["parent"]
            folder = CheckpointFolder(Path(parent["path"]) / "checkpoints", parent["run_identity"], fits=plain_fault)
            found = folder.look(parent["step"])
            if not isinstance(found, str) and folder.manifest_sha256(parent["step"]) != parent["manifest_sha256"]:
                found = "it is not the one that this run was forked from"
            if isinstance(found, str):
                raise self._unusable(found)
            self.checkpoint = found
        return self.checkpoint

    def _unusable(self, fault: str) -> GuardStopped:
        parent = self.lineage["parent"]
        return GuardStopped(
            f"this run has no good checkpoint of its own, and the parent's of step {parent['step']} cannot be used: {fault}",
            where=str(Path(parent["path"]) / "checkpoints"),
            hint="put the parent's checkpoint back from a copy, or fork again into another folder with --run",
        )


@dataclass(frozen=True)
class Child:
    """The run to make, as far as it is settled."""

    plan: Plan
    data: Prepared
    base_sha256: str
    inputs: Mapping[str, Any]


def find_fork(asked: str | None, run: RunFolder) -> Fork | None:
    """The fork that a folder already holds; None where there is none yet.

    Raises:
        RunError: it holds a run that is another fork than was asked for, or none.
    """
    if asked is not None and not run.environment_path.exists():
        return None
    lineage = read_lineage(run)
    if asked is None:
        return Fork(lineage) if lineage else None
    path, step = parse_fork(asked)
    if lineage is None:
        raise RunError(
            f"this folder holds a run already, and it was not forked from {asked}",
            where=str(run.path),
            hint=f"name the child's folder with --run, such as `--run {_free_name(run.path)}`",
        )
    parent = lineage["parent"]
    if Path(parent["path"]) != path.resolve() or step not in (None, parent["step"]):
        raise RunError(
            f"the run in this folder was forked from {parent['path']}@{parent['step']}, not from {asked}",
            where=str(run.path),
            hint=f"go on with it without --fork, or name another folder with --run, such as `--run {_free_name(run.path)}`",
        )
    return Fork(lineage)


def new_fork(asked: str, child: Child) -> Fork:
    """Look at the parent, and settle what the child takes from it. Nothing is written, in neither folder.

    Raises:
        RunError: no such run or checkpoint, another base, rows of other tokens, or no step left to train.
    """
    path, step = parse_fork(asked)
    parent = RunFolder.open(path)
    environment, recipe = parent.environment(), parent.recipe()
    _require_same_base(parent, environment, child)
    _require_same_tokens(recipe, child.plan.resolved, asked)
    folder = CheckpointFolder(parent.checkpoints_path, environment["run_identity"], fits=plain_fault)
    checkpoint, notes = _checkpoint(folder, asked, step)
    best = parent.status().get("result_step")
    if step is None and best not in (None, checkpoint.step):
        notes.append(f"the parent's own result is of step {best:,}: --fork {asked}@{best} would start there")
    carried, said = _carried(recipe, environment["data_key"], child)
    if carried.position and checkpoint.step >= child.plan.settings.total_steps:
        raise RunError(
            f"no step is left to train: the parent's checkpoint is of step {checkpoint.step:,}, and the child ends at step "
            f"{child.plan.settings.total_steps:,}",
            where=f"--fork {asked}",
            hint=f"raise `training.epochs` or `training.max_steps`, or fork from an earlier step: {_steps(folder)}",
        )
    differences = {
        "recipe": changed(recipe.model_dump(mode="json"), child.plan.recipe),
        "inputs": [line for lines in changes(_inputs(parent), child.inputs).values() for line in lines],
    }
    above = read_lineage(parent)
    lineage = {
        "format": FORMAT,
        "parent": {
            "path": str(parent.path.resolve()), "name": parent.name, "run_identity": environment["run_identity"],
            "step": checkpoint.step, "manifest_sha256": folder.manifest_sha256(checkpoint.step),
        },
        "ancestors": [above["parent"], *above.get("ancestors", [])] if above else [],
        "starts_at": checkpoint.step if carried.position else 0,
        "carried": asdict(carried), "differences": differences,
        "said": [_start(parent, checkpoint.step, carried, child), *said, *notes, *_told(differences)],
    }  # fmt: skip
    return Fork(lineage, checkpoint)


def _require_same_tokens(parent: Recipe, child: Recipe, asked: str) -> None:
    """Rows of other tokens have the same shape, so their names and shapes would not tell."""
    before, now = parent.adapter, child.adapter
    if isinstance(before, AddedSection) and isinstance(now, AddedSection) and before.train_tokens != now.train_tokens:
        raise RunError(
            f"the parent trained the rows of other tokens: `adapter.train_tokens` is {before.train_tokens} there and "
            f"{now.train_tokens} here",
            where=f"--fork {asked}",
            hint=f"set `adapter.train_tokens: {before.train_tokens}`, or export the parent merged and train on that as the base",
        )


def _carried(parent: Recipe, parents_data: str, child: Child) -> tuple[Carried, list[str]]:
    """What is taken over, and why the rest is not."""
    recipe = child.plan.resolved
    one, other = parent.training, recipe.training
    moved = [
        name
        for name, is_other in (
            ("the data", parents_data != child.data.key), ("the objective", parent.objective != recipe.objective),
            ("`training.batch_size`", one.batch_size != other.batch_size), ("`seed`", parent.seed != recipe.seed),
        )
        if is_other
    ]  # fmt: skip
    position = not moved
    carried = Carried(
        position=position,
        optimiser=one.optimiser == other.optimiser,
        loss_scale=one.precision == other.precision == "fp16",
        clipping=position and one.adaptive_clip == other.adaptive_clip,
        spikes=position and one.guards.spikes == other.guards.spikes,
        freezing=position and _freezing_of(parent) == _freezing_of(recipe),
    )
    said = [f"{' and '.join(moved)} {'is' if len(moved) == 1 else 'are'} not the parent's"] if moved else []
    if not carried.optimiser:
        said.append(f"the optimiser is {other.optimiser}, the parent's was {one.optimiser}: its state starts anew")
    if position and not carried.clipping:
        said.append("adaptive clipping starts anew: its settings are not the parent's")
    if position and not carried.spikes:
        said.append("the window of the spike guard starts anew: its settings are not the parent's")
    if position and not carried.freezing:
        said.append(
            f"what is frozen starts anew: {'`adapter`' if isinstance(recipe.adapter, AfloraSection) else '`training.freezing`'} is not the parent's"
        )
    if other.early_stopping is not None:
        said.append("early stopping starts anew: the best checkpoint is chosen among the child's own")
    return carried, said


def _freezing_of(recipe: Recipe) -> tuple[Any, ...]:
    """What freezes on the way, by layers or by matrices."""
    return recipe.training.freezing, recipe.adapter if isinstance(recipe.adapter, AfloraSection) else None


def _start(parent: RunFolder, step: int, carried: Carried, child: Child) -> str:
    also = " and optimiser state" if carried.optimiser else ""
    where = (
        f"goes on at step {step:,} of {child.plan.settings.total_steps:,}, where the parent was in the data"
        if carried.position
        else "starts at step 0 of its own data"
    )
    return f"forked from {parent.path} at step {step:,}: takes over the weights{also}, and {where}"


def _told(differences: Mapping[str, Sequence[str]]) -> list[str]:
    words = {"recipe": "recipe", "inputs": "data, rendering or base"}
    return [
        _listed(f"differences of the {words[name]} (parent -> child)", lines)
        for name, lines in differences.items()
        if lines
    ]


def _require_same_base(parent: RunFolder, environment: Mapping[str, Any], child: Child) -> None:
    found = changes(_inputs(parent), child.inputs).get("base", [])
    if environment["base_sha256"] == child.base_sha256 and not found:
        return
    raise RunError(
        _listed("the parent was trained on another base model (parent -> child)", found),
        where=str(parent.path),
        hint="a child keeps the parent's base; to train on from the parent's result on its own, export it merged and name that as `model`",
    )


def _inputs(run: RunFolder) -> Mapping[str, Any]:
    values = read_json(run.inputs_path) if run.inputs_path.exists() else {}
    return values if isinstance(values, dict) else {}


def _checkpoint(folder: CheckpointFolder, asked: str, step: int | None) -> tuple[Checkpoint, list[str]]:
    """The checkpoint asked for, or the newest good one; and what was found bad on the way."""
    notes: list[str] = []
    for candidate in reversed(folder.steps()) if step is None else [step]:
        found = folder.look(candidate)
        if not isinstance(found, str):
            return found, notes
        notes.append(f"the parent's checkpoint of step {candidate:,} cannot be used: {found}")
    lost = step is not None and step not in folder.steps()
    raise RunError(
        f"the parent has no checkpoint of step {step:,}"
        if lost
        else "; ".join(notes) or "the parent has no checkpoint",
        where=f"--fork {asked}",
        hint=f"steps with a checkpoint: {_steps(folder)}"
        if folder.steps()
        else "checkpoints come with training: see `training.checkpoint_every`",
    )


def _steps(folder: CheckpointFolder) -> str:
    return ", ".join(f"@{step}" for step in folder.steps()) or "none"


def _listed(head: str, lines: Sequence[str]) -> str:
    more = [f"  and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    colon = ":" if lines else ""
    return "\n".join([head + colon, *(f"  {line}" for line in lines[:_MOST_LINES]), *more])


def _free_name(path: Path) -> Path:
    """The next name beside ``path`` that nobody has."""
    number = 2
    while (candidate := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return candidate
