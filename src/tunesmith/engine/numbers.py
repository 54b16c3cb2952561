"""Numbers of past steps on their way from the device to the host: nobody waits for them but who must.

push(step k) ─> one small copy ─> … a few steps later … ─> ready() gives step k's numbers, in order
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_MOST_WAITING = 16
"""Steps that may be under way: beyond it the host waits for the oldest, so that it cannot run far ahead."""


_IN_STEP = 4
"""Steps that are under way where ranks go in step: enough that nobody waits."""


@dataclass
class Numbers:
    """What a step's ``scalars`` were, with ``facts`` that the host knew all along."""

    facts: dict[str, Any]
    scalars: dict[str, float]


@dataclass
class _Waiting:
    facts: dict[str, Any]
    names: tuple[str, ...]
    values: Tensor
    copied: Any


class DeferredNumbers:
    """A queue of steps whose numbers still lie on ``device``.

    Args:
        device: where the numbers come from.
        in_step: tell each step a fixed number of steps later, not as soon as may be: ranks must learn of it together.
    """

    def __init__(self, device: torch.device, *, in_step: bool = False) -> None:
        self.device = device
        self.in_step = in_step
        self._queue: deque[_Waiting] = deque()

    def push(self, facts: dict[str, Any], scalars: Mapping[str, Tensor]) -> None:
        """Take a step. ``scalars`` are scalars on the device; ``facts`` may be added to until the step is ready."""
        values = torch.stack([value.detach().to(torch.float64).reshape(()) for value in scalars.values()])
        copied = None
        if self.device.type == "cuda":
            buffer = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = buffer.copy_(values, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        self._queue.append(_Waiting(facts, tuple(scalars), values, copied))

    def ready(self, *, wait: bool) -> list[Numbers]:
        """Steps whose numbers have arrived, oldest first; all of them with ``wait``."""
        found = []
        while self._queue:
            first = self._queue[0]
            if first.copied is not None and (self.in_step or not first.copied.query()):
                if not wait and len(self._queue) <= (_IN_STEP if self.in_step else _MOST_WAITING):
                    break
                first.copied.synchronize()
            self._queue.popleft()
            found.append(Numbers(first.facts, dict(zip(first.names, first.values.tolist(), strict=True))))
        return found

    def clear(self) -> None:
        """Forget what is under way."""
        self._queue.clear()
