"""Bottleneck adapters on disk, in a format of our own: PEFT has no such method.

``adapter_config.json`` has ``peft_type: TUNESMITH_BOTTLENECK``, at which PEFT stops, the ``format``, ``parts`` (module -> settings)
and ``token_rows`` (matrix -> token ids). ``adapter_model.safetensors`` has the numbers by their names in the adapter's state:
``MODULE.down.weight`` and the like, ``MATRIX.token_rows``, and parameters trained beside, tied ones under each of their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tunesmith.adapters.parameters import aliases, own_names
from tunesmith.adapters.trained_tokens import SUFFIX
from tunesmith.recipe.bottleneck import BottleneckPart

TYPE = "TUNESMITH_BOTTLENECK"
FORMAT = 1
ENDINGS = (".down.weight", ".down.bias", ".up.weight", ".up.bias")
NORM_ENDINGS = (".norm.weight", ".norm.bias")


def layout(
    model: nn.Module,
    parts: Mapping[str, BottleneckPart],
    rows: Mapping[str, Sequence[int]],
    state: Mapping[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of an attached adapter.

    Args:
        model: that it is on.
        parts: module -> settings.
        rows: embedding or head -> token ids whose rows train.
        state: what the adapter's ``state`` gives.
    """
    configuration: dict[str, Any] = {
        "peft_type": TYPE,
        "format": FORMAT,
        "base_model_name_or_path": None,
        "parts": {name: part.model_dump() for name, part in parts.items()},
        "token_rows": {name: list(ids) for name, ids in rows.items()},
    }
    added = {name + ending for name, part in parts.items() for ending in shapes(part, 1)}
    names = own_names(model)
    tensors: dict[str, Tensor] = {}
    for key, tensor in state.items():
        is_whole = key not in added and not key.endswith(SUFFIX)
        tensors |= dict.fromkeys(aliases(model, names[key]) if is_whole else [key], tensor)
    return configuration, tensors


def shapes(part: BottleneckPart, hidden: int) -> dict[str, tuple[int, ...]]:
    """Ending -> shape of a part's tensors in a model of width ``hidden``."""
    values = [(part.width, hidden), (part.width,), (hidden, part.width), (hidden,)]
    found: dict[str, tuple[int, ...]] = dict(zip(ENDINGS, values, strict=True))
    return found if part.layer_norm == "none" else found | dict.fromkeys(NORM_ENDINGS, (hidden,))
