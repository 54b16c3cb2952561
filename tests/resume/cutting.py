"""Runs that are cut at a step and go on, beside the same run unbroken: how they are made and what must be equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.loops import LENGTHS, Cut, MemoryStore, Recorder, make_trainer
from tunesmith.data.loader import PackedStream
from tunesmith.engine.stopping import EarlyStopping
from tunesmith.engine.trainer import Trainer
from tunesmith.objectives.next_token import NextToken
from tunesmith.types import Batch, Loss, Mean

STEPS, EVERY = 10, 3


class Watched(NextToken):
    """Next token with a metric; ``spoil`` maps steps (from 0) to a factor on their loss, such as NaN or a thousand.

    ``most_tokens`` maps steps to the largest pass that fits into memory then.
    """

    def __init__(self, spoil: Mapping[int, float], most_tokens: Mapping[int, int], **loss: Any) -> None:
        super().__init__(**loss)
        self.spoil = dict(spoil)
        self.most_tokens = dict(most_tokens)
        self.step = -1
        self.rows: dict[int, list[int]] = {}

    def __call__(self, model: Any, batch: Batch, seen: Any) -> Loss:
        if batch.num_tokens > self.most_tokens.get(self.step, batch.num_tokens):
            raise MemoryError
        loss = super().__call__(model, batch, seen)
        total, count = loss.totals["loss"], torch.tensor(float(batch.targets_S.numel()))
        factor = self.spoil.get(self.step, 1.0)
        return Loss({"loss": total * factor}, {**loss.metrics, "nats": Mean(total.detach() * factor, count)})


class Validation:
    """Measures a number of the weights at intervals and stops on it; may crash at one step, before or after that."""

    def __init__(self, trainer: Trainer, patience: int, bumps: Mapping[int, float], crash: tuple[int, str]) -> None:
        self.trainer = trainer
        self.stopping = EarlyStopping(patience)
        self.bumps = dict(bumps)
        self.crash = crash
        self.seen: list[tuple[int, float]] = []

    def after_step(self, facts: Any) -> None:
        pass

    def at_interval(self, step: int) -> str | None:
        if self.crash == (step, "before"):
            raise Cut(step)
        total = sum(float(tensor.double().abs().sum()) for tensor in self.trainer.adapter.state().values())
        loss = 100.0 - step + 1e-3 * math.sin(total) + self.bumps.get(step, 0.0)
        self.seen.append((step, loss))
        reason = self.stopping.see(step, loss)
        if self.crash == (step, "after"):
            raise Cut(step)
        return reason

    def rewind(self, step: int) -> None:
        self.seen = [item for item in self.seen if item[0] <= step]

    def state_dict(self) -> dict[str, Any]:
        return self.stopping.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stopping.load_state_dict(state)


class CutAnywhere(PackedStream):
    """Tells the objective which step it is, keeps the rows of each, and fails when asked for step ``stop_at`` (from 0)."""

    stop_at: int | None = None
    objective: Watched

    def atoms(self, step: int) -> list[Batch]:
        if step == self.stop_at:
            raise Cut(step)
        self.objective.step = step
        found = super().atoms(step)
        self.objective.rows[step] = [int(row) for row in self.rows_of(step)]
        return found


@dataclass(frozen=True)
class Case:
    """A run: what ``make_trainer`` takes, weights of the sources, what goes wrong at which step, early stopping, a last touch.

    ``loss`` are settings of the objective; with ``row_weights`` rows weigh 0, 0.5, 1 … in the loss.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    source_weights: tuple[float, ...] = (1.0,)
    spoil: dict[int, float] = field(default_factory=dict)
    most_tokens: dict[int, int] = field(default_factory=dict)
    patience: int | None = None
    bumps: dict[int, float] = field(default_factory=dict)
    touch: Callable[[Trainer], None] | None = None
    loss: dict[str, Any] = field(default_factory=dict)
    row_weights: bool = False


@dataclass
class Made:
    """A trainer with its observers and what was said."""

    trainer: Trainer
    recorder: Recorder
    objective: Watched
    validation: Validation | None
    said: list[tuple[str, str]]


