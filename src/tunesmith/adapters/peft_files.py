"""PEFT's adapter folders, written and read: ``adapter_config.json`` and ``adapter_model.safetensors``.

LoRA, DoRA and GraLoRA are read (``peft_methods``). Whatever else a folder says (another method, a variant, weights in pickle) is refused by name:
an adapter that loads must give the logits it gave where it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tunesmith.adapters import lora_layer, parameters, peft_patterns, targets
from tunesmith.adapters.added import AddedAdapter
from tunesmith.adapters.linear import LinearAdapter
from tunesmith.adapters.peft_layout import PREFIX, ROWS_KEY
from tunesmith.adapters.peft_methods import METHODS, PeftMethod
from tunesmith.adapters.trained_tokens import SUFFIX, require_rows, token_matrices
from tunesmith.errors import ModelError, RecipeError
from tunesmith.files import write_bytes, write_json
from tunesmith.foreign import read_object
from tunesmith.models import token_rows
from tunesmith.models.links import refuse_links_out
from tunesmith.recipe.low_rank import LowRankSection

CONFIGURATION = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PLAIN_STARTS = (True, False, None, "gaussian", "eva")
"""Starts that leave the base weights alone; a loaded adapter overwrites A and B."""
_OBEYED = frozenset(["peft_type", "init_lora_weights", "trainable_token_indices"])
_WITHOUT_EFFECT = frozenset(
    [
        "task_type",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "auto_mapping",
        "peft_version",
        "runtime_config",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "ensure_weight_tying",
        "bias",
        "fan_in_fan_out",
        "megatron_core",
        "megatron_config",
        "qalora_group_size",
        "loftq_config",
        "eva_config",
    ]
)
"""Keys that only say which modules there are, which the tensors' names say again, or that matter while training."""

_SAVE_AGAIN = "the file is torn or written by hand: save the adapter again with PEFT (`save_pretrained`)"
_MERGE_THERE = "merge it with PEFT and load the merged model"


@dataclass(frozen=True)
class AdapterSettings:
    """A read adapter's settings.

    ``method`` is PEFT's; ``section`` has them as a recipe would; ``ranks`` has the truth per layer, (rank, alpha), ``rows`` that per embedding
    or head, the token ids whose rows train; ``base`` is the model that the folder names, or empty; ``source`` is the file
    of the tensors, for messages.
    """

    section: LowRankSection
    ranks: dict[str, tuple[int, float]]
    base: str = ""
    source: str = WEIGHTS
    rows: dict[str, tuple[int, ...]] = field(default_factory=dict)
    method: PeftMethod = METHODS["LORA"]


def write_adapter(folder: Path, adapter: AddedAdapter, base_name: str) -> list[str]:
    """Write an attached adapter as PEFT reads it.

    Returns:
        Sentences on what PEFT cannot express, for the user.
    """
    configuration, tensors = adapter.export()
    configuration["base_model_name_or_path"] = base_name
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    write_bytes(folder / WEIGHTS, save(plain, metadata={"format": "pt"}))
    write_json(folder / CONFIGURATION, configuration)
    return adapter.export_notes()


def read_adapter(folder: Path) -> tuple[AdapterSettings, dict[str, Tensor]]:
    """Read an adapter folder, ours or PEFT's.

    Returns:
        Settings, and the tensors by the names of the adapter's ``state``: ``LAYER.lora_A.weight`` and the like,
        ``MATRIX.token_rows``, and fully trained parameters by their names in the model, tied ones once per name.

    Raises:
        ModelError: no adapter there, torn files, pickled weights, or another method.
    """
    refuse_links_out(folder)
    configuration = _read_configuration(folder / CONFIGURATION)
    where = str(folder / CONFIGURATION)
    method = _method(configuration, where)
    state, layers = _sort(_read_tensors(folder), method, configuration, str(folder / WEIGHTS))
    beside = [key for key in state if not key.endswith((*method.endings(configuration), SUFFIX))]
    rows = _rows(configuration.get("trainable_token_indices"), state, where)
    try:
        section = method.section_type(
            rank=configuration.get("r", 8),
            alpha=configuration.get(method.alpha, 8),
            dropout=configuration.get(method.dropout) or 0.0,
            targets=sorted(layers),
            also_train=beside,
            train_tokens=sorted({token for ids in rows.values() for token in ids}) or "none",
            **method.section(configuration),
        )
    except RecipeError as error:
        raise ModelError(
            f"a value of the adapter cannot be used: {error.what}", where=where, hint=_SAVE_AGAIN
        ) from None
    alphas = _alphas(configuration.get("alpha_pattern"), layers, section.alpha, where)
    ranks = {layer: (rank, alphas[layer]) for layer, rank in layers.items()}
    base = str(configuration.get("base_model_name_or_path") or "")
    return AdapterSettings(section, ranks, base, str(folder / WEIGHTS), rows, method), state


