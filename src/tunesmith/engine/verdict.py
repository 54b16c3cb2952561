"""The verdict on a step, on the device: whether it may be applied, and which guard says no. The host does not wait.

After a refusal that stops training or rolls it back, every later step is refused too, until the host has noticed: what
the weights were before the offending step they still are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.engine.clipping import Clipping, FixedClip, ZClip
from tunesmith.engine.options import TrainerOptions
from tunesmith.engine.precision import Precision
from tunesmith.engine.spikes import SpikeGuard
from tunesmith.types import Control, ParamGroup, Refusal

_FLAG = "flag:"


class Judge:
    """Non-finite numbers, spikes and controls.

    Args:
        options: policies and settings.
        groups: what trains.
        controls: more guards, asked in order.
        precision: decides whether an overflow of fp16 is expected.
        device: where numbers lie.
    """

    def __init__(
        self,
        options: TrainerOptions,
        groups: Sequence[ParamGroup],
        controls: Sequence[Control],
        precision: Precision,
        device: torch.device,
    ) -> None:
        self.groups = groups
        self.precision = precision
        self.device = device
        spikes: list[Control] = [SpikeGuard(options.spikes, device)] if options.spikes else []
        self.controls = [*spikes, *controls]
        self.clipping: Clipping = (
            ZClip(options.zclip, options.clip, device) if options.zclip else FixedClip(options.clip)
        )
        policy = options.guards.non_finite
        # Weights that an update spoilt cannot be skipped over: they are spoilt for all that follows.
        self._policies: dict[str, Refusal] = {
            "non_finite": policy, "spoilt": "stop" if policy == "skip" else policy,
            **{control.name: control.on_refusal for control in self.controls},
        }  # fmt: skip
        self._halted = torch.zeros((), device=device)

    @property
    def may_roll_back(self) -> bool:
        """Whether any guard may ask to go back to a checkpoint."""
        return "rollback" in self._policies.values()

    def policy(self, name: str) -> Refusal:
        """What a guard asks for."""
        return self._policies[name]

    def judge(self, step: int, loss: Tensor, grad_norm: Tensor) -> dict[str, Tensor]:
        """Flags of a step, scalars on the device: ``refused``, ``overflow``, and ``flag:NAME`` for each guard.

        Args:
            step: from 0.
            loss: of the whole step.
            grad_norm: global, unscaled, before clipping.
        """
        finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
        overflow = ~finite & self.precision.can_halve() if self.precision.scales else torch.zeros_like(finite)
        flags = {f"{_FLAG}non_finite": (~finite & ~overflow).float()}
        for control in self.controls:
            said = control.after_backward(step, loss, grad_norm, self.groups)
            if said is not None:
                flags[f"{_FLAG}{control.name}"] = said * (~overflow).float()
        self.precision.after_step(~finite)
        halted = self._halted
        for name, value in flags.items():
            if self._policies[name.removeprefix(_FLAG)] != "skip":
                self._halted = torch.maximum(self._halted, value)
        refused = torch.stack([*flags.values(), overflow.float(), halted]).amax()
        return {"refused": refused, "overflow": overflow.float(), "halted": halted, **flags}

    def look_at_weights(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """1 where an update left weights that are not finite, else 0.

        With finite gradients AdamW's update is bounded by its rate, so this is the last line, not the first.
        """
        norm = nn.utils.get_total_norm([parameter.detach() for parameter in parameters])
        spoilt = (~torch.isfinite(norm)).float()
        self._halted = torch.maximum(self._halted, spoilt)
        return spoilt

    def refused_by(self, scalars: Mapping[str, float]) -> str | None:
        """The guard that refused a step, from its numbers on the host; None where it was applied."""
        for name, value in scalars.items():
            if name.startswith(_FLAG) and value:
                return name.removeprefix(_FLAG)
        if scalars["spoilt"]:
            return "spoilt"
        return "overflow" if scalars["refused"] else None

    def after_step(self, step: int) -> None:
        """Let the controls look on; ``step`` counts finished ones."""
        for control in self.controls:
            control.after_step(step, self.groups)

    def resume(self) -> None:
        """Steps may be applied again."""
        self._halted = torch.zeros((), device=self.device)

    def state_dict(self) -> dict[str, Any]:
        """State of clipping and controls."""
        return {"clipping": self.clipping.state_dict(), "controls": [item.state_dict() for item in self.controls]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self.clipping.load_state_dict(state["clipping"])
        for control, saved in zip(self.controls, state["controls"], strict=True):
            control.load_state_dict(saved)
