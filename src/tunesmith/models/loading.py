"""A model folder to a module: from local safetensors only, without any code of the folder's own."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers import __version__ as transformers_version
from transformers.utils import logging as transformers_logging

from tunesmith.errors import ModelError
from tunesmith.models import config_file, quantised
from tunesmith.models.causal_lm import CausalLM, base_of, plain_attention_of
from tunesmith.models.dropout import dropout_keys
from tunesmith.models.encoder_lm import EncoderLM
from tunesmith.models.facts import ModelFacts, read_facts
from tunesmith.models.seq2seq_lm import Seq2SeqLM
from tunesmith.models.weights import INDEX, SINGLE, weight_files

_TESTED = "docs/reference/models.md lists the families that were tried"
_BELONG = "config.json and weights do not belong together, or the folder is incomplete: copy the whole folder again"
_LONGEST = 200
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LARGEST_WEIGHT = 1e6
"""Weights and gains of real models stay below a thousand or so; the high bits of an exponent give 1e8 and more."""
_MOST_GROWTH = 1.5
_FREE_ELEMENTS = 1 << 26
"""Beyond one and a half times what is stored and 64 million numbers, a config does not describe the weights beside it."""


def read_config(folder: Path, dropout: Mapping[str, float] | None = None) -> Any:
    """Configuration of a model folder without the fields that could run code or choose files.

    Args:
        folder: of the model.
        dropout: kind to rate, of the kinds that the family has; see ``models.dropout``.

    Raises:
        ModelError: missing, not JSON, or an architecture that transformers does not have.
    """
    values = config_file.with_numbers(config_file.obeyed(config_file.read_config(folder)))
    kind = values.pop("model_type", None)
    try:
        config = AutoConfig.for_model(kind, **values)
        inner = config.get_text_config()
        for name, rate in (dropout or {}).items():
            setattr(inner, dropout_keys(inner.model_type)[name], rate)
        return config
    except Exception as error:  # the classes of transformers fail on wrong values in every way there is
        raise ModelError(
            f"model type `{kind}` does not open with the installed transformers {transformers_version}: {_first(error)}",
            where=str(folder / config_file.NAME),
            hint=f"{_TESTED}; a newer transformers may know more, and code that a folder brings is never run",
        ) from error


def load_model(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    check: bool = True,
    dropout: Mapping[str, float] | None = None,
    quantise: str = "none",
    headless: bool = False,
    init_seed: int | None = None,
) -> CausalLM:
    """Load a language model from a folder in Hugging Face layout: a causal one, or an encoder.

    Args:
        folder: holds config.json and safetensors.
        device: where the weights go.
        dtype: of all parameters.
        check: compare the facade with the model's own forward (milliseconds for small models).
        dropout: rates in training that replace the configuration's, by kind.
        quantise: how the linear layers hold their weights: ``none`` or one of ``quantised.KINDS``.
        headless: leave the language head out, which the folder then need not have.
        init_seed: draw weights from this seed in place of those that are stored; None loads them.

    Raises:
        ModelError: what ``quantise`` needs is not installed; no such architecture, missing or unexpected weights, unknown logits.
    """
    facts = read_facts(folder)
    kind, facade = _kinds(facts)
    config = read_config(folder, dropout)
    _quiet()
    try:
        _refuse_larger(config, kind, facts.num_parameters, folder)
        if init_seed is None:
            hf, report = _stored(folder, kind, config, dtype if quantise == "none" else DTYPES[facts.dtype])
        else:
            hf, report = _drawn(kind, config, dtype, init_seed), {}
    except ModelError:
        raise
    except Exception as error:  # the classes of transformers fail on wrong values in every way there is
        raise ModelError(f"the model does not load: {_first(error)}", where=str(folder), hint=_BELONG) from error
    hf.name_or_path = hf.config.name_or_path = str(folder)
    _refuse_other_weights(hf, report, folder, headless=headless)
    _place(hf, folder, quantise, dtype, device)
    hf.config.use_cache = False
    model = facade(hf, facts.unpacked)
    if headless:
        model.drop_head()
    if check:
        model.check_facade(where=str(folder))
    return model


def _kinds(facts: ModelFacts) -> tuple[Any, type[CausalLM]]:
    """The class of transformers that builds a model, and our facade over it."""
    if facts.is_encoder_decoder:
        return AutoModelForSeq2SeqLM, Seq2SeqLM
    return (AutoModelForMaskedLM, EncoderLM) if facts.is_encoder else (AutoModelForCausalLM, CausalLM)


def _stored(folder: Path, kind: Any, config: Any, dtype: torch.dtype) -> tuple[Any, Mapping[str, Any]]:
    """The module with the folder's weights, and what transformers reports of them."""
    with weights_alone(folder) as beside:
        hf, report = kind.from_pretrained(
            beside,
            config=config,
            dtype=dtype,
            attn_implementation=_plain_attention(kind, config),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by name
        )
    return hf, report


