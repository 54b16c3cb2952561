"""Gradients of one step, whole or none: counts over the step first, then each atom's share, then the penalty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from tunesmith.engine.interrupts import Asked, Interrupts
from tunesmith.engine.precision import Precision
from tunesmith.engine.randomness import reseed
from tunesmith.engine.ranks import Ranks
from tunesmith.engine.relief import MemoryRelief, is_out_of_memory
from tunesmith.types import Batch, Mean, Objective, Step


@dataclass
class StepResult:
    """The step's loss, detached, on the device, and its metrics."""

    loss: Tensor
    metrics: dict[str, Mean] = field(default_factory=dict)


class Gradients:
    """Fills the gradients of what trains.

    Args:
        model: the facade.
        objective: what to minimise.
        precision: compute type and loss scale.
        relief: cuts passes and takes measures when memory runs out.
        interrupts: looked at between atoms.
        seed: of the run; each atom's randomness is a function of (seed, step, atom).
        weights: factor of each term of the loss; a missing one is 1.
        ranks: who else works on the step.
    """

    def __init__(
        self,
        model: Any,
        objective: Objective,
        precision: Precision,
        relief: MemoryRelief,
        interrupts: Interrupts,
        *,
        seed: int,
        weights: Mapping[str, float],
        ranks: Ranks,
    ) -> None:
        self.model = model
        self.objective = objective
        self.precision = precision
        self.relief = relief
        self.interrupts = interrupts
        self.seed = seed
        self.weights = dict(weights)
        self.ranks = ranks

    def of_step(self, index: int, step: Step, clear: Callable[[], None]) -> StepResult:
        """Run a step forward and backward; when memory runs out, relieve it and run the whole step again.

        All ranks come to the same end of it, whichever of them ran out of memory or was asked to stop.

        Args:
            index: of the step, from 0.
            step: its atoms, on the CPU.
            clear: drops all gradients.

        Raises:
            CannotRelieve: one document alone does not fit.
            Asked: a signal came between two atoms.
        """
        while True:
            atoms = self.relief.cut(step)
            trouble = _Trouble()
            result = self._try(index, atoms, trouble)
            out_of_memory, asked = self.ranks.largest([trouble.out_of_memory, trouble.asked])
            if not out_of_memory and not asked:
                return self._reduced(result)
            clear()
            if asked:
                raise Asked
            batches = None
            if trouble.out_of_memory:
                batches = atoms if trouble.batch is None else [trouble.batch]
            self.relief.relieve(index + 1, batches, self.ranks)

    def _try(self, index: int, atoms: Sequence[Batch], trouble: _Trouble) -> StepResult:
        """The rank's part of the step, as far as it came: whoever is in trouble still joins what the others wait for."""
        mine, on_device = self.ranks.share(atoms), []
        counts: dict[str, Tensor] = {}
        seen: dict[str, Mean] = {}
        result = StepResult(torch.zeros((), device=self.model.device))
        with trouble:
            on_device = [(number, batch.to(self.model.device)) for number, batch in mine]
            counts = _added([self.objective.counts(batch) for _, batch in on_device])
        counts = self.ranks.sum("counts", counts)
        if not trouble:
            with trouble:
                seen = self._survey([batch for _, batch in on_device])
        seen = self.ranks.sum_means("seen", seen)
        if trouble:
            return result
        with trouble:
            for number, batch in on_device:
                self.interrupts.check()
                trouble.batch = atoms[number]
                reseed(self.seed, index, number)
                result.loss = result.loss + self._backward(batch, counts, seen, result.metrics)
            trouble.batch = None
            if self.ranks.is_main:  # once a step, not once a rank
                self._penalise(result)
        return result

    def _penalise(self, result: StepResult) -> None:
        penalty = self.objective.penalty(self.model)
        if penalty is not None:
            self.precision.scaled(penalty).backward()  # type: ignore[no-untyped-call]
            result.loss = result.loss + penalty.detach()

    def _reduced(self, result: StepResult) -> StepResult:
        trained = [*self.model.parameters(), *self.objective.parts.parameters()]
        self.ranks.sum_gradients([item for item in trained if item.requires_grad])
        loss = self.ranks.sum("loss", {"loss": result.loss})["loss"]
        return StepResult(loss, self.ranks.sum_means("metrics", result.metrics))

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
        share = torch.zeros((), device=self.model.device)
        for term, value in loss.totals.items():
            share = share + self.weights.get(term, 1.0) * value / one_if_zero(counts[term])
        self.precision.scaled(share).backward()  # type: ignore[no-untyped-call]
        _add_means(metrics, {name: Mean(mean.total.detach(), mean.count) for name, mean in loss.metrics.items()})
        return share.detach()


class _Trouble:
    """Takes up lack of memory and requests to stop as they come; true once there is some. No frame of an error is kept."""

    def __init__(self) -> None:
        self.out_of_memory = self.asked = 0
        self.batch: Batch | None = None
        """The atom under way, None where memory ran out for none of them."""

    def __bool__(self) -> bool:
        return bool(self.out_of_memory or self.asked)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.asked |= isinstance(error, Asked)
        self.out_of_memory |= error is not None and is_out_of_memory(error)
        return isinstance(error, Asked) or (error is not None and is_out_of_memory(error))


def one_if_zero(count: Tensor) -> Tensor:
    """A denominator: no units, no division."""
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
