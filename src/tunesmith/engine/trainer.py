"""The loop: batches, loss, backward, step. It knows no method.

step of atoms ─> counts over the whole step ─> per atom: loss sums, one division, backward
              ─> clip ─> controls ─> optimiser ─> schedule ─> hooks ─> now and then a checkpoint
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.engine.checkpoint import Checkpoint, CheckpointFolder
from tunesmith.engine.hooks import Hook, StepFacts
from tunesmith.engine.optim import Optimiser
from tunesmith.engine.options import TrainerOptions
from tunesmith.engine.precision import Precision
from tunesmith.engine.randomness import reseed
from tunesmith.engine.schedules import rate_factor
from tunesmith.errors import GuardStopped, Interrupted
from tunesmith.types import Adapter, Batch, Control, Mean, Objective, Step, Stream


@dataclass
class Outcome:
    """How a run ended. ``loss`` is that of the last step, in nats per unit."""

    steps: int
    tokens: int
    loss: float
    seconds: float
    stopped_early: str | None = None


@dataclass
class _Pending:
    """A step whose numbers still lie on the device."""

    step: int
    loss: Tensor
    grad_norm: Tensor
    refused: Tensor
    metrics: dict[str, Mean]
    facts: dict[str, Any] = field(default_factory=dict)


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
    ) -> None:
        self.model: Any = model
        self.objective = objective
        self.adapter = adapter
        self.stream = stream
        self.options = options
        self.checkpoints = checkpoints
        self.hooks = list(hooks)
        self.controls = list(controls)
        self.weights = dict(weights or {})
        self.name_row = name_row
        self.device: torch.device = model.device  # type: ignore[assignment]
        self.precision = Precision(options.precision, self.device)
        self.groups = adapter.groups()
        self.optimiser = Optimiser(self.groups, options)
        self.step = 0
        self.updates = 0
        self.tokens = 0
        self.seconds = 0.0
        self.last_loss = math.nan
        self._pending: list[_Pending] = []
        self._signal: int | None = None

    def run(self) -> Outcome:
        """Train to the end of the budget, from the start or from what was restored.

        Raises:
            GuardStopped: a loss or gradient was not finite, or the disk is full.
            Interrupted: SIGTERM or SIGINT; a checkpoint is saved.
        """
        self.model.train()
        stopped: str | None = None
        last = time.perf_counter()
        with self._watching_signals():
            for step in self.stream:
                self._one_step(step)
                now = time.perf_counter()
                self.seconds += now - last
                self._pending[-1].facts["seconds"] = now - last
                if self.step % self.options.log_every == 0 or self.step == self.options.total_steps:
                    self._report()
                stopped = self._interval() or stopped
                due = self.step % self.options.checkpoint_every == 0 or self.step == self.options.total_steps
                due = due or self.step in self._best_steps()
                if due or stopped or self._signal is not None:
                    self._report()
                    self.save()
                if self._signal is not None:
                    raise Interrupted(
                        f"stopped by signal {self._signal} after step {self.step} of {self.options.total_steps}; a checkpoint is saved",
                        hint="start the same command again to go on from there",
                    )
                if stopped:
                    break
                last = time.perf_counter()
        self._report()
        return Outcome(self.step, self.tokens, self.last_loss, self.seconds, stopped)

    def _one_step(self, step: Step) -> None:
        """One optimiser step; the host waits for nothing here on CUDA."""
        rate = self.options.learning_rate * rate_factor(self.step, self.options)
        self.optimiser.set_rate(rate)
        on_device = [batch.to(self.device) for batch in step]
        counts = _added([self.objective.counts(batch) for batch in on_device])
        seen = self._survey(on_device)
        total = torch.zeros((), device=self.device)
        metrics: dict[str, Mean] = {}
        for atom, batch in enumerate(on_device):
            reseed(self.options.seed, self.step, atom)
            total = total + self._backward(batch, counts, seen, metrics)
        penalty = self.objective.penalty(self.model)
        if penalty is not None:
            (penalty * self.precision.scale).backward()  # type: ignore[no-untyped-call]
            total = total + penalty.detach()
        grad_norm = self._unscale_and_norm()
        for control in self.controls:
            control.after_backward(self.step, self.groups)
        refused = (~(torch.isfinite(total) & torch.isfinite(grad_norm))).float()
        self._clip(grad_norm)
        self.optimiser.step(refused)
        self.optimiser.clear()
        self.step += 1
        tokens = sum(batch.num_tokens for batch in step)
        trained = sum(int(batch.targets_S.shape[0]) for batch in step)
        self.tokens += tokens
        pending = _Pending(self.step, total, grad_norm, refused, metrics)
        pending.facts = {
            "learning_rate": rate,
            "tokens": tokens,
            "trained_tokens": trained,
            "tokens_total": self.tokens,
            "rows": [row for batch in step for row in batch.rows],
        }
        self._pending.append(pending)
        for control in self.controls:
            control.after_step(self.step, self.groups)

    def _survey(self, batches: Sequence[Batch]) -> dict[str, Mean]:
        seen: dict[str, Mean] = {}
        with torch.no_grad(), self.precision.autocast():
            for batch in batches:
                _add_means(seen, self.objective.survey(self.model, batch))
        return seen

    def _backward(
        self, batch: Batch, counts: Mapping[str, Tensor], seen: Mapping[str, Mean], metrics: dict[str, Mean]
    ) -> Tensor:
        """Forward and backward of one atom; returns its share of the step's loss, detached."""
        with self.precision.autocast():
            loss = self.objective(self.model, batch, seen)
        share = torch.zeros((), device=self.device)
        for term, value in loss.totals.items():
            share = share + self.weights.get(term, 1.0) * value / _one_if_zero(counts[term])
        (share * self.precision.scale).backward()  # type: ignore[no-untyped-call]
        _add_means(metrics, {name: Mean(mean.total.detach(), mean.count) for name, mean in loss.metrics.items()})
        return share.detach()

    def _unscale_and_norm(self) -> Tensor:
        gradients = [item.grad for item in self.optimiser.parameters if item.grad is not None]
        if self.precision.scale != 1.0:
            torch._foreach_mul_(gradients, 1.0 / self.precision.scale)
        if not gradients:
            return torch.zeros((), device=self.device)
        return nn.utils.get_total_norm(gradients)

    def _clip(self, grad_norm: Tensor) -> None:
        if self.options.clip is not None:
            nn.utils.clip_grads_with_norm_(self.optimiser.parameters, self.options.clip, grad_norm)

    def _report(self) -> None:
        """Bring the numbers of past steps to the host, tell the hooks, and stop on a step that was refused."""
        pending, self._pending = self._pending, []
        for item in pending:
            applied = item.refused.item() == 0
            self.precision.after_step(applied)
            self.updates += int(applied)
            self.last_loss = item.loss.item()
            if not applied and self.precision.dtype != torch.float16:
                raise GuardStopped(
                    f"loss or gradient was not finite at step {item.step} (loss {self.last_loss}, gradient norm {item.grad_norm.item()}); that step was not applied",
                    where=f"step {item.step}, rows {', '.join(map(self.name_row, item.facts['rows'][:8]))}",
                    hint="the usual cause is a learning rate that is too high: try a tenth of it",
                )
            del item.facts["rows"]
            facts = StepFacts(
                step=item.step, loss=self.last_loss, grad_norm=item.grad_norm.item(), applied=applied,
                metrics={name: (mean.total / _one_if_zero(mean.count)).item() for name, mean in item.metrics.items()},
                **item.facts,
            )  # fmt: skip
            for hook in self.hooks:
                hook.after_step(facts)

    def _interval(self) -> str | None:
        due = self.step % self.options.evaluate_every == 0 or self.step == self.options.total_steps
        if not due:
            return None
        self._report()
        self.model.eval()
        reasons = [hook.at_interval(self.step) for hook in self.hooks]
        self.model.train()
        return next((reason for reason in reasons if reason), None)

    def save(self) -> None:
        """Write a checkpoint of everything that a resume needs."""
        trained = {f"adapter/{name}": tensor for name, tensor in self.adapter.state().items()}
        trained |= {f"parts/{name}": tensor for name, tensor in self.objective.parts.state_dict().items()}
        hooks = [hook.state_dict() for hook in self.hooks]
        state = {
            "step": self.step, "updates": self.updates, "tokens": self.tokens, "seconds": self.seconds,
            "loss": self.last_loss if math.isfinite(self.last_loss) else None,
            "stream": {**self.stream.state_dict(), "next_step": self.step},
            "precision": self.precision.state_dict(),
            "hooks": hooks,
            "controls": [control.state_dict() for control in self.controls],
        }  # fmt: skip
        checkpoint = Checkpoint(self.step, trained, self.optimiser.state(), state)
        self.checkpoints.save(checkpoint, protect=self._best_steps())

    def _best_steps(self) -> frozenset[int]:
        """Steps that a hook may want back at the end: each needs a checkpoint, whatever the cadence."""
        states = (hook.state_dict() for hook in self.hooks)
        return frozenset(int(state["best_step"]) for state in states if state.get("best_step"))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint as if the run had never stopped."""
        split: dict[str, dict[str, Tensor]] = {"adapter": {}, "parts": {}}
        for path, tensor in checkpoint.trained.items():
            part, _, name = path.partition("/")
            split[part][name] = tensor
        self.adapter.load_state(split["adapter"])
        self.objective.parts.load_state_dict(split["parts"])
        self.optimiser.load_state(checkpoint.optimiser)
        state = checkpoint.state
        self.step, self.updates = int(state["step"]), int(state["updates"])
        self.tokens, self.seconds = int(state["tokens"]), float(state["seconds"])
        self.last_loss = math.nan if state["loss"] is None else float(state["loss"])
        self.stream.load_state_dict(state["stream"])
        self.precision.load_state_dict(state["precision"])
        for hook, saved in zip(self.hooks, state["hooks"], strict=True):
            hook.load_state_dict(saved)
        for control, saved in zip(self.controls, state["controls"], strict=True):
            control.load_state_dict(saved)

    @contextmanager
    def _watching_signals(self) -> Iterator[None]:
        """Within the context SIGTERM and SIGINT ask to stop after the step; only the main thread can watch."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[signal.Signals, Callable[..., Any] | int | None] = {}

        def note(number: int, _frame: FrameType | None) -> None:
            if self._signal is not None:
                raise KeyboardInterrupt
            self._signal = number

        for watched in (signal.SIGTERM, signal.SIGINT):
            before[watched] = signal.signal(watched, note)
        try:
            yield
        finally:
            for watched, handler in before.items():
                signal.signal(watched, handler)


def _one_if_zero(count: Tensor) -> Tensor:
    return torch.where(count == 0, torch.ones_like(count), count)


def _added(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for item in items:
        for name, value in item.items():
            total[name] = total[name] + value if name in total else value
    return total


def _add_means(into: dict[str, Mean], more: Mapping[str, Mean]) -> None:
    for name, mean in more.items():
        into[name] = Mean(into[name].total + mean.total, into[name].count + mean.count) if name in into else mean
