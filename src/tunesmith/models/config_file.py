"""config.json of a model folder: values to build a module of, never a word on which code or which file to load. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.foreign import read_object

NAME = "config.json"

DROPPED_FIELDS = frozenset(
    {
        "auto_map", "custom_generate", "code_revision", "trust_remote_code",  # code that the folder brings
        "attn_implementation", "_attn_implementation", "_attn_implementation_internal",  # kernels, also of a hub
        "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
        "kernel_config", "use_kernels", "allow_all_kernels", "fusion_config", "quantization_config",
        "transformers_weights",  # other weights than those that were checked and hashed
        "distributed_config", "base_model_tp_plan", "base_model_pp_plan", "base_model_fsdp_plan",
    }
)  # fmt: skip
"""Fields of a config that could run code, choose kernels or choose files, at any depth; they are dropped, not obeyed.

So are names with two underscores before them, which are Python's own.
"""

_NUMBER = "__float__"


def read_config(folder: Path) -> dict[str, Any]:
    """Values of config.json as they stand.

    Raises:
        ModelError: missing, too large, or not a JSON object.
    """
    try:
        return read_object(folder / NAME)
    except FileNotFoundError:
        raise ModelError(
            "the model folder has no config.json", where=str(folder), hint="give a folder in Hugging Face layout"
        ) from None


def obeyed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without ``DROPPED_FIELDS``, those of inner configurations included."""
    return {key: _inner(value) for key, value in values.items() if not _is_dropped(key)}


def dropped(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Dotted names of what ``obeyed`` leaves out, in order."""
    return tuple(_dropped(values, ""))


def with_numbers(value: Any) -> Any:
    """The value with infinities as numbers, which transformers writes as an object of their name."""
    if isinstance(value, Mapping):
        return float(value[_NUMBER]) if _is_number(value) else {key: with_numbers(item) for key, item in value.items()}
    return [with_numbers(item) for item in value] if isinstance(value, list) else value


def _is_number(value: Mapping[str, Any]) -> bool:
    return list(value) == [_NUMBER] and value[_NUMBER] in ("Infinity", "-Infinity", "NaN")


def _is_dropped(key: str) -> bool:
    return key in DROPPED_FIELDS or key.startswith("__")


def _inner(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value) if _is_number(value) else obeyed(value)
    return [_inner(item) for item in value] if isinstance(value, list) else value


def _dropped(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, Mapping) and not _is_number(value):
        for key, inner in value.items():
            if _is_dropped(key):
                yield f"{path}{key}"
            else:
                yield from _dropped(inner, f"{path}{key}.")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _dropped(inner, f"{path}{index}.")
