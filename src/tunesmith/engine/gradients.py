"""Gradients of one step, whole or none: counts over the step first, then each atom's share, then the penalty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tunesmith.engine.interrupts import Interrupts
from tunesmith.engine.precision import Precision
from tunesmith.engine.randomness import reseed
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
    ) -> None:
        self.model = model
        self.objective = objective
        self.precision = precision
        self.relief = relief
        self.interrupts = interrupts
        self.seed = seed
        self.weights = dict(weights)

    def of_step(self, index: int, step: Step, clear: Callable[[], None]) -> StepResult:
        """Run a step forward and backward; when memory runs out, relieve it and run the whole step again.

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
            failed = self._try(index, atoms)
            if isinstance(failed, StepResult):
                return failed
            clear()
            self.relief.relieve(index + 1, [failed] if isinstance(failed, Batch) else atoms)

    def _try(self, index: int, atoms: Sequence[Batch]) -> StepResult | Batch | None:
        """The result; or the atom during which memory ran out, None where it was none's. Frames are gone by the return."""
        current: Batch | None = None
        try:
            on_device = [batch.to(self.model.device) for batch in atoms]
            counts = _added([self.objective.counts(batch) for batch in on_device])
            seen = self._survey(on_device)
            result = StepResult(torch.zeros((), device=self.model.device))
            for number, batch in enumerate(on_device):
                self.interrupts.check()
                current = atoms[number]
                reseed(self.seed, index, number)
                result.loss = result.loss + self._backward(batch, counts, seen, result.metrics)
            penalty = self.objective.penalty(self.model)
            if penalty is not None:
                self.precision.scaled(penalty).backward()  # type: ignore[no-untyped-call]
                result.loss = result.loss + penalty.detach()
            return result
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return current

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
