"""A GraLoRA adapter in PEFT's words (``GraloraConfig``, since 0.18). Touches no files.

PEFT's GraLoRA has no per-token rows and no tied copies: what trains beside goes in as whole modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tunesmith.adapters import peft_layout
from tunesmith.adapters.lora_layer import is_transposed
from tunesmith.adapters.peft_layout import PREFIX, Layout
from tunesmith.recipe.low_rank import GraloraSection

_MARK = ".gralora_"


def layout(
    model: nn.Module,
    section: GraloraSection,
    ranks: Mapping[str, tuple[int, float]],
    rows: Mapping[str, Sequence[int]],
    state: Mapping[str, Tensor],
) -> Layout:
    """Lay an attached adapter out; arguments as ``peft_layout.layout``."""
    configuration: dict[str, Any] = {
        "peft_type": "GRALORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "revision": None,
        "inference_mode": True,
        "r": section.rank,
        "hybrid_r": section.hybrid_rank,
        "alpha": peft_layout.number(section.alpha),
        "gralora_dropout": section.dropout,
        "gralora_k": section.blocks,
        "bias": "none",
        "fan_in_fan_out": any(is_transposed(model.get_submodule(layer)) for layer in ranks),
        "init_weights": True,
        "target_modules": peft_layout.suffixes([name for name, _ in model.named_modules()], ranks),
        "modules_to_save": None,
    }
    tensors = {PREFIX + key: tensor for key, tensor in state.items() if _MARK in key}
    result = Layout(configuration, tensors)
    others = {key: tensor for key, tensor in state.items() if _MARK not in key}
    peft_layout.lay_out_beside(model, rows, others, result, knows_rows=False)
    return result
