"""Matrices frozen one by one, those first whose gradients are small and steady (AFLoRA, Liu et al. 2024, §2).

    I        mean of abs(gradient) over a window of steps, each step refused left out
    level    b1 level + (1 - b1) I
    spread   b2 spread + (1 - b2) abs(I - level)          with the new level
    score    mean over a matrix of level · spread

All of it stays on the device; at a boundary, of which there are a few in a run, the host asks for one number a matrix.
Gradients are taken as the step's own, summed over passes and ranks and before they are clipped, so that neither the
cutting of a step nor clipping has a say. What is kept is saved with the optimiser's tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.engine.optim import Optimiser
from tunesmith.engine.ranks import Ranks
from tunesmith.engine.windows import ScoreRule

_SUM, _COUNT, _LEVEL, _SPREAD = "score_sum", "score_count", "score_level", "score_spread"


class Scores:
    """Scores of the parameters in groups that are ``scored``, and which of them are frozen.

    Args:
        optimiser: has the groups, and keeps the tensors.
        rule: when and how.
        ranks: who else trains; the main one's choice holds for all.
    """

    def __init__(self, optimiser: Optimiser, rule: ScoreRule, ranks: Ranks) -> None:
        self.rule = rule
        self.ranks = ranks
        self.frozen: frozenset[str] = frozenset()
        self.all: dict[str, nn.Parameter] = {
            name: parameter for group in optimiser.groups if group.scored for name, parameter in group.parameters
        }
        self._beside = optimiser.beside
        self._begun = -1
        """The last step that began; steps that a rollback goes around do not."""

    @property
    def training(self) -> dict[str, nn.Parameter]:
        """Those that are not frozen, in the order of the groups."""
        return {name: parameter for name, parameter in self.all.items() if name not in self.frozen}

    def begin(self, step: int) -> list[str]:
        """Take a finished window into the scores, and return what is frozen from this step (from 0) on."""
        before, self._begun = self._begun, step
        if before >= 0 and step // self.rule.window != before // self.rule.window:
            self._fold()
        due = [share for at, share in self.rule.boundaries if before < at <= step]
        if not due:
            return []
        chosen: list[str] = list(self.ranks.told(self._chosen(due[-1])))
        self.frozen |= frozenset(chosen)
        return chosen

    @torch.no_grad()
    def watch(self, refused: Tensor) -> None:
        """Add the gradients of a step to the window, unless ``refused`` is 1; the host does not wait."""
        takes = refused <= 0
        sums, counts = self._beside[_SUM], self._beside[_COUNT]
        for parameter in self.training.values():
            if parameter.grad is None:
                continue
            one = torch.where(takes, parameter.grad.abs().float(), 0.0)
            sums[parameter] = sums[parameter].add_(one) if parameter in sums else one
            count = takes.float()
            counts[parameter] = counts[parameter].add_(count) if parameter in counts else count

    @torch.no_grad()
    def _fold(self) -> None:
        """One observation from the window's steps; none where all of them were refused."""
        sums, counts = self._beside[_SUM], self._beside[_COUNT]
        levels, spreads = self._beside[_LEVEL], self._beside[_SPREAD]
        for parameter in self.training.values():
            if parameter not in sums:
                continue
            total, count = sums.pop(parameter), counts.pop(parameter)
            if parameter not in levels:
                levels[parameter], spreads[parameter] = torch.zeros_like(total), torch.zeros_like(total)
            level, spread = levels[parameter], spreads[parameter]
            seen, observed = count > 0, total / count.clamp(min=1)
            b1, b2 = self.rule.level_decay, self.rule.spread_decay
            new = torch.where(seen, b1 * level + (1 - b1) * observed, level)
            spread.copy_(torch.where(seen, b2 * spread + (1 - b2) * (observed - new).abs(), spread))
            level.copy_(new)

    @torch.no_grad()
    def _chosen(self, share: float) -> list[str]:
        """What is frozen at a boundary; the host waits for the device, unless all of it is."""
        training = self.training
        if share >= 1:
            return list(training)
        products = {
            name: self._beside[_LEVEL][parameter] * self._beside[_SPREAD][parameter]
            for name, parameter in training.items()
            if parameter in self._beside[_LEVEL]
        }
        if not products:
            return []
        means = torch.stack([product.mean() for product in products.values()])
        scores = dict(zip(products, means.double().tolist(), strict=True))
        if self.rule.pooled:
            return below_quantile(products, scores, share)
        return lowest(scores, round(share * len(self.all)) - len(self.frozen))

    def state_dict(self) -> dict[str, Any]:
        """What is frozen, and the last step that began, from 0; None before the first."""
        return {"frozen": sorted(self.frozen), "begun": None if self._begun < 0 else self._begun}

    def fault(self, state: Mapping[str, Any], step: int) -> str | None:
        """Why a state of this form cannot be one that was saved after ``step`` steps."""
        if strange := [name for name in state["frozen"] if name not in self.all]:
            return f"it freezes {ascii(strange[0])[:80]}, which no score is kept of"
        if state["begun"] is not None and state["begun"] >= step:
            return f"step {state['begun'] + 1} has not begun after {step}"
        return None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self.frozen = frozenset(state["frozen"])
        self._begun = -1 if state["begun"] is None else int(state["begun"])


def below_quantile(products: Mapping[str, Tensor], scores: Mapping[str, float], share: float) -> list[str]:
    """Matrices whose score is below the ``int(n · share)``-th smallest of their n elements' scores (the released procedure).

    Args:
        products: matrix -> scores of its elements.
        scores: matrix -> their mean.
        share: of the elements.
    """
    pool = torch.cat([product.flatten() for product in products.values()])
    place = int(pool.numel() * share)
    if place == 0:
        return []
    bound = float(pool.kthvalue(place).values)
    return [name for name, score in scores.items() if score < bound]


def lowest(scores: Mapping[str, float], count: int) -> list[str]:
    """The matrices of lowest score (the paper's procedure); of equal ones those that come first."""
    return sorted(scores, key=scores.__getitem__)[: max(0, count)]