def attach_read(
    model: nn.Module, settings: AdapterSettings, state: Mapping[str, Tensor], name: str = "default"
) -> LinearAdapter:
    """Attach a read adapter to a model; with it active the logits are those of PEFT.

    Raises:
        ModelError: the adapter belongs to another model (layers or shapes differ), or unties weights that are tied here.
    """
    layers = targets.linear_layers(model)
    for layer, (rank, _) in settings.ranks.items():
        if layer not in layers:
            raise ModelError(
                f"the adapter has a part for `{layer}`, which is no adaptable layer of this model",
                where=settings.source,
                hint=f"it was trained on `{settings.base or 'another model'}`; output heads cannot carry LoRA here",
            )
        shapes = settings.method.shapes(settings.section, rank, *lora_layer.widths(layers[layer]))
        for ending, shape in shapes.items():
            _check_shape(settings, layer + ending, state, shape)
    beside = _untied(model, settings, state)
    rows, values = _fitting_rows(model, settings, state)
    state = {**state, **values}
    section = settings.section.model_copy(update={"also_train": list(beside)})
    adapter = settings.method.build(section, settings.ranks, rows)
    try:
        adapter.attach(model, name)
    except RecipeError as error:
        raise ModelError(f"the adapter does not fit: {error.what}", where=settings.source, hint=error.hint) from None
    fitted = {}
    for key, own in adapter.state().items():
        given = beside[key] if key in beside else state[key]
        if key in beside and given.dtype != own.dtype:
            adapter.notes.append(f"`{key}` is stored as {given.dtype} and was cast to the model's {own.dtype}")
        fitted[key] = given.to(own.dtype)
    adapter.load_state(fitted)
    return adapter


def _read_configuration(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except FileNotFoundError:
        raise ModelError(
            "this folder holds no adapter", where=str(path), hint=f"an adapter has {CONFIGURATION} and {WEIGHTS}"
        ) from None


def _method(configuration: Mapping[str, Any], where: str) -> PeftMethod:
    """The folder's method; refuses others, and variants that are not known."""
    method = METHODS.get(str(configuration.get("peft_type")))
    if method is None:
        raise ModelError(
            f"the adapter's method is `{configuration.get('peft_type')}`, only {', '.join(f'`{name}`' for name in METHODS)} are read",
            where=f"{where} [peft_type]",
            hint=_MERGE_THERE,
        )
    start = configuration.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise ModelError(
            f"the adapter was started with `{start}`, which may change the base weights themselves",
            where=f"{where} [init_lora_weights]",
            hint="convert it with PEFT (`save_pretrained(..., path_initial_model_for_weight_conversion=...)`), or merge it there",
        )
    for key, value in configuration.items():
        if key in _OBEYED | method.keys or key in _WITHOUT_EFFECT or value in (None, False, 0, "", [], {}):
            continue
        raise ModelError(
            f"the adapter uses `{key}`, which Tunesmith's {method.title} does not have",
            where=f"{where} [{key}]",
            hint=_MERGE_THERE,
        )
    return method


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / "adapter_model.bin").exists():
            raise ModelError(
                "the adapter's weights are pickled, and reading a pickle can run code",
                where=str(folder / "adapter_model.bin"),
                hint=f"save it again with PEFT (`save_pretrained`), which writes {WEIGHTS}",
            )
        raise ModelError("the adapter has no weights", where=str(path), hint="copy the whole folder again")
    try:
        return dict(load_file(path))
    except Exception as error:  # safetensors, and torch for types that it does not have
        raise ModelError(
            f"the adapter's weights cannot be read: {error}", where=str(path), hint="the file is torn: copy it again"
        ) from None


