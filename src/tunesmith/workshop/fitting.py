"""Training itself, between the scores of the base and those of the result: builds the loop's parts, resumes, picks the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tunesmith.adapters.depths import by_depth
from tunesmith.data.head_batches import head_data
from tunesmith.data.loader import MakeBatch, PackedStream, StreamOptions
from tunesmith.data.masked_batches import masked_rows
from tunesmith.data.part_batches import part_rows
from tunesmith.data.prepared import Prepared
from tunesmith.data.rendering import Renderer
from tunesmith.engine.checkpoint import CheckpointFolder, Say, load_trained, read_as
from tunesmith.engine.clipping import ZClipOptions
from tunesmith.engine.hooks import Hook
from tunesmith.engine.interrupts import Interrupts
from tunesmith.engine.options import TrainerOptions
from tunesmith.engine.outcome import Outcome
from tunesmith.engine.ranks import Ranks
from tunesmith.engine.recovery import GuardOptions
from tunesmith.engine.spikes import SpikeOptions
from tunesmith.engine.stopping import EarlyStopping
from tunesmith.engine.trainer import Trainer
from tunesmith.engine.vitals import LayerVital
from tunesmith.engine.watchdog import Watchdog, WatchdogOptions
from tunesmith.errors import Diverged, GuardStopped, RunError
from tunesmith.models import names
from tunesmith.models.causal_lm import CausalLM
from tunesmith.planning.freezing import timetable
from tunesmith.planning.memory import saves_in_background
from tunesmith.planning.plan import Plan
from tunesmith.planning.scoring import score_rule
from tunesmith.planning.settings import Settings
from tunesmith.progress import Progress
from tunesmith.recipe.objectives import SumSection
from tunesmith.recipe.root import Recipe
from tunesmith.registry.lease import LeaseLost
from tunesmith.registry.runs import RunFolder
from tunesmith.types import Adapter, Objective, ParamGroup
from tunesmith.workshop.careful import careful
from tunesmith.workshop.features import FeatureKey, features_of, keeps_features, with_features
from tunesmith.workshop.forking import Fork
from tunesmith.workshop.headed import describe_head, is_headed
from tunesmith.workshop.machinery import Machinery
from tunesmith.workshop.masking import masking_of
from tunesmith.workshop.prepare import base_of
from tunesmith.workshop.sinks import open_sinks
from tunesmith.workshop.stopping_metric import make_watch
from tunesmith.workshop.watching import MetricsHook, ValidationHook

_PROBED_ROWS = 8


@dataclass(frozen=True)
class Fit:
    """Everything the loop is built from.

    Attributes:
        recipe, plan, settings: as resolved.
        run: the folder.
        data: prepared.
        renderer: of the model.
        identity: fingerprint that checkpoints carry.
        progress: hears each step.
        say: kind of event and sentence.
        restart: start from the first step although checkpoints were set aside.
        objective: of the recipe, its parts on the model's device.
        at_step: told how far training is.
        fork: where a child run comes from; None for a run that starts from its base.
        ranks: who trains together.
    """

    recipe: Recipe
    plan: Plan
    settings: Settings
    run: RunFolder
    data: Prepared
    renderer: Renderer
    identity: str
    progress: Progress
    say: Say
    objective: Objective
    restart: bool = False
    at_step: Callable[[int], None] = lambda step: None
    fork: Fork | None = None
    ranks: Ranks = field(default_factory=Ranks)

    def train(self, model: CausalLM, adapter: Adapter, machine: Machinery) -> tuple[Outcome, int]:
        """Train to the end; returns how it ended and the step that is the result.

        Raises:
            GuardStopped, GateRefused, Interrupted: as the loop does.
        """
        resolved = self.plan.resolved.model_dump(mode="json")
        opened = open_sinks(self.recipe.logging, self.recipe.name, self.run.path, resolved)
        sinks = careful(opened, self.recipe.logging.sinks, self.say)
        watch = make_watch(self.recipe, self.data, self.renderer)
        early = watch.stopping if watch else None
        hooks: list[Hook] = [
            MetricsHook(self.run, self.settings, self.progress, sinks),
            ValidationHook(
                self.run, self.data, self.renderer, machine, self.progress,
                samples=self.recipe.training.samples, watch=watch, sinks=sinks,
            ),
        ]  # fmt: skip
        checkpoints = CheckpointFolder(
            self.run.checkpoints_path, self.identity,
            keep=self.settings.keep_checkpoints, say=self.say, check=self.run.check_held, settle=self.run.settle_lines,
            saved=lambda step: self.run.set_status(None, saved_step=step),
        )  # fmt: skip
        trainer = self._trainer(model, adapter, hooks, checkpoints)
        lost = self._resume(trainer, checkpoints)
        if self.ranks.size > 1:
            self.ranks.told(self._orders(trainer))
        self.progress.start(self.settings.total_steps, trainer.step)
        try:
            with self.run.patient():
                outcome = trainer.run()
        finally:
            self.at_step(trainer.step)
            with suppress(OSError, LeaseLost):  # whatever ended it is what is told
                self.run.set_status("running", **_how_far(trainer))
            for sink in sinks:
                sink.close()
        self._tell_lost_lines(outcome.steps, lost)
        if outcome.stopped_early:
            self.say("stopped_early", outcome.stopped_early)
        if early is not None and early.best_step and early.best_step != trainer.step:
            return outcome, self._take_best(trainer, checkpoints, early)
        return outcome, trainer.step

    def _orders(self, trainer: Trainer) -> dict[str, Any]:
        """What the other ranks must know to train along."""
        saved = trainer.saver.saved_step
        return {
            "plan": self.plan.to_json(), "settings": self.settings.to_json(), "identity": self.identity,
            "data": self.data.key, "base": base_of(self.recipe).sha256, "step": saved,
        }  # fmt: skip

    def follow(self, model: CausalLM, adapter: Adapter, step: int | None) -> None:
        """Train to the end as another rank than the main one.

        Args:
            model: the base with ``adapter`` attached.
            adapter: what trains.
            step: of the checkpoint that all go on from; None: from the start.

        Raises:
            GuardStopped, GateRefused, Interrupted: as the loop does.
        """
        checkpoints = CheckpointFolder(self.run.checkpoints_path, self.identity)
        trainer = self._trainer(model, adapter, [], checkpoints)
        if step is not None:
            trainer.restore(read_as(self.ranks, step, checkpoints))
        trainer.run()

    def _trainer(self, model: CausalLM, adapter: Adapter, hooks: list[Hook], checkpoints: CheckpointFolder) -> Trainer:
        def say(kind: str, text: str) -> None:
            self.at_step(trainer.step)
            self.say(kind, text)

        interrupts = Interrupts()
        minutes = self.recipe.training.guards.stall_minutes
        options = WatchdogOptions(stop_after_seconds=None if minutes is None else minutes * 60)
        watchdog = Watchdog(self.run.path, options, interrupts, say, self._last_words)
        trainer = Trainer(
            model, self.objective, adapter, self._stream(model, adapter), self._options(model, adapter), checkpoints,
            hooks=hooks, name_row=lambda row: str(self.data.train.origin(row)), say=say,
            tell_layers=self._tell_layers, interrupts=interrupts,
            watchdog=watchdog if self.ranks.is_main else None, ranks=self.ranks, arrange=self._arrange(model),
        )  # fmt: skip
        if self.fork is not None and not self.fork.lineage["carried"]["optimiser"]:
            trainer.optimiser.began = int(self.fork.lineage["starts_at"])
        return trainer

    def _arrange(self, model: CausalLM) -> Callable[[Sequence[ParamGroup]], list[ParamGroup]]:
        """Groups told apart by depth where the recipe speaks of layers; else as they are, which keeps the order of sums."""
        training, num_layers = self.recipe.training, _num_layers(model)
        if training.layer_rates is None and training.freezing is None:
            return list
        return lambda groups: by_depth(groups, num_layers, training.layer_rates)

    def _last_words(self, text: str) -> None:
        """Said by the watching thread when the loop is stuck and the process is about to be ended."""
        self.run.set_status("stopped", message=text)
        self.say("stopped", text)

    def _options(self, model: CausalLM, adapter: Adapter) -> TrainerOptions:
        names = TrainerOptions.__dataclass_fields__
        values: Mapping[str, Any] = {
            name: getattr(self.settings, name) for name in names if hasattr(self.settings, name)
        }
        training = self.recipe.training
        guards, zclip, num_layers = training.guards, training.adaptive_clip, _num_layers(model)
        policies = {name: getattr(guards, name) for name in GuardOptions.__dataclass_fields__}
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return TrainerOptions(
            **values,
            guards=GuardOptions(**policies),
            spikes=SpikeOptions(**guards.spikes.model_dump()) if guards.spikes else None,
            zclip=ZClipOptions(**zclip.model_dump()) if zclip else None,
            max_failed_saves=guards.max_failed_saves,
            has_dropout=_has_dropout(model, self.recipe),
            save_in_background=saves_in_background(self.settings, 4 * trained + self.plan.memory.parts["optimiser"]),
            timetable=timetable(self.recipe, self.settings, _depths(adapter, num_layers), num_layers),
            score_rule=score_rule(self.recipe, self.settings),
        )

    def _tell_layers(self, step: int, vitals: list[LayerVital]) -> None:
        if not self.ranks.is_main:
            return
        layers = {
            item.layer: {
                "update_norm": _short(item.update_norm), "weight_norm": _short(item.weight_norm),
                "grad_norm": _short(item.grad_norm), "ratio": _short(item.ratio),
            }
            for item in vitals
        }  # fmt: skip
        self.run.append_metric({"step": step, "layers": layers})

    def _resume(self, trainer: Trainer, checkpoints: CheckpointFolder) -> int:
        """Go on where the run stopped, or begin; returns how many steps before that have no line."""
        for sentence in self.run.mend_lines():
            self.say("lines_damaged", sentence)
        try:
            checkpoint = checkpoints.newest()
            if checkpoint is None:
                self._require_none_gone()
        except GuardStopped:
            if not self.restart:
                raise
            self.say("restarted", "no checkpoint is good: training starts from the first step again, as --restart asks")
            checkpoint = None
        if checkpoint is None:
            self.run.set_status(None, step=0, saved_step=None)
            if dropped := self.run.rewind_metrics(0):
                self.say(
                    "begun_again",
                    f"no checkpoint was saved before: {dropped:,} lines are dropped, and their steps made again",
                )
            if self.fork is not None:
                self.fork.start(trainer, self.say)
                self.at_step(trainer.step)
            return 0
        trainer.restore(checkpoint)
        checkpoints.retire(trainer.best_steps() | {checkpoint.step})  # the run may have been cut off before it did
        self.at_step(checkpoint.step)
        self.run.set_status(None, saved_step=checkpoint.step)  # it may have been cut off before it said so
        self.run.rewind_metrics(checkpoint.step, evaluated=not trainer.owes_evaluation)
        self.say("resumed", f"resumed from the checkpoint of step {checkpoint.step} of {self.settings.total_steps}")
        return self._tell_lost_lines(checkpoint.step)

    def _require_none_gone(self) -> None:
        """Raise GuardStopped where there is no checkpoint and the status knows of one: it was not said to go."""
        try:
            said = self.run.recorded_status() or {}
        except RunError:
            return
        step = said.get("saved_step", said.get("step"))
        if step:
            raise GuardStopped(
                f"the checkpoints of this run are gone: it was saved at step {step:,}, and there is none",
                where=str(self.run.checkpoints_path),
                hint="put a whole checkpoint folder back from a copy (no link), or train from the first step again with --restart",
            )

    def _tell_lost_lines(self, step: int, known: int = 0) -> int:
        """Say which steps up to ``step`` have no line, where they are more than is known: they are not done again."""
        first = 1 + (int(self.fork.lineage["starts_at"]) if self.fork is not None else 0)
        told = {line["step"] for line in self.run.each_metric() if "learning_rate" in line}
        lost = [number for number in range(first, step + 1) if number not in told]
        if len(lost) > known:
            self.say(
                "lines_lost",
                f"metrics.jsonl has no line of {len(lost):,} of the steps up to {step:,}, the first of which is {lost[0]:,}: "
                "curves have a gap, training is as it was",
            )
        return len(lost)

    def _take_best(self, trainer: Trainer, checkpoints: CheckpointFolder, early: EarlyStopping) -> int:
        best = checkpoints.load(early.best_step)
        if best is None:
            self.say(
                "best_lost", f"the best checkpoint, of step {early.best_step}, cannot be read: the last one is used"
            )
            return trainer.step
        load_trained(best.trained, trainer.adapter, trainer.objective.parts)
        self.say(
            "best_taken",
            f"the result is the checkpoint of step {early.best_step}, {early.name} {early.best:.4f}",
        )
        return early.best_step

    def _stream(self, model: CausalLM, adapter: Adapter) -> PackedStream:
        settings = self.settings
        options = StreamOptions(
            batch_size=settings.batch_size, total_steps=settings.total_steps, atom_tokens=settings.atom_tokens,
            seed=settings.seed, micro_batch_size=rows_of_a_pass(settings, self.ranks.size),
            source_weights=tuple(source.weight for source in self.recipe.data.train),
            virtual_tokens=adapter.virtual_tokens,
        )  # fmt: skip
        return PackedStream(self.data.train, options, self._make_batch(model))

    def _make_batch(self, model: CausalLM) -> MakeBatch | None:
        """How rows of a step become packs; None where they are as they are stored."""
        masking = masking_of(self.recipe, self.renderer)
        if masking is not None:
            return masked_rows(self.data.train, masking, self.settings.seed)
        if isinstance(self.recipe.objective, SumSection):
            return part_rows(self.data.train)
        if not is_headed(self.recipe):
            return None
        described = describe_head(self.recipe, self.data)
        rows = head_data(self.data, "train", described.shape.task, described.labels)
        if rows is None or not keeps_features(self.recipe):
            return None if rows is None else rows.batch
        base, section = base_of(self.recipe), self.recipe.model
        loaded = (section.quantise, section.init, self.recipe.seed)
        key = FeatureKey(self.data.key, (base.sha256, base.config_sha256), described.shape, self.settings, loaded)
        return with_features(rows, features_of(key, model, rows, self.say))


def rows_of_a_pass(settings: Settings, num_ranks: int) -> int | None:
    """Most examples in one pass: as the settings say, and for several ranks no more than leaves each a share of the step."""
    if num_ranks == 1:
        return settings.micro_batch_size
    share = -(-settings.batch_size // num_ranks)
    return min(share, settings.micro_batch_size or share)


def check_finite(machine: Machinery, data: Prepared, step: int) -> None:
    """Refuse a result that the last update spoilt: the loop sees losses before an update, none comes after the last.

    Raises:
        Diverged: the loss of some of the first rows is not finite.
    """
    rows = range(min(_PROBED_ROWS, data.train.num_rows))
    machine.model.eval()
    if machine.headed is not None:
        described = machine.headed.described
        targets = head_data(data, "train", described.shape.task, described.labels)
        losses = machine.headed.losses(targets, rows) if targets else []
    else:
        losses = machine.scorer.row_losses([data.train.row(index) for index in rows])
    spoilt = [index for index, (total, _) in zip(rows, losses, strict=True) if not math.isfinite(total)]
    if spoilt:
        named = ", ".join(str(data.train.origin(index)) for index in spoilt)
        raise Diverged(
            f"the loss is not finite after the last update, of step {step}; no result is written",
            where=f"step {step}, rows {named}",
            hint="the usual cause is a learning rate that is too high: try a tenth of it",
        )


def _how_far(trainer: Trainer) -> dict[str, Any]:
    loss = trainer.reckoning.last_loss
    return {
        "step": trainer.step, "tokens": trainer.tokens, "seconds": trainer.seconds,
        "loss": loss if math.isfinite(loss) else None,
    }  # fmt: skip


def _num_layers(model: CausalLM) -> int:
    return names.num_layers(name for name, _ in model.hf.named_parameters())


def _depths(adapter: Adapter, num_layers: int) -> set[int]:
    """Depths that hold what trains."""
    return {names.depth(name, num_layers) for group in adapter.groups() for name, _ in group.parameters}


def _has_dropout(model: CausalLM, recipe: Recipe) -> bool:
    layers = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    rates = [getattr(module, "attention_dropout", 0.0) for module in model.modules()]
    attention = any(isinstance(rate, float) and rate > 0 for rate in rates)  # elsewhere it is a module, seen above
    added = any(getattr(section, "dropout", 0.0) > 0 for section in (recipe.adapter, recipe.objective))
    return layers or attention or model.noise is not None or added


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
