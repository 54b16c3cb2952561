"""Bounds from a history: against the same rules written plainly."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tunesmith.engine.clipping import FixedClip, ZClip, ZClipOptions
from tunesmith.engine.spikes import SpikeGuard, SpikeOptions

CPU = torch.device("cpu")


def clipped_norm(clipping: FixedClip | ZClip, norm: float) -> float:
    """The norm after clipping of a gradient whose norm is ``norm``."""
    parameter = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    parameter.grad = torch.full((4,), norm / 2, dtype=torch.float64)
    clipping.apply([parameter], torch.tensor(norm, dtype=torch.float64))
    return float(parameter.grad.norm())


def zclip_by_hand(norms: list[float], options: ZClipOptions, bound: float) -> list[float]:
    """The released rule, in plain numbers: what each norm is brought to."""
    buffer: list[float] = []
    mean = variance = 0.0
    found = []
    for norm in norms:
        if len(buffer) < options.warmup:
            buffer.append(norm)
            found.append(min(norm, bound))
            if len(buffer) == options.warmup:
                mean, variance = statistics.fmean(buffer), statistics.pvariance(buffer)
            continue
        deviation = math.sqrt(variance)
        z = (norm - mean) / (deviation + 1e-6)
        kept = norm
        if z > options.threshold:
            kept = {
                "adaptive": mean + options.threshold * deviation / (z / options.threshold),
                "mean": mean,
                "percentile": mean + options.threshold * deviation,
            }[options.mode]
        mean = options.decay * mean + (1 - options.decay) * kept
        variance = options.decay * variance + (1 - options.decay) * (kept - mean) ** 2
        found.append(min(kept, bound))
    return found


@pytest.mark.parametrize("mode", ["adaptive", "mean", "percentile"])
@pytest.mark.parametrize("bound", [1.0, 1.6, math.inf])
def test_zclip_is_the_rule_written_plainly(mode: Any, bound: float) -> None:
    generator = np.random.default_rng(3)
    norms = (1.0 + 0.1 * generator.standard_normal(120)).tolist()
    for place, factor in ((3, 4.0), (40, 5.0), (41, 2.0), (90, 30.0)):
        norms[place] *= factor
    options = ZClipOptions(mode=mode)
    clipping = ZClip(options, None if math.isinf(bound) else bound, CPU)
    found = [clipped_norm(clipping, norm) for norm in norms]
    expected = zclip_by_hand(norms, options, bound)
    assert found == pytest.approx(expected, rel=3e-6)
    assert any(was > now * 1.5 for was, now in zip(norms[26:], found[26:], strict=True))


def test_zclip_takes_no_norm_that_is_not_finite_and_resumes_exactly() -> None:
    generator = np.random.default_rng(1)
    norms = (1.0 + 0.1 * generator.standard_normal(60)).tolist()
    whole, cut = ZClip(ZClipOptions(), 1.0, CPU), ZClip(ZClipOptions(), 1.0, CPU)
    for norm in norms[:30]:
        clipped_norm(whole, norm)
        clipped_norm(cut, norm)
    clipped_norm(cut, math.nan)
    clipped_norm(cut, math.inf)
    again = ZClip(ZClipOptions(), 1.0, CPU)
    again.load_state_dict(cut.state_dict())
    assert [clipped_norm(again, norm) for norm in norms[30:]] == [clipped_norm(whole, norm) for norm in norms[30:]]


def test_a_fixed_bound_leaves_small_gradients_alone() -> None:
    assert clipped_norm(FixedClip(1.0), 0.3) == pytest.approx(0.3, rel=1e-12)
    assert clipped_norm(FixedClip(1.0), 30.0) == pytest.approx(1.0, rel=1e-5)
    assert clipped_norm(FixedClip(None), 30.0) == pytest.approx(30.0, rel=1e-12)


def flagged(options: SpikeOptions, losses: list[float], norms: list[float]) -> list[int]:
    guard = SpikeGuard(options, CPU)
    return [
        index
        for index, (loss, norm) in enumerate(zip(losses, norms, strict=True))
        if float(guard.after_backward(index, torch.tensor(loss), torch.tensor(norm), ()))
    ]


@pytest.mark.parametrize("statistic", ["mean", "median"])
@settings(max_examples=30, derandomize=True, deadline=None)
@given(data=st.data())
def test_a_spike_is_what_the_window_says(statistic: Any, data: st.DataObject) -> None:
    """Against numpy over the last W values, the refused ones among them."""
    values = st.floats(0.125, 10.0, width=32)
    losses = data.draw(st.lists(values, min_size=20, max_size=60))
    norms = data.draw(st.lists(values, min_size=len(losses), max_size=len(losses)))
    window, threshold = 12, 2.0
    expected = []
    for index in range(len(losses)):
        if index < window // 2:
            continue
        for series in (losses, norms):
            past = np.asarray(series[max(0, index - window) : index], dtype=np.float64)
            if statistic == "mean":
                centre, deviation = past.mean(), past.std(ddof=1)
            else:
                lower = (len(past) - 1) // 2
                centre = np.sort(past)[lower]
                deviation = 1.4826 * np.sort(np.abs(past - centre))[lower]
            gap = np.float64(series[index]) - centre - threshold * deviation
            if abs(gap) < 1e-9:
                return  # on the border rounding decides
            if gap > 0:
                expected.append(index)
                break
    assert flagged(SpikeOptions(window=window, threshold=threshold, statistic=statistic), losses, norms) == expected


def test_a_value_that_is_not_finite_is_no_spike_and_does_not_enter_the_window() -> None:
    losses = [1.0, 1.1, 0.9, 1.02, math.nan, math.inf, 1.05, 0.95, 1.0, 20.0]
    norms = [1.0, 1.1, 0.9, 1.05, 1.0, 1.0, 1.0, 0.95, 1.02, 1.0]
    for statistic in ("mean", "median"):
        options = SpikeOptions(window=8, statistic=statistic)  # type: ignore[arg-type]
        assert flagged(options, losses, norms) == [9]


def test_the_window_survives_json() -> None:
    guard, again = SpikeGuard(SpikeOptions(window=8), CPU), SpikeGuard(SpikeOptions(window=8), CPU)
    losses = [1.0, 1.1, 0.9, 1.0, 1.05]
    for index, loss in enumerate(losses):
        guard.after_backward(index, torch.tensor(loss), torch.tensor(1.0 + loss), ())
    again.load_state_dict(guard.state_dict())
    for loss in (1.0, 1.2, 9.0, 1.0):
        results = [float(item.after_backward(9, torch.tensor(loss), torch.tensor(2.0), ())) for item in (guard, again)]
        assert results[0] == results[1] == (loss == 9.0)
