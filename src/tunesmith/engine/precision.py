"""Mixed precision: autocast for 16 bit, loss scaling for fp16 only."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The compute type of forward and backward. Parameters that train stay in fp32."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = DTYPES[name]
        self.device = device
        self.scale = 2.0**14 if name == "fp16" else 1.0
        self._grows_after, self._good_steps = 1000, 0
        self._scales = name == "fp16"

    def autocast(self) -> AbstractContextManager[Any]:
        """Around a forward pass."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def after_step(self, applied: bool) -> None:
        """Halve the fp16 loss scale after an overflow, double it after a thousand good steps."""
        if not self._scales:
            return
        if not applied:
            self.scale, self._good_steps = max(1.0, self.scale / 2), 0
            return
        self._good_steps += 1
        if self._good_steps == self._grows_after:
            self.scale, self._good_steps = min(2.0**24, self.scale * 2), 0

    def state_dict(self) -> dict[str, Any]:
        """The loss scale and its age."""
        return {"scale": self.scale, "good_steps": self._good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self.scale, self._good_steps = float(state["scale"]), int(state["good_steps"])