def build(case: Case, folder: Path, stop_at: int | None = None, crash: tuple[int, str] = (-1, "")) -> Made:
    """Set up a case; with ``stop_at`` its run raises ``Cut`` when that many steps are done."""
    said: list[tuple[str, str]] = []
    objective = Watched(case.spoil, case.most_tokens, **case.loss)
    settings = {"total_steps": STEPS, "checkpoint_every": EVERY, "evaluate_every": 100, "keep_checkpoints": 9}
    trainer, recorder = make_trainer(
        folder, objective=objective, say=lambda *words: said.append(words), **{**settings, **case.settings}
    )
    store = MemoryStore(LENGTHS)
    store.sources = np.arange(store.num_rows) % len(case.source_weights)
    if case.row_weights:
        store.weights = (np.arange(store.num_rows) % 5).astype(np.float32) / 2
    stream = CutAnywhere(store, replace(trainer.stream.options, source_weights=case.source_weights))  # type: ignore[attr-defined,arg-type]
    stream.stop_at, stream.objective = stop_at, objective
    trainer.stream = stream
    validation = None
    if case.patience is not None:
        validation = Validation(trainer, case.patience, case.bumps, crash)
        trainer.hooks.append(validation)
    if case.touch is not None:
        case.touch(trainer)
    return Made(trainer, recorder, objective, validation, said)


def go_on(case: Case, folder: Path, **changes: Any) -> tuple[Made, int]:
    """The run again, from the newest checkpoint; returns the step it went on from."""
    again = build(replace(case, settings={**case.settings, **changes}), folder)
    checkpoint = again.trainer.checkpoints.newest()
    torch.rand(17)  # randomness of the process must not matter
    if checkpoint is not None:
        again.trainer.restore(checkpoint)
    again.trainer.run()
    return again, checkpoint.step if checkpoint else 0


def cut_run(case: Case, folder: Path, stop_at: int, crash: tuple[int, str] = (-1, "")) -> Made:
    """The run up to its crash; one that ends before the crash just ends."""
    made = build(case, folder, stop_at, crash)
    try:
        made.trainer.run()
    except Cut:
        made.trainer.saver.close()
    else:
        assert made.trainer.step <= stop_at
    return made


def assert_same_end(whole: Made, again: Made, *, since: int, first: Made | None = None) -> None:
    """Weights, optimiser, state, the facts of each step and what was said after ``since``: equal to the bit."""
    for name, tensor in whole.trainer.adapter.state().items():
        assert torch.equal(tensor, again.trainer.adapter.state()[name]), name
    expected = whole.trainer.optimiser.state()
    found = again.trainer.optimiser.state()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert _state(again.trainer) == _state(whole.trainer)
    # A crash may come before the newest steps were told: what was told of a step is told once more, in the same words.
    told = _told(again.recorder)
    if first is not None:
        told = {step: facts for step, facts in _told(first.recorder).items() if step <= since} | told
    assert told == _told(whole.recorder)
    assert _after(again.said, since) == _after(whole.said, since)
    if whole.validation is not None:
        assert again.validation is not None
        expected_seen = [item for item in whole.validation.seen if item[0] > since]
        assert [item for item in again.validation.seen if item[0] > since] == expected_seen
        best = whole.validation.stopping.best_step
        if best:
            one, other = (item.trainer.checkpoints.load(best) for item in (whole, again))
            assert one is not None
            assert other is not None
            assert all(torch.equal(tensor, other.trained[name]) for name, tensor in one.trained.items())


def _state(trainer: Trainer) -> dict[str, Any]:
    return {key: value for key, value in trainer.state().items() if key not in ("seconds", "times")}


def _told(recorder: Recorder) -> dict[int, str]:
    """What hooks heard of each step, as text: ``repr`` of a float has all its bits, and NaN equals NaN."""
    return {facts.step: repr(replace(facts, seconds=0.0)) for facts in recorder.facts}


def _after(said: list[tuple[str, str]], step: int) -> list[tuple[str, str]]:
    """Sentences that name a step after ``step``."""
    return [
        words for words in said if any(f"step {number} " in f"{words[1]} " for number in range(step + 1, STEPS + 1))
    ]
