"""Optimisers of torch over parameter groups, and their state as named tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tunesmith.engine.blockwise import blocks_of
from tunesmith.engine.compact_adamw import CompactAdamW, packs
from tunesmith.engine.forms import shown
from tunesmith.engine.options import TrainerOptions
from tunesmith.engine.tensor_form import tensor_fault
from tunesmith.types import ParamGroup

_LIKE_THE_PARAMETER = None
_SCALAR = (torch.Size(()), torch.float32)
_BESIDE: dict[str, tuple[torch.Size, torch.dtype] | None] = {
    "gradient_sum": _LIKE_THE_PARAMETER, "score_sum": _LIKE_THE_PARAMETER, "score_count": _SCALAR,
    "score_level": _LIKE_THE_PARAMETER, "score_spread": _LIKE_THE_PARAMETER,
}  # fmt: skip
"""What rules that freeze keep of a parameter's gradients; saved with the optimiser's state, and no part of it."""
_KEYS: dict[str, dict[str, tuple[torch.Size, torch.dtype] | None]] = {
    "adamw": {
        "step": _SCALAR, "exp_avg": _LIKE_THE_PARAMETER, "exp_avg_sq": _LIKE_THE_PARAMETER,
    },
    "sgd": {"momentum_buffer": _LIKE_THE_PARAMETER},
}  # fmt: skip
"""What an optimiser keeps for a parameter: shape and type of each, where they are not the parameter's own."""
_NEVER_NEGATIVE = (
    "step",
    "exp_avg_scales",
    "exp_avg_sq_scales",
    "exp_avg_sq",
    "score_sum",
    "score_count",
    "score_level",
    "score_spread",
)