def _drawn(kind: Any, config: Any, dtype: torch.dtype, seed: int) -> Any:
    """The module with weights drawn as its family draws them; the process's generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        plain = _plain_attention(kind, config)
        hf = kind.from_config(config, dtype=torch.float32, attn_implementation=plain, trust_remote_code=False)
    return hf.to(dtype).eval()


def _plain_attention(kind: Any, config: Any) -> str:
    """The attention that the class of a configuration can start with."""
    return plain_attention_of(kind._model_mapping[type(config)])


def _place(hf: Any, folder: Path, quantise: str, dtype: torch.dtype, device: str) -> None:
    """Check the weights and bring them to the device, packed where that is asked for."""
    if quantise == "none":
        hf.to(device)
        _check_weights(hf, folder)
        return
    _check_weights(hf, folder)
    quantised.quantise(hf, quantise, dtype, device)
    for parameter in hf.parameters():  # buffers hold packed weights and their scales
        parameter.data = parameter.data.to(dtype)
    hf.to(device)


def _refuse_other_weights(hf: Any, report: Mapping[str, Any], folder: Path, *, headless: bool) -> None:
    """Refuse weights of another shape than config.json says, and missing ones but for a head that is left out.

    Raises:
        ModelError: names the first.
    """
    if mismatched := report.get("mismatched_keys"):
        name, stored, wanted = sorted(mismatched)[0]
        raise ModelError(
            f"{len(mismatched)} weights have another shape than config.json says, the first is `{name}`: "
            f"{tuple(stored)} in the file, {tuple(wanted)} by config.json",
            where=str(folder / "config.json"),
            hint=_BELONG,
        )
    missing = sorted(
        name
        for name in report.get("missing_keys", ())
        if not _is_tied(hf, name) and (not headless or name.startswith(_base_prefix(hf)))
    )
    if missing:
        raise ModelError(
            f"{len(missing)} weights are missing from the model's files, the first is `{missing[0]}`",
            where=str(folder),
            hint="the folder may be incomplete: copy it again",
        )


def _base_prefix(hf: Any) -> str:
    base = base_of(hf)
    return next(f"{name}." for name, child in hf.named_children() if child is base)


@torch.no_grad()
def _check_weights(hf: Any, folder: Path) -> None:
    """Refuse weights that no trained model has: a flipped bit in an exponent gives such a value, and training would go on.

    Raises:
        ModelError: names the first tensor.
    """
    named = [
        (name, parameter)
        for name, parameter in hf.named_parameters()
        if parameter.is_floating_point() and parameter.numel()
    ]
    largest = torch.stack([norm.float() for norm in torch._foreach_norm([item for _, item in named], float("inf"))])
    for (name, _), value in zip(named, largest.tolist(), strict=True):
        if not value <= _LARGEST_WEIGHT:
            fault = f"damaged: the largest is {value:.3g}" if math.isfinite(value) else "not finite"
            raise ModelError(
                f"the weights of `{name}` are {fault}",
                where=str(folder),
                hint="the files are damaged or were saved from a run that diverged: copy the model again",
            )


def _refuse_larger(config: Any, kind: Any, stored: int, folder: Path) -> None:
    """Refuse a config that describes much more than the files hold: what is missing would be filled in, in memory.

    The module is built without memory for its tensors, and counted.
    """
    with torch.device("meta"):
        skeleton = kind.from_config(config, dtype=torch.float32, trust_remote_code=False)
    described = sum(item.numel() for item in {id(item): item for item in skeleton.parameters()}.values())
    buffers = sum(item.numel() for item in skeleton.buffers())
    if described > _MOST_GROWTH * stored + _FREE_ELEMENTS or buffers > stored + _FREE_ELEMENTS:
        what = f"{described:,} parameters" if described > stored else f"buffers of {buffers:,} numbers"
        raise ModelError(
            f"config.json describes {what}, the weight files hold {stored:,} parameters",
            where=str(folder / config_file.NAME),
            hint=_BELONG,
        )


@contextmanager
def weights_alone(folder: Path) -> Iterator[Path]:
    """A folder with nothing but the weight files that were checked, and a configuration of ours.

    transformers looks into a model folder for adapters, other weight files, sharded checkpoints and generation code; what
    was neither checked nor hashed must not be found.
    """
    with tempfile.TemporaryDirectory(prefix="tunesmith-model-") as name:
        beside = Path(name)
        files = weight_files(folder)
        for path in [*files, *([folder / INDEX] if files[0].name != SINGLE else [])]:
            (beside / path.name).symlink_to(path.resolve())
        values = config_file.obeyed(config_file.read_config(folder))
        (beside / config_file.NAME).write_text(json.dumps(values), encoding="utf-8")
        yield beside


def _first(error: Exception) -> str:
    """The first sentence of an error of transformers, whose lists of all it knows fill screens."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0][:_LONGEST]


def _is_tied(hf: Any, name: str) -> bool:
    tied = getattr(hf, "_tied_weights_keys", None) or {}
    return bool(hf.config.get_text_config().tie_word_embeddings) and name in set(tied)


def _quiet() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