def _sort(
    tensors: Mapping[str, Tensor], method: PeftMethod, configuration: Mapping[str, Any], where: str
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Strip PEFT's prefix; find the layers and their ranks."""
    state: dict[str, Tensor] = {}
    layers: dict[str, int] = {}
    endings = method.endings(configuration)
    dimensions = {**method.dimensions, SUFFIX: 2}
    for full, tensor in tensors.items():
        key = full.removeprefix(PREFIX).replace(ROWS_KEY, SUFFIX).replace(".base_layer.", ".")
        ending = next((item for item in dimensions if key.endswith(item)), None)
        if len(key) > peft_patterns.MOST_NAME or (
            ending is not None and (tensor.dim() != dimensions[ending] or not tensor.numel())
        ):
            raise ModelError(
                f"`{key[:80]}` of shape {tuple(tensor.shape)} is no part of a {method.title} adapter",
                where=where,
                hint=_SAVE_AGAIN,
            )
        if ending == endings[0]:
            layers[key.removesuffix(ending)] = method.rank(tensor)
        elif method.mark in key and ending not in endings:
            raise ModelError(
                f"the adapter holds `{full}`, which {method.title} on linear layers does not have",
                where=where,
                hint=_MERGE_THERE,
            )
        state[key] = tensor
    if not layers:
        raise ModelError(
            f"the adapter holds no {method.title} tensors",
            where=where,
            hint="a folder of whole weights is a model: give it a config.json",
        )
    named = layers.keys() | {key.removesuffix(end) for key in state for end in endings if key.endswith(end)}
    torn = sorted(layer for layer in named for ending in endings if layer + ending not in state)
    if torn:
        raise ModelError(
            f"`{torn[0]}` has only some of {', '.join(endings)}",
            where=where,
            hint="the file is incomplete: save it again",
        )
    return state, layers


def _rows(given: Any, state: Mapping[str, Tensor], where: str) -> dict[str, tuple[int, ...]]:
    """Matrix -> token ids, from PEFT's list (for the one matrix that has rows) or mapping of name endings to lists."""
    where = f"{where} [trainable_token_indices]"
    owners = [key.removesuffix(SUFFIX) for key in state if key.endswith(SUFFIX)]
    rows: dict[str, tuple[int, ...]] = {}
    for owner in owners:
        ids = given
        if isinstance(given, dict):
            ids = next((given[end] for end in given if owner.endswith(end)), None)
        whole = isinstance(ids, list) and all(type(token) is int and token >= 0 for token in ids)
        if not whole or len(set(ids)) != len(ids) or len(ids) != len(state[owner + SUFFIX]):
            raise ModelError(
                f"the rows of `{owner}` do not fit the token ids that the adapter names for it",
                where=where,
                hint=_SAVE_AGAIN,
            )
        rows[owner] = tuple(ids)
    if given and not owners:
        raise ModelError("the adapter names tokens, but holds no rows for them", where=where, hint=_SAVE_AGAIN)
    return rows


def _fitting_rows(
    model: nn.Module, settings: AdapterSettings, state: Mapping[str, Tensor]
) -> tuple[dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """Token rows by the matrices of this model, a tied one once; refuses what the model cannot have."""
    matrices = token_matrices(model)
    tied = {name for name, module in model.named_modules() if any(module in layers[1:] for layers in matrices.values())}
    hint = f"it was trained on `{settings.base or 'another model'}`"
    values: dict[str, Tensor] = {}
    for owner, ids in settings.rows.items():
        if owner not in matrices:
            why = (
                "apart from the embedding; this model ties them"
                if owner in tied
                else "and this model has no such matrix"
            )
            raise ModelError(
                f"the adapter trains rows of `{owner}` {why}", where=settings.source, hint=f"{hint}; {_MERGE_THERE}"
            )
        width = token_rows.width(matrices[owner][0])
        key = f"{owner}{SUFFIX}"
        _check_shape(settings, key, state, (len(ids), width))
        values[key] = state[key].float()
    try:
        require_rows(matrices, settings.rows)
    except RecipeError as error:
        raise ModelError(f"the adapter does not fit: {error.what}", where=settings.source, hint=hint) from None
    return settings.rows, values


def _alphas(patterns: Any, layers: Mapping[str, int], default: float, where: str) -> dict[str, float]:
    """The alpha of each layer."""
    try:
        known = peft_patterns.compiled(patterns or {})
        if len(known) * len(layers) > peft_patterns.MOST_TRIES:
            raise peft_patterns.DangerousPattern(f"it has {len(known):,} patterns for {len(layers):,} layers")
    except peft_patterns.DangerousPattern as error:
        raise ModelError(
            f"the alphas of the adapter's layers cannot be read: {error}",
            where=f"{where} [alpha_pattern]",
            hint="name the layers in full there, or merge the adapter with PEFT and load the merged model",
        ) from None
    return {layer: peft_patterns.first_match(known, layer, default) for layer in layers}


def _check_shape(settings: AdapterSettings, key: str, state: Mapping[str, Tensor], expected: tuple[int, ...]) -> None:
    if tuple(state[key].shape) != expected:
        raise ModelError(
            f"`{key}` has shape {tuple(state[key].shape)}, this model needs {expected}",
            where=settings.source,
            hint="the adapter belongs to another model",
        )


def _untied(model: nn.Module, settings: AdapterSettings, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fully trained parameters by stable name, each once; refuses copies of a tied weight that differ."""
    names = parameters.own_names(model)
    beside: dict[str, Tensor] = {}
    for key in settings.section.also_train:
        if key not in names:
            raise ModelError(
                f"the adapter holds `{key}`, which is no parameter of this model",
                where=settings.source,
                hint=f"it was trained on `{settings.base or 'another model'}`",
            )
        _check_shape(settings, key, state, tuple(names[key].shape))
        tied = parameters.aliases(model, names[key])
        if any(alias not in state or not torch.equal(state[alias], state[key]) for alias in tied):
            raise ModelError(
                f"the adapter trains `{key}` apart from {', '.join(alias for alias in tied if alias != key)}; this model ties them",
                where=settings.source,
                hint="merge it with PEFT, or train with `ensure_weight_tying=True`",
            )
        beside[tied[0]] = state[key]
    return beside
