"""Whole models on disk in Hugging Face layout: safetensors, the base's configuration, tokenizer and template."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.files import copy_file, write_text
from tunesmith.foreign import read_object
from tunesmith.models import config_file

CARRIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def stored_dtype(folder: Path) -> torch.dtype:
    """The type in which a model folder says its weights are stored; fp32 where it does not say."""
    values = config_file.read_config(folder)
    name = str(values.get("dtype") or values.get("torch_dtype") or "float32")
    return {text: dtype for dtype, text in DTYPE_NAMES.items()}.get(name, torch.float32)


def write_model(
    folder: Path,
    hf: Any,
    base: Path,
    dtype: torch.dtype,
    *,
    template: str | None = None,
    stop_ids: Collection[int] = (),
) -> list[str]:
    """Write a module of transformers as a model folder; returns sentences to say aloud.

    Args:
        folder: exists and is empty.
        hf: the module; its layers must be its own (adapters merged and detached).
        base: folder of the base, for its configuration and tokenizer.
        dtype: of the stored weights.
        template: chat template to store instead of the base's.
        stop_ids: tokens that end an answer; ``generation_config.json`` names them, so that others stop there too.
    """
    hf.save_pretrained(folder, state_dict=cast(hf.state_dict(), dtype))
    given = config_file.read_config(base)
    config = config_file.obeyed(given)
    config.pop("torch_dtype", None)
    config["dtype"] = DTYPE_NAMES[dtype]
    write_text(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    for weights in folder.glob("*.safetensors"):  # transformers leaves them to their owner alone
        weights.chmod((folder / "config.json").stat().st_mode)
    for name in CARRIED:
        if (base / name).is_file():
            copy_file(base / name, folder / name)
    if stop_ids:
        _name_stops(folder / "generation_config.json", stop_ids)
    if template is not None:
        write_text(folder / "chat_template.jinja", template)
    return [
        f"config.json is written without `{field}`, which is not obeyed here" for field in config_file.dropped(given)
    ]


def cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Floating-point tensors in ``dtype`` on the CPU; names of one weight stay one tensor, which is stored once."""
    cast: dict[tuple[Any, ...], Tensor] = {}
    result = {}
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place not in cast:
            cast[place] = tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype).cpu()
        result[name] = cast[place]
    return result


def _name_stops(path: Path, stop_ids: Collection[int]) -> None:
    """Add ``stop_ids`` to the end tokens of a generation config; a plain number where there is one."""
    values = read_object(path) if path.is_file() else {}
    there = values.get("eos_token_id")
    known = [item for item in (there if isinstance(there, list) else [there]) if isinstance(item, int)]
    ends = [*known, *sorted(set(stop_ids) - set(known))]
    values["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
