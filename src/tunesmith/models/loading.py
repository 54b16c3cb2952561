"""A model folder to a module: from local safetensors only, without any code of the folder's own."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from tunesmith.errors import ModelError
from tunesmith.models.causal_lm import CausalLM

DROPPED_FIELDS = ("auto_map", "attn_implementation", "_attn_implementation", "kernel_config", "quantization_config")
"""Fields of a downloaded config that could run code or choose kernels; they are dropped, not obeyed."""


def read_config(folder: Path) -> Any:
    """Configuration of a model folder without the fields that could run code.

    Raises:
        ModelError: missing, not JSON, or an architecture that transformers does not have.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError("the model folder has no config.json", where=str(folder)) from error
    except ValueError as error:
        raise ModelError(f"config.json is not valid JSON: {error}", where=str(path)) from error
    for field in DROPPED_FIELDS:
        values.pop(field, None)
    kind = values.pop("model_type", None)
    try:
        return AutoConfig.for_model(kind, **values)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"model type `{kind}` is not known to the installed transformers: {error}", where=str(path)
        ) from error


def load_model(
    folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32, check: bool = True
) -> CausalLM:
    """Load a causal language model from a folder in Hugging Face layout.

    Args:
        folder: holds config.json and safetensors.
        device: where the weights go.
        dtype: of all parameters.
        check: compare the facade with the model's own forward (milliseconds for small models).

    Raises:
        ModelError: no such architecture, missing or unexpected weights, unknown logits.
    """
    config = read_config(folder)
    _quiet()
    try:
        hf, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the model does not load: {str(error).splitlines()[0]}", where=str(folder)) from error
    missing = sorted(name for name in report.get("missing_keys", ()) if not _is_tied(hf, name))
    if missing:
        raise ModelError(
            f"{len(missing)} weights are missing from the model's files, the first is `{missing[0]}`",
            where=str(folder),
            hint="the folder may be incomplete: copy it again",
        )
    hf.to(device)
    hf.config.use_cache = False
    model = CausalLM(hf)
    if check:
        model.check_facade()
    return model


def _is_tied(hf: Any, name: str) -> bool:
    tied = getattr(hf, "_tied_weights_keys", None) or {}
    return bool(hf.config.get_text_config().tie_word_embeddings) and name in set(tied)


def _quiet() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
