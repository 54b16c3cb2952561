"""The loop: batches, loss, backward, step. It knows no method.

step of atoms ─> gradients ─> verdict ─> clip ─> optimiser ─> numbers on their way ─> hooks ─> now and then a checkpoint

What is refused, interrupted or out of memory changes nothing: a step is applied whole or not at all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.engine.checkpoint import Checkpoint, CheckpointFolder, Say, load_trained, shared, trained_of
from tunesmith.engine.gradients import Gradients
from tunesmith.engine.hooks import Hook
from tunesmith.engine.interrupts import GO_ON, Asked, Interrupts
from tunesmith.engine.misfit import misfit
from tunesmith.engine.numbers import DeferredNumbers
from tunesmith.engine.optim import Optimiser
from tunesmith.engine.options import TrainerOptions
from tunesmith.engine.outcome import Outcome
from tunesmith.engine.pace import Pace
from tunesmith.engine.parts import parts_groups
from tunesmith.engine.precision import Precision
from tunesmith.engine.ranks import Ranks
from tunesmith.engine.reckoning import LEFT_OUT, Reckoning
from tunesmith.engine.recovery import Recovery, RollBack
from tunesmith.engine.relief import CannotRelieve, MemoryRelief
from tunesmith.engine.saver import Bystander, Saver
from tunesmith.engine.stopwatch import Stopwatch
from tunesmith.engine.verdict import Judge
from tunesmith.engine.vitals import LayerVital, LayerWatch, measure
from tunesmith.engine.watchdog import Watchdog
from tunesmith.errors import Diverged, GateRefused, GuardStopped
from tunesmith.types import Adapter, Control, Objective, ParamGroup, Step, Stream


class Trainer:
    """Runs a stream through an objective.

    Args:
        model: the facade; its parameters are those of ``adapter`` and the frozen rest.
        objective: what to minimise.
        adapter: what trains.
        stream: steps of atoms.
        options: budget and cadence.
        checkpoints: where state is kept.
        hooks: observers.
        controls: steering.
        weights: factor of each term of the loss; a missing one is 1.
        name_row: how errors name a row of a batch, such as by file and line.
        say: kind of event and sentence.
        tell_layers: takes the step and every layer's vitals, at each evaluation.
        interrupts: watches signals.
        watchdog: watches that steps come; None for nobody.
        ranks: who else trains; None for nobody. All but the main one have no hooks, and say nothing.
        arrange: may split the groups of what trains, such as by depth.
    """

    def __init__(  # noqa: PLR0913 - the loop takes each of its parts by itself: it builds none
        self,
        model: nn.Module,
        objective: Objective,
        adapter: Adapter,
        stream: Stream,
        options: TrainerOptions,
        checkpoints: CheckpointFolder,
        *,
        hooks: Sequence[Hook] = (),
        controls: Sequence[Control] = (),
        weights: Mapping[str, float] | None = None,
        name_row: Callable[[int], str] = str,
        say: Say = lambda kind, text: None,
        tell_layers: Callable[[int, list[LayerVital]], None] = lambda step, vitals: None,
        interrupts: Interrupts | None = None,
        watchdog: Watchdog | None = None,
        ranks: Ranks | None = None,
        arrange: Callable[[Sequence[ParamGroup]], list[ParamGroup]] = list,
    ) -> None:
        self.model: Any = model
        self.objective = objective
        self.adapter = adapter
        self.stream = stream
        self.options = options
        self.checkpoints = checkpoints
        checkpoints.fits = lambda checkpoint: misfit(checkpoint, self)
        self.hooks = list(hooks)
        self.name_row = name_row
        self.say = say
        self.interrupts = interrupts or Interrupts()
        self.ranks, self.times = ranks or Ranks(), Stopwatch()
        self.ranks.times = self.times
        self.watchdog = watchdog
        self.device: torch.device = model.device  # type: ignore[assignment]
        self.precision = Precision(options.precision, self.device)
        self.groups = [*arrange(adapter.groups()), *parts_groups(objective)]
        self.optimiser = Optimiser(self.groups, options)
        self.pace = Pace(self.optimiser, options, self.ranks, say)
        self.relief = MemoryRelief(
            model, recomputes=options.recompute, has_dropout=options.has_dropout, name_row=name_row, say=say
        )
        self.gradients = Gradients(
            model, objective, self.precision, self.relief, self.interrupts,
            seed=options.seed, weights=weights or {}, ranks=self.ranks,
        )  # fmt: skip
        self.judge = Judge(options, self.groups, controls, self.precision, self.device)
        self.recovery = Recovery(options.guards, say)
        self.saver = (Saver if self.ranks.is_main else Bystander)(
            checkpoints, background=options.save_in_background, max_failures=options.max_failed_saves, say=say
        )
        self.reckoning = Reckoning(
            model, objective, self.precision, self.judge, self.recovery, self.hooks, name_row, options.learning_rate
        )
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self._evaluated_step = 0
        self._stopped: str | None = None
        self._numbers = DeferredNumbers(self.device, in_step=self.ranks.size > 1)
        self.layers = LayerWatch(say, tell_layers)
        self._went_back_to = -1

    def run(self) -> Outcome:
        """Train to the end of the budget, from the start or from what was restored.

        Raises:
            GateRefused: not even one row fits into memory.
            GuardStopped: a guard stopped training; the newest good checkpoint stays.
            Interrupted: a signal asked to stop; a checkpoint is saved.
        """
        self.model.train()
        self._rehearse()
        if self.judge.may_roll_back and self.step == 0:  # a rollback needs somewhere to go back to
            self.save()
            self.saver.wait()
        with self.interrupts.watching(), self.watchdog.watching(self.step) if self.watchdog else nullcontext():
            try:
                self._run_around_faults()
                with self._other_work(), self.times.part("saving"):
                    self._finish_saving()
            except Asked:
                self._leave()
            except Exception:
                self.saver.close()
                raise
        if self.interrupts.asked is not None:  # while the last checkpoint was written
            self._leave()
        spent, loss = self.times.spent(self.seconds), self.reckoning.last_loss
        return Outcome(self.step, self.tokens, loss, self.seconds, self._stopped, spent)

    def _run_around_faults(self) -> None:
        while True:
            try:
                self._loop()
            except RollBack as back:
                self._go_back(back)
            else:
                return

    def _loop(self) -> None:
        """Steps to the end of the budget, or until a hook asks to stop."""
        self._interval()
        last = time.perf_counter()
        for step in self.times.drawn("input", self.stream if self._stopped is None else ()):
            if self.ranks.size == 1:  # several come to agree on it within the step
                self.interrupts.check()
            facts = self._pass_over(step) if self.step in self.recovery.left_out else self._one_step(step)
            now = time.perf_counter()
            facts["seconds"] = now - last
            self.seconds += now - last
            if self.watchdog is not None:
                self.watchdog.beat(self.step)
            if self.step % self.options.log_every == 0 or self.step == self.options.total_steps:
                self._report(wait=False)
            self.saver.poll()
            self._interval()
            due = self.step % self.options.checkpoint_every == 0 or self.step == self.options.total_steps
            if due or self._stopped or self.step in self.best_steps():
                self.save()
            if self._stopped:
                break
            last = time.perf_counter()
        self._report(wait=True)

    def _one_step(self, step: Step) -> dict[str, Any]:
        """One optimiser step; the host waits for nothing here on CUDA. Returns its facts, of which ``seconds`` is to come."""
        rate = self.pace.begin(self.step)
        try:
            result = self.gradients.of_step(self.step, step, self.optimiser.clear)
        except CannotRelieve as error:
            raise GuardStopped(
                f"memory ran out at step {self.step + 1}: {error}",
                where=str(self.checkpoints.path),
                hint=f"{_SMALLER}; on one, {GO_ON}",
            ) from error
        grad_norm = self._unscale_and_norm()
        flags = self.judge.judge(self.step, result.loss, grad_norm)
        self.pace.watch(flags["refused"])
        self.judge.clipping.apply(self.optimiser.parameters, grad_norm)
        self.optimiser.step(flags["refused"])
        flags["spoilt"] = self.judge.look_at_weights(self.optimiser.parameters)
        if self._is_evaluation(self.step + 1):
            self.layers.look(self.step + 1, measure(self.optimiser))
        self.optimiser.clear()
        facts = self._counted(step, rate)
        metrics = {f"metric:{name}": mean.total / mean.count for name, mean in result.metrics.items()}
        self._numbers.push(facts, {"loss": result.loss, "grad_norm": grad_norm, **flags, **metrics})
        self.judge.after_step(self.step)
        return facts

    def _pass_over(self, step: Step) -> dict[str, Any]:
        """A step that a rollback goes around: counted, and nothing else."""
        facts = self._counted(step, 0.0)
        absent = torch.full((), math.nan, device=self.device)
        self._numbers.push(facts, {"loss": absent, "grad_norm": absent, LEFT_OUT: torch.ones((), device=self.device)})
        return facts

    def _counted(self, step: Step, rate: float) -> dict[str, Any]:
        tokens = sum(batch.num_tokens for batch in step)
        facts = {
            "learning_rate": rate, "tokens": tokens, "index": self.step, "atoms": step,
            "trained_tokens": sum(int(batch.targets_S.shape[0]) for batch in step),
            "trained_parameters": self.pace.num_trained,
        }  # fmt: skip
        self.step += 1
        self.tokens += tokens
        facts["tokens_total"] = self.tokens
        return facts

    def _unscale_and_norm(self) -> Tensor:
        found = [item.grad for item in self.optimiser.parameters if item.grad is not None]
        self.precision.unscale(found)
        return nn.utils.get_total_norm(found) if found else torch.zeros((), device=self.device)

    def _report(self, *, wait: bool) -> None:
        """Take in the numbers that have arrived from the device, tell the hooks, and act on what was refused."""
        for item in self._numbers.ready(wait=wait):
            self.reckoning.take_in(item)

    def _is_evaluation(self, step: int) -> bool:
        return step > 0 and (step % self.options.evaluate_every == 0 or step == self.options.total_steps)

    def _interval(self) -> None:
        """Let the hooks evaluate where that is due and not done, as after a resume from within an evaluation."""
        if not self.owes_evaluation:
            return
        self._report(wait=True)
        reason = self.ranks.main_says(self._evaluate)
        self._evaluated_step = self.step
        self._stopped = self._stopped or reason

    def _evaluate(self) -> str | None:
        """Ask the hooks; returns why to stop, where one says so."""
        self.model.eval()
        before = [hook.state_dict() for hook in self.hooks]
        try:
            with self.interrupts.at_once(), self._other_work(), self.times.part("evaluation"):
                reasons = [hook.at_interval(self.step) for hook in self.hooks]
        except Asked:  # what was seen of it is not remembered: a resume makes the whole of it
            for hook, state in zip(self.hooks, before, strict=True):
                hook.load_state_dict(state)
            raise
        finally:
            self.model.train()
        return next((reason for reason in reasons if reason), None)

    def _other_work(self) -> AbstractContextManager[None]:
        return self.watchdog.other_work() if self.watchdog else nullcontext()

    def save(self) -> None:
        """Save a checkpoint of everything that a resume needs, once all numbers up to here are known to be good."""
        self._report(wait=True)
        trained = trained_of(self.adapter, self.objective.parts)
        with self._other_work(), self.times.part("saving"):
            self.saver.save(
                Checkpoint(self.step, trained, self.optimiser.state(), self.state()),
                protect=self.best_steps(),
            )

    def state(self) -> dict[str, Any]:
        """Everything but tensors that a resume needs; plain values."""
        return {
            "step": self.step, "updates": self.reckoning.updates, "tokens": self.tokens, "seconds": self.seconds, "times": dict(self.times.seconds),
            "loss": self.reckoning.last_loss if math.isfinite(self.reckoning.last_loss) else None,
            "stream": {**self.stream.state_dict(), "next_step": self.step},
            "precision": self.precision.state_dict(),
            "hooks": [hook.state_dict() for hook in self.hooks],
            "judge": self.judge.state_dict(), "pace": self.pace.state_dict(), "recovery": self.recovery.state_dict(), "relief": self.relief.state_dict(),
            "evaluated_step": self._evaluated_step, "stopped": self._stopped, "faulty_layers": self.layers.faulty,
        }  # fmt: skip

    def best_steps(self) -> frozenset[int]:
        """Steps that a hook may want back at the end: each needs a checkpoint, whatever the cadence."""
        states = (hook.state_dict() for hook in self.hooks)
        return frozenset(int(state["best_step"]) for state in states if state.get("best_step"))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint that fits (the folder gives no other), as if the run had never stopped."""
        load_trained(checkpoint.trained, self.adapter, self.objective.parts)
        self.optimiser.load_state(checkpoint.optimiser)
        state = checkpoint.state
        self.step, self.reckoning.updates = int(state["step"]), int(state["updates"])
        self.tokens, self.seconds = int(state["tokens"]), float(state["seconds"])
        self.times.load(state["times"])
        self.reckoning.last_loss = math.nan if state["loss"] is None else float(state["loss"])
        self.stream.load_state_dict(state["stream"])
        self.precision.load_state_dict(state["precision"])
        self.judge.load_state_dict(state["judge"])
        self.pace.load_state_dict(state["pace"])
        self.recovery.load_state_dict(state["recovery"])
        self.relief.load_state_dict(state["relief"])
        self._evaluated_step, self._stopped = int(state["evaluated_step"]), state["stopped"]
        self.layers.faulty, self.saver.saved_step = dict(state["faulty_layers"]), self.step
        for hook, saved in zip(self.hooks, state["hooks"], strict=self.ranks.is_main):
            hook.load_state_dict(saved)

    @property
    def owes_evaluation(self) -> bool:
        """Whether the evaluation that falls on the current step is still to be done."""
        return self._is_evaluation(self.step) and self._evaluated_step != self.step

    def _go_back(self, back: RollBack) -> None:
        """Return to the newest checkpoint before the offending step; to an older one if that did not help the last time."""
        self._numbers.clear()
        self.saver.wait()
        left_out, rollbacks = set(self.recovery.left_out), self.recovery.rollbacks
        limit = max(0, back.index - self.recovery.options.rollback_window) + 1
        if self.saver.saved_step == self._went_back_to:
            limit = min(limit, self._went_back_to)
        checkpoint = None
        if self.ranks.is_main:
            checkpoint = self.checkpoints.newest(below=limit) or self.checkpoints.newest(below=back.index + 1)
        checkpoint = shared(self.ranks, checkpoint, self.checkpoints)
        if checkpoint is None:
            raise Diverged(
                f"{back.why}, and there is no good checkpoint to go back to", where=str(self.checkpoints.path),
                hint="start again with a lower learning rate, or from a checkpoint put back from a copy",
            )  # fmt: skip
        if self.ranks.is_main:
            self.checkpoints.drop_after(checkpoint.step)
        self.optimiser.clear()
        self.restore(checkpoint)
        self.recovery.left_out, self.recovery.rollbacks = left_out, rollbacks
        self.recovery.went_back(back.index, checkpoint.step, back.why)
        self.judge.resume()
        self.saver.saved_step = self._went_back_to = checkpoint.step
        for hook in self.hooks:
            hook.rewind(checkpoint.step)

    def _rehearse(self) -> None:
        """Try the largest pass to come, forward and backward, so that memory runs out now or never."""
        heaviest = self.stream.heaviest()
        if heaviest is None or self.step >= self.options.total_steps:
            return
        try:
            with self.pace.heaviest(self.step):
                self.gradients.of_step(self.step, [heaviest] * self.ranks.size, self.optimiser.clear)
        except CannotRelieve as error:
            raise GateRefused(
                f"training does not fit into memory: {error}",
                where=f"row {self.name_row(heaviest.rows[0])}",
                hint=_SMALLER,
            ) from error
        except Asked:
            pass
        self.optimiser.clear()

    def _finish_saving(self) -> None:
        if self.saver.saved_step != self.step:
            self.saver.wait()
        if self.saver.saved_step != self.step:  # the stream ended early, or the disk did not take it: once more
            self.save()
            self.saver.wait()
        if self.saver.saved_step != self.step:
            raise GuardStopped(
                f"training reached step {self.step}, and its last checkpoint could not be written",
                where=str(self.checkpoints.path),
                hint="free some space, then start the same command again: it goes on from the newest checkpoint",
            )

    def _leave(self) -> None:
        """Save where the last whole step ended, and say how to go on."""
        self.optimiser.clear()
        with self._other_work():
            self.saver.wait()
            with suppress(RollBack):  # a step on its way was refused: what is saved is older, a resume goes around it
                if self.saver.saved_step != self.step or self.owes_evaluation:
                    self.save()
            self.saver.wait()
        where = str(self.checkpoints.path)
        raise self.interrupts.ending(self.step, self.options.total_steps, self.saver.saved_step, where)


_SMALLER = (
    "set `training.recompute: on`, or lower `model.context` in a run of its own (`--run NAME`), or use a larger machine"
)
