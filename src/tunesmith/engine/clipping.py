"""Bounds on the global gradient norm: fixed, or from its own history (ZClip). The host waits for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

_EPSILON = 1e-6


class Clipping(Protocol):
    """Scales gradients down."""

    def apply(self, parameters: Sequence[nn.Parameter], norm: Tensor) -> None:
        """Clip in place. ``norm`` is the global norm, a scalar on the device."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        ...


class FixedClip:
    """The norm is at most ``bound``; None lets everything through."""

    def __init__(self, bound: float | None) -> None:
        self.bound = bound

    def apply(self, parameters: Sequence[nn.Parameter], norm: Tensor) -> None:
        """Clip in place."""
        if self.bound is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.bound, norm)

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


@dataclass(frozen=True)
class ZClipOptions:
    """Settings of ZClip; the defaults are its paper's."""

    threshold: float = 2.5
    decay: float = 0.97
    warmup: int = 25
    mode: Literal["adaptive", "mean", "percentile"] = "adaptive"


class ZClip:
    """ZClip (Kumar et al. 2025, arXiv 2504.02507): clips a norm that stands out from its own running mean.

    With z = (g - mu) / sigma above ``threshold`` t, the norm is brought to mu + t sigma / (z / t) (``adaptive``), to mu
    (``mean``), or to mu + t sigma (``percentile``). Mean and variance start from the first ``warmup`` norms and then follow
    with ``decay``, taking the clipped norm where one was clipped. A norm that is not finite is not taken in.

    Args:
        options: see there.
        bound: the fixed bound that holds besides; None for none.
        device: where the norm is computed.
    """

    def __init__(self, options: ZClipOptions, bound: float | None, device: torch.device) -> None:
        self.options = options
        self.bound = bound
        # count, mean, and the sum of squared deviations in warm-up, the variance after it
        self._state_3 = torch.zeros(3, dtype=torch.float64, device=device)

    def apply(self, parameters: Sequence[nn.Parameter], norm: Tensor) -> None:
        """Clip in place, and take the norm into the history."""
        bound = self._bound(norm.to(torch.float64))
        gradients = [item.grad for item in parameters if item.grad is not None]
        if gradients:
            factor = (bound / (norm + _EPSILON)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))

    def _bound(self, norm: Tensor) -> Tensor:
        count, mean, spread = self._state_3.unbind()
        options = self.options
        warm = count < options.warmup
        variance = torch.where(count == options.warmup, spread / max(1, options.warmup), spread)
        deviation = variance.sqrt()
        z = (norm - mean) / (deviation + _EPSILON)
        target = {
            "adaptive": mean + options.threshold * deviation / (z / options.threshold),
            "mean": mean,
            "percentile": mean + options.threshold * deviation,
        }[options.mode]
        stands_out = ~warm & (z > options.threshold)
        kept = torch.where(stands_out, target, norm)
        finite = torch.isfinite(norm)
        self._state_3 = torch.where(finite, self._after(norm, kept, warm, variance), self._state_3)
        fixed = torch.full_like(norm, float("inf") if self.bound is None else self.bound)
        return torch.minimum(kept, fixed)

    def _after(self, norm: Tensor, kept: Tensor, warm: Tensor, variance: Tensor) -> Tensor:
        """State with this norm taken in: Welford's update in warm-up, exponential averages after it."""
        count, mean, spread = self._state_3.unbind()
        warm_mean = mean + (norm - mean) / (count + 1)
        warm_spread = spread + (norm - mean) * (norm - warm_mean)
        decay = self.options.decay
        run_mean = decay * mean + (1 - decay) * kept
        run_variance = decay * variance + (1 - decay) * (kept - run_mean) ** 2
        # beyond warm-up the count stays one above it: then the third number is the variance itself
        next_count = torch.where(warm, count + 1, torch.full_like(count, self.options.warmup + 1))
        return torch.stack(
            [next_count, torch.where(warm, warm_mean, run_mean), torch.where(warm, warm_spread, run_variance)]
        )

    def state_dict(self) -> dict[str, Any]:
        """The running numbers."""
        return {"state": self._state_3.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self._state_3.copy_(torch.tensor(state["state"], dtype=torch.float64))
