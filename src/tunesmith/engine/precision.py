"""Mixed precision: autocast for 16 bit, loss scaling for fp16 only. The scale lives on the device: no step waits for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FIRST_SCALE, _LARGEST_SCALE = 2.0**14, 2.0**24
_GROWS_AFTER = 1000


class Precision:
    """The compute type of forward and backward. Parameters that train stay in fp32.

    An fp16 overflow is expected now and then: the step is refused and the scale halved. At scale 1 there is nothing left
    to halve, and what is not finite then is a fault like any other.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = DTYPES[name]
        self.device = device
        self.scales = name == "fp16"
        self._scale = torch.full((), _FIRST_SCALE if self.scales else 1.0, device=device)
        self._good_steps = torch.zeros((), device=device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Around a forward pass."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to run backward from."""
        return loss * self._scale if self.scales else loss

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Take the scale out of the gradients, in place."""
        if self.scales and gradients:
            torch._foreach_mul_(list(gradients), 1.0 / self._scale)

    def can_halve(self) -> Tensor:
        """Whether a step that is not finite may be an overflow that a smaller scale mends; a scalar on the device."""
        return self._scale > 1.0

    def after_step(self, overflow: Tensor) -> None:
        """Halve the scale after an overflow, double it after a thousand good steps.

        Args:
            overflow: whether the gradients were not finite; a boolean scalar on the device.
        """
        if not self.scales:
            return
        good = self._good_steps + 1
        grown = torch.where(good == _GROWS_AFTER, (self._scale * 2).clamp(max=_LARGEST_SCALE), self._scale)
        self._scale = torch.where(overflow, (self._scale / 2).clamp(min=1.0), grown)
        self._good_steps = torch.where(overflow | (good == _GROWS_AFTER), torch.zeros_like(good), good)

    def state_dict(self) -> dict[str, Any]:
        """The loss scale and its age."""
        return {"scale": self._scale.item(), "good_steps": int(self._good_steps.item())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self._scale.fill_(float(state["scale"]))
        self._good_steps.fill_(float(state["good_steps"]))
