"""A tiny random model of any kind on disk, with a byte-level tokenizer and rows to tune it on."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from tests.breadth.tiny_configs import KINDS, VOCABULARY, NoTinyModel, first, tiny_config

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<mask>")
MOST_PARAMETERS = 3_000_000
_SPREAD = 0.15
_SENTENCES = ("the kettle sings", "rain is coming", "two cats sleep", "bread is warm", "a door opens", "who is there")


def write_tiny(folder: Path, kind: str, model_type: str, changes: Mapping[str, Any] | None = None) -> Any:
    """Save a random model in fp32 with its tokenizer; returns the module.

    Raises:
        NoTinyModel: transformers cannot build one that runs on text alone.
    """
    model = tiny_model(kind, model_type, changes)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def tiny_model(kind: str, model_type: str, changes: Mapping[str, Any] | None = None) -> Any:
    """The module in evaluation mode, its layers spread wide enough that wrong attention shows.

    Raises:
        NoTinyModel: as ``write_tiny``.
    """
    config: PreTrainedConfig = tiny_config(kind, model_type, changes)
    auto = KINDS[kind][1]
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
        if size > MOST_PARAMETERS:
            raise NoTinyModel(
                f"its smallest form has {size:,} parameters: parts of it have no size in the configuration"
            )
        torch.manual_seed(0)
        model = auto.from_config(config).float().eval()
    except NoTinyModel:
        raise
    except Exception as error:
        raise NoTinyModel(f"transformers does not build it: {first(error)}") from error
    _spread(model)
    ids = torch.arange(4, 16)[None]
    given = {"input_ids": ids} | ({"decoder_input_ids": ids} if kind == "encoder-decoder" else {})
    try:
        with torch.inference_mode():
            logits = model(**given, use_cache=False).logits if takes_cache(model) else model(**given).logits
    except Exception as error:
        raise NoTinyModel(f"it does not run on text alone: {first(error)}") from error
    if logits.ndim != 3 or logits.shape[:2] != ids.shape or not bool(logits.isfinite().all()):
        raise NoTinyModel(f"its logits are {tuple(logits.shape)}, or not finite")
    return model


def takes_cache(model: nn.Module) -> bool:
    """Whether a model asks if it shall keep a cache."""
    return "use_cache" in inspect.signature(model.forward).parameters


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D):
            module.weight.normal_(0.0, _SPREAD)
    for name, parameter in model.named_parameters():
        if ".experts." in name and parameter.dim() == 3:
            parameter.normal_(0.0, _SPREAD)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of bytes, with tokens for padding, beginning, end and masking."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: number for number, text in enumerate([*SPECIAL_TOKENS, *alphabet])}
    assert len(vocabulary) <= VOCABULARY
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.save(str(folder / "tokenizer.json"))
    names = ("pad_token", "bos_token", "eos_token", "mask_token")
    settings = dict(zip(names, SPECIAL_TOKENS, strict=True))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    )


def write_rows(path: Path, kind: str) -> None:
    """Two dozen short questions with answers, or documents, of unlike lengths."""
    rows: list[dict[str, str]] = []
    for number in range(24):
        text = " ".join(_SENTENCES[(number + step) % 6] for step in range(1 + number % 3))
        rows.append({"text": text} if kind == "encoder" else {"prompt": text, "completion": _SENTENCES[number % 6]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
