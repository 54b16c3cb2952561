"""Hooks of a run: metrics and progress, validation losses, samples, early stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tunesmith.data.prepared import Prepared
from tunesmith.data.rendering import Renderer
from tunesmith.data.store import TokenStore
from tunesmith.engine.hooks import StepFacts
from tunesmith.planning.settings import Settings
from tunesmith.progress import Progress
from tunesmith.records import Row, Text
from tunesmith.registry.runs import RunFolder
from tunesmith.types import Sampling
from tunesmith.workshop.machinery import Machinery
from tunesmith.workshop.sinks import Sink
from tunesmith.workshop.stopping_metric import Watch

_SAMPLE_TOKENS = 64


class MetricsHook:
    """Writes metrics.jsonl, feeds sinks, and tells how fast it goes and how long it takes."""

    def __init__(self, run: RunFolder, settings: Settings, progress: Progress, sinks: tuple[Sink, ...] = ()) -> None:
        self.run = run
        self.settings = settings
        self.progress = progress
        self.sinks = sinks
        self._seconds: list[float] = []

    def after_step(self, facts: StepFacts) -> None:
        """One line a step."""
        speed = facts.tokens / facts.seconds if facts.seconds > 0 else 0.0
        line: dict[str, Any] = {
            "step": facts.step, "loss": _finite(facts.loss), "learning_rate": facts.learning_rate,
            "grad_norm": _finite(facts.grad_norm), "tokens": facts.tokens_total, "trained_tokens": facts.trained_tokens,
            "trained_parameters": facts.trained_parameters,
            "tokens_per_second": round(speed, 1), "seconds": round(facts.seconds, 6),
            **{name: _finite(value) for name, value in facts.metrics.items()},
        }  # fmt: skip
        if not facts.applied:
            line["refused_by"] = facts.refused_by
        self.run.append_metric(line)
        for sink in self.sinks:
            sink.log(facts.step, {key: value for key, value in line.items() if isinstance(value, float)})
        self._seconds = [*self._seconds[-49:], facts.seconds]
        left = (self.settings.total_steps - facts.step) * sum(self._seconds) / len(self._seconds)
        self.progress.step(facts.step, facts.loss, speed, left)

    def at_interval(self, step: int) -> str | None:
        """Nothing to do."""
        return None

    def rewind(self, step: int) -> None:
        """Drop the lines of steps that are done again another way, validation and samples among them."""
        self.run.rewind_metrics(step)

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class ValidationHook:
    """Validation loss at intervals, a few answers to watch, and early stopping where it is asked for.

    What ``watch`` measures stands in the line of the loss.
    """

    def __init__(
        self,
        run: RunFolder,
        data: Prepared,
        renderer: Renderer,
        machine: Machinery,
        progress: Progress,
        *,
        samples: int,
        watch: Watch | None,
        sinks: tuple[Sink, ...] = (),
    ) -> None:
        self.run = run
        self.data = data
        self.store = data.validation
        self.machine = machine
        self.renderer = renderer
        self.progress = progress
        self.stopping = watch.stopping if watch else None
        self.measure = watch.measure if watch else None
        self.sinks = sinks
        self._watched: list[Row] = []
        if samples and self.store is not None and machine.headed is None:
            rows = (row for row in data.iter_rows("validation") if not isinstance(row.record, Text))
            self._watched = [row for row, _ in zip(rows, range(samples), strict=False)]

    def after_step(self, facts: StepFacts) -> None:
        """Nothing to do."""

    def at_interval(self, step: int) -> str | None:
        """Measure, sample, and decide whether patience has run out."""
        if self.store is None:
            return None
        losses = self._losses(self.store)
        nats, tokens = sum(total for total, _ in losses), sum(count for _, count in losses)
        loss = nats / max(1, tokens)
        measured = {} if self.measure is None else self.measure(self.machine)
        more = {f"validation_{name}": value for name, value in measured.items()}
        line = {"step": step, "validation_loss": _finite(loss), "validation_tokens": tokens, **more}
        self.run.append_metric(line)
        for sink in self.sinks:
            sink.log(step, {"validation_loss": loss, **more})
        self._sample(step)
        value = next(iter(measured.values()), loss)
        if self.stopping is None or not math.isfinite(value):
            return None
        return self.stopping.see(step, value)

    def _losses(self, store: TokenStore) -> list[tuple[float, int]]:
        """Summed loss and units of every validation row."""
        if self.machine.headed is not None:
            return self.machine.headed.mean_loss(self.data, "validation") or []
        return self.machine.scorer.row_losses([store.row(index) for index in range(store.num_rows)])

    def _sample(self, step: int) -> None:
        if not self._watched:
            return
        prompts = [self.renderer.prompt_ids(row.record) for row in self._watched]
        answers = self.machine.generator.sample(prompts, Sampling(max_new_tokens=_SAMPLE_TOKENS))
        for row, answer in zip(self._watched, answers, strict=True):
            self.run.append_sample(
                {
                    "step": step,
                    "prompt": self.renderer.prompt_text(row.record),
                    "reference": self.renderer.reference(row.record),
                    "answer": answer.text,
                }
            )

    def rewind(self, step: int) -> None:
        """Nothing to do: the metrics' hook takes back what was written."""

    def state_dict(self) -> dict[str, Any]:
        """State of early stopping; its best step protects that checkpoint."""
        return self.stopping.state_dict() if self.stopping else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        if self.stopping and state:
            self.stopping.load_state_dict(state)


def _finite(value: float) -> float | None:
    """JSON has no NaN: a value that is not finite is null."""
    return value if math.isfinite(value) else None