class Optimiser:
    """AdamW, plain or with compact moments, or SGD over groups; remembers parameter names so that its state can be saved without pickle."""

    def __init__(self, groups: Sequence[ParamGroup], options: TrainerOptions) -> None:
        self.groups = [group for group in groups if group.parameters]
        self.names = [name for group in self.groups for name, _ in group.parameters]
        self.parameters: list[nn.Parameter] = [item for group in self.groups for _, item in group.parameters]
        if len(set(self.names)) != len(self.names):
            raise AssertionError("a parameter is in two groups")
        self.options = options
        self.began = 0
        """Step after which it started from nothing: a child may begin without its parent's moments."""
        settings = [
            {
                "params": [parameter for _, parameter in group.parameters],
                "weight_decay": options.weight_decay if group.decay else 0.0,
                "rate_factor": group.rate_factor,
                "depth_factor": group.depth_factor,
                "depth": group.depth,
                "share": 1.0,
            }
            for group in self.groups
        ]
        self.torch = self._build(settings)
        self.beside: dict[str, dict[nn.Parameter, Tensor]] = {key: {} for key in _BESIDE}
        """What rules keep of the gradients, by key and parameter; saved with the optimiser's own state."""
        self.sums = self.beside["gradient_sum"]
        self._group_of = {id(item): group for group in self.torch.param_groups for item in group["params"]}

    def _build(self, settings: list[dict[str, Any]]) -> torch.optim.Optimizer:
        rate = self.options.learning_rate
        if self.options.optimiser == "sgd":
            return torch.optim.SGD(settings, lr=rate, momentum=self.options.momentum, fused=True)
        betas, eps = self.options.betas, 1e-8
        if self.options.optimiser == "adamw_8bit" or self.options.offload_optimiser:
            eight_bit, offload = self.options.optimiser == "adamw_8bit", self.options.offload_optimiser
            return CompactAdamW(settings, rate, betas, eps, eight_bit=eight_bit, offload=offload)
        return torch.optim.AdamW(settings, lr=rate, betas=betas, eps=eps, fused=True)

    def _own_keys(self, parameter: nn.Parameter) -> dict[str, tuple[torch.Size, torch.dtype] | None]:
        """What the optimiser keeps for a parameter, with shapes and types."""
        if self.options.optimiser != "adamw_8bit":
            return _KEYS[self.options.optimiser]
        if not packs(parameter.numel()):
            return _KEYS["adamw"]
        codes, scales = torch.Size([parameter.numel()]), torch.Size([blocks_of(parameter.numel())])
        kept: dict[str, tuple[torch.Size, torch.dtype] | None] = {"step": _SCALAR}
        for key in ("exp_avg", "exp_avg_sq"):
            kept |= {f"{key}_codes": (codes, torch.uint8), f"{key}_scales": (scales, torch.float32)}
        return kept

    def set_rate(self, rate: float, shares: Mapping[int | None, float] | None = None) -> None:
        """Set the rate of the next update; each group multiplies it by its factors, and by the share of its depth."""
        for group in self.torch.param_groups:
            group["share"] = (shares or {}).get(group["depth"], 1.0)
            group["lr"] = rate * group["rate_factor"] * group["depth_factor"] * group["share"]

    def share(self, parameter: nn.Parameter) -> float:
        """Share of the rate that a parameter has because of its place in the model."""
        group = self._group_of[id(parameter)]
        return float(group["depth_factor"] * group["share"])

    def forget(self, parameters: Iterable[nn.Parameter]) -> None:
        """Drop gradients, moments and all that is kept beside them, as if the parameters had never had a step."""
        for parameter in parameters:
            parameter.grad = None
            self.torch.state.pop(parameter, None)
            for kept in self.beside.values():
                kept.pop(parameter, None)

    @torch.no_grad()
    def add_up(self, refused: Tensor, below: int) -> None:
        """Add the gradients of all depths below one to ``sums``, unless ``refused`` is 1; the host does not wait."""
        for group in self.groups:
            if group.depth is None or group.depth >= below:
                continue
            for _, parameter in group.parameters:
                if parameter.grad is None:
                    continue
                one = torch.where(refused > 0, torch.zeros_like(parameter.grad), parameter.grad)
                self.sums[parameter] = self.sums[parameter].add_(one) if parameter in self.sums else one

    def step(self, refuse: Tensor) -> None:
        """Apply the gradients unless ``refuse`` (a scalar on the device, 1 to skip); the host does not wait."""
        self.torch.found_inf = refuse  # type: ignore[attr-defined]
        self.torch.grad_scale = None  # type: ignore[attr-defined]
        self.torch.step()

    def last_update(self, parameter: nn.Parameter) -> Tensor:
        """What the last step took from a parameter, decay left out; zeros before its first. From the optimiser's state alone."""
        state = self.torch.state.get(parameter, {})
        group = self._group_of[id(parameter)]
        momentum: Tensor | None = state.get("momentum_buffer")
        if momentum is not None:
            return momentum * float(group["lr"])
        if "step" not in state:
            return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad * float(group["lr"])
        first, second = group["betas"]
        moments = (state["exp_avg"], state["exp_avg_sq"]) if type(self.torch) is torch.optim.AdamW else None
        mean, square = moments or cast(CompactAdamW, self.torch).moments(parameter)
        mean = mean / (1 - first ** state["step"])
        deviation = (square / (1 - second ** state["step"])).sqrt() + group["eps"]
        update: Tensor = group["lr"] * mean / deviation
        return update

    def clear(self) -> None:
        """Drop the gradients."""
        self.torch.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """``name/key`` to tensor, for instance ``layers.0.q_proj.A/exp_avg``."""
        tensors: dict[str, Tensor] = {}
        if self.options.offload_optimiser and torch.cuda.is_available():
            torch.cuda.synchronize()  # moments may be on their way to the host
        for name, parameter in zip(self.names, self.parameters, strict=True):
            for key, value in self.torch.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{name}/{key}"] = value.detach()
            for key, kept in self.beside.items():
                if parameter in kept:
                    tensors[f"{name}/{key}"] = kept[parameter]
        return tensors

    def fault(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Why tensors cannot be what ``state`` gave, or None.

        A parameter has all of its keys, or none: it may have had no step, or be frozen. What rules keep it may have besides.
        """
        known = dict(zip(self.names, self.parameters, strict=True))
        by_name = _by_name(tensors)
        for name, values in by_name.items():
            own = self._own_keys(known[name]) if name in known else {}
            keys = {**own, **_BESIDE} if name in known else {}
            strange = [key for key in values if key not in keys]
            if strange:
                return f"{shown(f'{name}/{strange[0]}')} is nothing that this run's optimiser keeps"
            lacking = [key for key in own if key not in values]
            if lacking and not _BESIDE.keys() >= values.keys():
                return f"{shown(name)} lacks {len(lacking)} of {len(own)} values, `{lacking[0]}` among them"
            for key, value in values.items():
                parameter = known[name]
                shape, dtype = keys.get(key) or (parameter.shape, parameter.dtype)
                if fault := tensor_fault(f"{name}/{key}", value, shape, dtype):
                    return fault
                if key in _NEVER_NEGATIVE and bool((value < 0).any()):
                    return f"{shown(f'{name}/{key}')} is negative"
        return None

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``; a parameter without state has had no step yet. ``fault`` says whether they are fit for it."""
        by_name = _by_name(tensors)
        for name, parameter in zip(self.names, self.parameters, strict=True):
            self.torch.state.pop(parameter, None)
            found = {key: value.to(parameter.device).clone() for key, value in by_name.get(name, {}).items()}
            for key, kept in self.beside.items():
                kept.pop(parameter, None)
                if key in found:
                    kept[parameter] = found.pop(key)
            if found and isinstance(self.torch, CompactAdamW):
                self.torch.put(parameter, found)
            elif found:
                self.torch.state[parameter] = found


def is_beside(name: str) -> bool:
    """Whether a tensor of ``Optimiser.state`` is what a rule keeps of the gradients, which is no state of the optimiser itself."""
    return name.rpartition("/")[2] in _BESIDE


def _by_name(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        found.setdefault(name, {})[key] = value
    return found
