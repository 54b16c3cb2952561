"""What named tensors of a stranger must be before any of them is used: names, shapes, types, finite numbers.

Fused optimisers work past the end of a buffer that is too short, so that is not left to them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tunesmith.engine.forms import shown

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def trained_fault(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """The first way in which tensors differ from those that train, by name, shape and type, or are no numbers."""
    if lacking := [name for name in wanted if name not in found]:
        return f"trained.safetensors lacks {len(lacking)} tensors, {shown(lacking[0])} among them"
    if strange := [name for name in found if name not in wanted]:
        return f"trained.safetensors has {len(strange)} tensors that do not train, {shown(strange[0])} among them"
    faults = (tensor_fault(name, found[name], wanted[name].shape, wanted[name].dtype) for name in wanted)
    fault = next((item for item in faults if item), None)
    return fault and f"trained.safetensors: {fault}"


def tensor_fault(name: str, found: Tensor, shape: torch.Size, dtype: torch.dtype) -> str | None:
    """Whether a tensor has a shape and a type and is finite; a clause where it is not."""
    if found.shape != shape or found.dtype != dtype:
        return f"{shown(name)} is {found.dtype} {tuple(found.shape)}, not {dtype} {tuple(shape)}"
    if dtype in _FLOATS and not bool(torch.isfinite(found).all()):
        return f"{shown(name)} holds what is no number"
    return None
