"""AdamW whose moments take 1 byte each, or lie in the host's memory while the device works on something else.

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g²,  p = p (1 - lr · decay) - lr / (1 - b1^t) · m / (sqrt(v / (1 - b2^t)) + eps)

as torch's AdamW, in fp32, on moments that are unpacked for a moment and packed again behind the update (``blockwise``). Tensors
of fewer than 4,096 numbers keep fp32 moments. A large tensor is worked on in pieces, so that what is unpacked is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from tunesmith.engine.blockwise import BLOCK, blocks_of, pack, prepare, unpack

SMALLEST = 4096
"""Fewer numbers than these keep fp32 moments."""
PIECE = 1 << 22
"""Numbers that are unpacked at a time; a multiple of a block."""
_MOMENTS = (("exp_avg", True), ("exp_avg_sq", False))
"""Moments, and whether they may be negative."""


def packs(numel: int) -> bool:
    """Whether the moments of a tensor of so many numbers are packed."""
    return numel >= SMALLEST


class CompactAdamW(torch.optim.Optimizer):
    """AdamW over groups.

    Args:
        groups: as of any optimiser of torch, with ``weight_decay``.
        lr: rate.
        betas: decay of the moments.
        eps: added to the root of the second.
        eight_bit: pack the moments of all but small tensors.
        offload: keep moments in pinned memory of the host.

    ``found_inf`` is a scalar on the device that is 1 where a step must change nothing; the host does not wait for it.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        *,
        eight_bit: bool,
        offload: bool,
    ) -> None:
        self.eight_bit = eight_bit
        self.offload = offload
        for parameter in (item for group in groups for item in group["params"]):
            prepare(parameter.device)
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    def put(self, parameter: nn.Parameter, state: dict[str, Tensor]) -> None:
        """Take a saved state, to where the moments of this optimiser lie."""
        self.state[parameter] = {
            key: value.to(parameter.device).clone() if key == "step" else self._placed(value, parameter.device)
            for key, value in state.items()
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply the gradients unless ``found_inf`` says no."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(self._fresh(parameter))
        refused = self.found_inf if self.found_inf is not None else torch.zeros((), device=parameter.device)
        takes = refused <= 0
        state["step"] += takes.float()
        first, second = group["betas"]
        rate = takes.float() * float(group["lr"])
        size = rate / (1 - first ** state["step"]).clamp(min=torch.finfo(torch.float32).tiny)
        root = (1 - second ** state["step"]).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
        own = parameter.detach()
        own_N = own.contiguous().view(-1)
        gradient_N = cast(Tensor, parameter.grad).detach().reshape(-1)
        for piece in _pieces(parameter.numel()):
            g = torch.where(takes, gradient_N[piece].float(), 0.0)
            before = [self._fetch(state, key, piece, parameter.device) for key, _ in _MOMENTS]
            m, v = (_opened(parts, signed=signed) for parts, (_, signed) in zip(before, _MOMENTS, strict=True))
            m.mul_(first).add_(g, alpha=1 - first)
            v.mul_(second).addcmul_(g, g, value=1 - second)
            for parts, (key, signed), moment in zip(before, _MOMENTS, (m, v), strict=True):
                self._keep(state, key, piece, _closed(moment, parts, signed=signed, takes=takes))
            update = m.div_(v.sqrt_().div_(root).add_(group["eps"])).mul_(size)
            own_N[piece].mul_(1 - rate * group["weight_decay"]).sub_(update)
        if not own.is_contiguous():
            own.copy_(own_N.view(own.shape))

    def moments(self, parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
        """Both moments in fp32, in the parameter's shape and place; for a parameter that had a step."""
        state, whole = self.state[parameter], slice(0, parameter.numel())
        first, second = (
            _opened(self._fetch(state, key, whole, parameter.device), signed=signed) for key, signed in _MOMENTS
        )
        return first.view(parameter.shape), second.view(parameter.shape)

    def _fresh(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        found = {"step": torch.zeros((), device=parameter.device)}
        zeros = torch.zeros(parameter.numel(), device="cpu" if self.offload else parameter.device)
        for key, signed in _MOMENTS:
            if self.eight_bit and packs(parameter.numel()):
                codes, scales = pack(zeros, signed=signed)
                parts = {f"{key}_codes": codes, f"{key}_scales": scales}
            else:
                parts = {key: zeros.view(parameter.shape)}
            found |= {name: self._placed(part, parameter.device) for name, part in parts.items()}
        return found

    def _placed(self, part: Tensor, device: torch.device) -> Tensor:
        if not self.offload:
            return part.to(device).clone()
        held = part.to("cpu").clone()
        return held.pin_memory() if device.type == "cuda" else held

    @staticmethod
    def _fetch(state: dict[str, Tensor], key: str, piece: slice, device: torch.device) -> dict[str, Tensor]:
        """What is kept of a moment's piece, on the device: itself, or its codes and scales."""
        if key in state:
            return {"": state[key].view(-1)[piece].to(device, non_blocking=True)}
        return {
            "_codes": state[f"{key}_codes"][piece].to(device, non_blocking=True),
            "_scales": state[f"{key}_scales"][_blocks(piece)].to(device, non_blocking=True),
        }

    @staticmethod
    def _keep(state: dict[str, Tensor], key: str, piece: slice, parts: dict[str, Tensor]) -> None:
        for ending, part in parts.items():
            place = _blocks(piece) if ending == "_scales" else piece
            state[f"{key}{ending}"].view(-1)[place].copy_(part, non_blocking=True)


def _opened(parts: dict[str, Tensor], *, signed: bool) -> Tensor:
    """A moment in fp32, in memory of its own."""
    return parts[""].clone() if "" in parts else unpack(parts["_codes"], parts["_scales"], signed=signed)


def _closed(moment: Tensor, before: dict[str, Tensor], *, signed: bool, takes: Tensor) -> dict[str, Tensor]:
    """What is kept of a new moment; of a step that is not taken what was before, which packing again would move."""
    if "" in before:
        return {"": torch.where(takes, moment, before[""])}
    codes, scales = pack(moment, signed=signed)
    return {
        "_codes": torch.where(takes, codes, before["_codes"]),
        "_scales": torch.where(takes, scales, before["_scales"]),
    }


def _pieces(numel: int) -> Iterator[slice]:
    for start in range(0, numel, PIECE):
        yield slice(start, min(start + PIECE, numel))


def _blocks(piece: slice) -> slice:
    return slice(piece.start // BLOCK, piece.start // BLOCK + blocks_of(piece.stop - piece.start))
