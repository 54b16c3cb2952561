"""Before each step: what trains, and how fast. The rate of the schedule, shared out by depth; depths frozen and unfrozen.

Frozen means: no gradient, no memory of one, no optimiser state. All groups are there from the start. Everything is a function
of the step and of the saved state, so that a resume finds it again; the host waits for the device at the end of an interval
of ``PrefixRule``, at a boundary of ``ScoreRule``, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tunesmith.engine.checkpoint import Say
from tunesmith.engine.optim import Optimiser
from tunesmith.engine.options import TrainerOptions
from tunesmith.engine.ranks import Ranks
from tunesmith.engine.schedules import rate_factor
from tunesmith.engine.scores import Scores
from tunesmith.engine.windows import PrefixRule, Timetable, lowest_kept, shown_depths
from tunesmith.types import ParamGroup


class Pace:
    """Sets the rates of the optimiser's groups, and freezes by the timetable.

    Args:
        optimiser: its groups know their depths where there is a timetable.
        options: rate, schedule and timetable.
        ranks: who else trains; the main one's choice holds for all.
        say: where it is told what is frozen.
    """

    def __init__(self, optimiser: Optimiser, options: TrainerOptions, ranks: Ranks, say: Say) -> None:
        self.optimiser = optimiser
        self.options = options
        self.ranks = ranks
        self.say = say
        self.timetable = options.timetable or Timetable()
        self.frozen: frozenset[int] = frozenset()
        rule = options.score_rule
        self.scores = None if rule is None else Scores(optimiser, rule, ranks)
        self._depths = sorted({group.depth for group in optimiser.groups if group.depth is not None})
        self._lowest = min(self._depths, default=0)
        self._interval: int | None = None
        self._norms: dict[int, float] = {}

    def begin(self, step: int) -> float:
        """Freeze, unfreeze and set the rates for a step (from 0). Returns the rate of what is topmost."""
        rate = self.options.learning_rate * rate_factor(step, self.options)
        if self.scores is not None:
            self._freeze_matrices(self.scores, step)
        if self.options.timetable is None:
            self.optimiser.set_rate(rate)
            return rate
        if self.timetable.rule is not None:
            self._look(step, self.timetable.rule)
        shares: dict[int | None, float] = {depth: self._share(depth, step) for depth in self._depths}
        self._freeze(frozenset(depth for depth in self._depths if shares[depth] == 0.0), step)
        top = self.timetable.share(self.timetable.num_layers + 1, step)
        self.optimiser.set_rate(rate, shares | {None: top})  # what has no depth, such as a task's head, stands on top
        return rate * top

    def watch(self, refused: Tensor) -> None:
        """Take the gradients of a step, before they are clipped, for the rules that look at them; none of a refused step."""
        if self.scores is not None:
            self.scores.watch(refused)
        rule = self.timetable.rule
        if rule is not None:
            self.optimiser.add_up(refused, below=rule.top)

    @property
    def num_trained(self) -> int:
        """Elements that train at this step."""
        return sum(
            parameter.numel()
            for group in self.optimiser.groups
            for name, parameter in group.parameters
            if self._trains(group, name)
        )

    @contextmanager
    def heaviest(self, step: int) -> Iterator[None]:
        """Within the context all that is frozen and trains later has a gradient too: what needs most memory."""
        frozen = self.frozen
        windows = self.timetable.windows
        self.frozen = frozenset(depth for depth in frozen if depth not in windows or windows[depth].end <= step)
        self._require()
        try:
            yield
        finally:
            self.frozen = frozen
            self._require()

    def _share(self, depth: int, step: int) -> float:
        return 0.0 if depth < self._lowest else self.timetable.share(depth, step)

    def _freeze(self, frozen: frozenset[int], step: int) -> None:
        newly, thawed = frozen - self.frozen, self.frozen - frozen
        if not newly and not thawed:
            return
        self.frozen = frozen
        self._require()
        for group in self.optimiser.groups:
            if group.depth in newly:
                self.optimiser.forget([parameter for _, parameter in group.parameters])
        for depths, kind, words in ((newly, "layers_frozen", "frozen"), (thawed, "layers_unfrozen", "trained")):
            if depths:
                named = shown_depths(depths, self.timetable.num_layers)
                self.say(kind, f"{words} from step {step + 1} on: {named}; {self.num_trained:,} parameters train")

    def _freeze_matrices(self, scores: Scores, step: int) -> None:
        """At a boundary, freeze what the scores say."""
        newly = scores.begin(step)
        if not newly:
            return
        self.optimiser.forget([scores.all[name] for name in newly])
        self._require()
        left = len(scores.training)
        which = "all that were left" if not left else f"{newly[0]}{' and others' if len(newly) > 1 else ''}"
        self.say(
            "matrices_frozen",
            f"frozen from step {step + 1} on: {len(newly):,} matrices ({which}); {left:,} of {len(scores.all):,} still train, "
            f"{self.num_trained:,} parameters in all",
        )

    def _trains(self, group: ParamGroup, name: str) -> bool:
        return group.depth not in self.frozen and (self.scores is None or name not in self.scores.frozen)

    def _require(self) -> None:
        for group in self.optimiser.groups:
            for name, parameter in group.parameters:
                parameter.requires_grad_(self._trains(group, name))

    def _look(self, step: int, rule: PrefixRule) -> None:
        """At the end of an interval, hold the sums of the gradients against those of the interval before."""
        now = step // rule.interval
        if self._interval is None or now == self._interval:
            self._interval = now
            return
        norms = self._sums(rule)
        changes = {depth: _change(self._norms[depth], norm) for depth, norm in norms.items() if depth in self._norms}
        if changes:
            self._lowest = int(self.ranks.told(lowest_kept(changes, rule.percentile)))
        self._norms, self._interval = norms, now
        self.optimiser.sums.clear()

    @torch.no_grad()
    def _sums(self, rule: PrefixRule) -> dict[int, float]:
        """L1 norm of the summed gradients by depth; the host waits for the device."""
        totals: dict[int, Tensor] = {}
        for group in self.optimiser.groups:
            if group.depth is None or not self._lowest <= group.depth < rule.top:
                continue
            for _, parameter in group.parameters:
                summed = self.optimiser.sums.get(parameter)
                one = torch.zeros((), device=parameter.device) if summed is None else summed.abs().sum()
                totals[group.depth] = totals[group.depth] + one if group.depth in totals else one
        values = torch.stack(list(totals.values())).double().tolist() if totals else []
        return dict(zip(totals, values, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """What is frozen, and what the rule knows; the sums are with the optimiser's tensors."""
        return {
            "frozen": sorted(self.frozen), "lowest": self._lowest, "interval": self._interval,
            "norms": [[depth, norm] for depth, norm in self._norms.items()],
            "scores": None if self.scores is None else self.scores.state_dict(),
        }  # fmt: skip

    def fault(self, state: Mapping[str, Any], step: int) -> str | None:
        """Why a state of this form cannot be one that was saved after ``step`` steps: it would freeze all, or what is not there."""
        frozen, depths, rule = set(state["frozen"]), set(self._depths), self.timetable.rule
        if not frozen <= depths or (depths and frozen == depths):
            return "it freezes all that trains, or what does not"
        if not min(depths, default=0) <= state["lowest"] <= max(depths, default=0):
            return f"there is no depth {state['lowest']}"
        if any(depth not in depths for depth, _ in state["norms"]):
            return "it has norms of what does not train"
        if state["interval"] is not None and (rule is None or state["interval"] > step // rule.interval):
            return f"there is no interval {state['interval']} yet"
        if (state["scores"] is None) != (self.scores is None):
            return "it is of a run with another rule for freezing"
        return None if self.scores is None else self.scores.fault(state["scores"], step)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self._lowest, self._interval = int(state["lowest"]), state["interval"]
        self._norms = {int(depth): float(norm) for depth, norm in state["norms"]}
        self.frozen = frozenset(state["frozen"])
        if self.scores is not None:
            self.scores.load_state_dict(state["scores"])
        if self.options.timetable is not None or self.scores is not None:
            self._require()


def _change(before: float, now: float) -> float:
    """Change of a norm as a share of what it was (AutoFreeze's eta)."""
    if before == 0.0:
        return 0.0 if now == 0.0 else math.inf
    return abs(before - now) / before
