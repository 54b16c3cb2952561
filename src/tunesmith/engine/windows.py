"""When each depth of the model trains, as plain values; the engine knows no method's name. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Window:
    """The steps (from 0) in which one depth trains, and its share of the rate there.

    Attributes:
        first: the first step that trains it.
        end: it is frozen from the first step on that is not before this; infinity for never.
        warmup: steps after ``first`` in which its rate rises.
        peak: its share of the rate where nothing rises or falls.
        falls_from: step from which its share falls by a cosine that reaches zero at ``end``; None for a share that stays.
    """

    first: int = 0
    end: float = math.inf
    warmup: int = 0
    peak: float = 1.0
    falls_from: int | None = None

    def share(self, step: int) -> float:
        """Share of the rate at a step; 0 where the depth is frozen."""
        if not self.first <= step < self.end:
            return 0.0
        share = self.peak
        if step - self.first < self.warmup:
            share *= (step - self.first + 1) / self.warmup
        if self.falls_from is not None and step >= self.falls_from:
            share *= 0.5 * (1 + math.cos(math.pi * (step - self.falls_from) / (self.end - self.falls_from)))
        return share


@dataclass(frozen=True)
class PrefixRule:
    """Freeze layers from the input up by how much their gradients change (Liu et al. 2021, AutoFreeze, §3).

    At the end of an interval the gradients of its steps are summed for each depth, eta is the change of that sum's L1 norm
    since the interval before as a share of it, and what lies below the lowest depth whose eta reaches the percentile of all
    etas is frozen.

    Attributes:
        interval: steps between two looks.
        percentile: 0 to 100, with linear interpolation.
        top: depths from here on always train, and are not looked at.
    """

    interval: int
    percentile: float
    top: int


@dataclass(frozen=True)
class ScoreRule:
    """Freeze single matrices by a score of their gradients (Liu et al. 2024, AFLoRA), at a few steps that are known before.

    An observation I is the mean size of an element's gradient over a window of steps; level = decay · level + (1 - decay) · I,
    and spread is the same running mean of abs(I - level). An element's score is level · spread, a matrix' the mean of those.

    Attributes:
        boundaries: (step, share): before that step the share is frozen; steps and shares rise, and a share of 1 is all.
        pooled: freeze whatever has a lower score than that quantile of the scores of all elements that still train; else the
            matrices of lowest score, up to that share of all.
        window: steps of an observation.
        level_decay: of the level.
        spread_decay: of the spread.
    """

    boundaries: tuple[tuple[int, float], ...]
    pooled: bool = True
    window: int = 10
    level_decay: float = 0.85
    spread_decay: float = 0.95


@dataclass(frozen=True)
class Timetable:
    """What trains when: a window for each depth, and perhaps a rule that freezes by what it sees.

    A depth without a window trains from the first step to the last.
    """

    windows: Mapping[int, Window] = field(default_factory=dict)
    rule: PrefixRule | None = None
    num_layers: int = 0

    def share(self, depth: int, step: int) -> float:
        """Share of the rate that the window of a depth gives; 0 where it is frozen."""
        window = self.windows.get(depth)
        return 1.0 if window is None else window.share(step)


def lowest_kept(changes: Mapping[int, float], percentile: float) -> int:
    """The lowest depth whose change reaches the percentile of all changes; all below it are frozen.

    Args:
        changes: depth -> eta, at least one.
        percentile: 0 to 100; between two changes it is interpolated.
    """
    ordered = sorted(changes.values())
    place = (len(ordered) - 1) * percentile / 100
    low = math.floor(place)
    bound = ordered[low]
    if place > low and ordered[low + 1] > bound:
        bound = min(bound + (place - low) * (ordered[low + 1] - bound), ordered[low + 1])
    return min(depth for depth, change in changes.items() if change >= bound)


def shown_depths(depths: Iterable[int], num_layers: int) -> str:
    """Depths in words: ``the embeddings, layers 0 to 3``; layers are counted from 0, as in their names."""
    found = set(depths)
    layers = sorted(depth - 1 for depth in found if 0 < depth <= num_layers)
    words = ["the embeddings"] if 0 in found else []
    while layers:
        last = next((at for at in range(len(layers) - 1) if layers[at + 1] != layers[at] + 1), len(layers) - 1)
        words.append(f"layer {layers[0]}" if last == 0 else f"layers {layers[0]} to {layers[last]}")
        layers = layers[last + 1 :]
    if max(found, default=0) > num_layers:
        words.append("what follows the layers")
    return ", ".join(words)
