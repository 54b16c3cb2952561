"""Adapter folders of any method: the two files, and what lies in them beside the method's own parts.

A method has a subclass of ``StoredAdapter`` that knows its parts; token rows and fully trained parameters are the same for all.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tunesmith.adapters import parameters
from tunesmith.adapters.added import AddedAdapter
from tunesmith.adapters.trained_tokens import SUFFIX, require_rows, token_matrices
from tunesmith.errors import ModelError, RecipeError
from tunesmith.foreign import read_object
from tunesmith.models import token_rows
from tunesmith.recipe.low_rank import AddedSection

CONFIGURATION = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

BASE_KEY = "base_sha256"
"""Key in the header of the file of the tensors: PEFT reads past it."""
PACKING_KEY = "quantise"
"""Another: how the base held its linear layers, where they were packed."""
_PACKINGS = ("nf4", "int8", "fp8")

SAVE_AGAIN = "the file is torn or written by hand: save the adapter again with the program that wrote it"
MERGE_THERE = "merge it with PEFT and load the merged model"

Rows = Mapping[str, tuple[int, ...]]
"""Embedding or head -> the token ids whose rows train."""


@dataclass(frozen=True, kw_only=True)
class StoredAdapter(ABC):
    """A read adapter's settings.

    ``section`` has them as a recipe would; ``rows`` per embedding or head the token ids whose rows train; ``base`` is the model
    that the folder names, or empty, ``base_sha256`` the hash of its weights, or empty; ``source`` is the file of the tensors, for
    messages.
    """

    section: AddedSection
    base: str = ""
    base_sha256: str = ""
    source: str = WEIGHTS
    rows: Rows = field(default_factory=dict)

    @abstractmethod
    def require_fit(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Raise ModelError where a part has no place in this model, or another shape than it needs."""

    @abstractmethod
    def build(self, section: AddedSection, rows: Rows) -> AddedAdapter:
        """The adapter, to be attached and loaded."""


def attach_stored(model: nn.Module, settings: StoredAdapter, state: Mapping[str, Tensor], name: str) -> AddedAdapter:
    """Attach a read adapter to a model; with it active the logits are those of where it was trained.

    Raises:
        ModelError: the adapter belongs to another model (places or shapes differ), or unties weights that are tied here.
    """
    settings.require_fit(model, state)
    beside = _untied(model, settings, state)
    rows, values = _fitting_rows(model, settings, state)
    state = {**state, **values}
    section = settings.section.model_copy(update={"also_train": list(beside)})
    adapter = settings.build(section, rows)
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


def read_configuration(path: Path) -> dict[str, Any]:
    """The configuration of an adapter folder. Raises ModelError where there is none."""
    try:
        return read_object(path)
    except FileNotFoundError:
        raise ModelError(
            "this folder holds no adapter", where=str(path), hint=f"an adapter has {CONFIGURATION} and {WEIGHTS}"
        ) from None


def read_adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter folder as they are named there. Raises ModelError: none, torn, or pickled."""
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


def to_bytes(tensors: Mapping[str, Tensor], base_sha256: str, quantise: str = "none") -> bytes:
    """The file of an adapter's tensors, alike in every process: safetensors itself orders several facts at random.

    Args:
        tensors: contiguous, on the CPU.
        base_sha256: hash of the base's weights, or empty.
        quantise: how the base held its linear layers.
    """
    raw: bytes = save(dict(tensors), metadata={"format": "pt"})
    said = {BASE_KEY: base_sha256, PACKING_KEY: "" if quantise == "none" else quantise}
    said = {key: value for key, value in said.items() if value}
    if not said:
        return raw
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    header["__metadata__"].update(said)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return len(text).to_bytes(8, "little") + text + raw[end:]


def read_base_sha256(folder: Path) -> str:
    """Hash of the weights that an adapter was trained on, from the header of its file; empty where another program wrote it."""
    return _said(folder, BASE_KEY)


def read_packing(folder: Path) -> str:
    """How the base held its linear layers when an adapter was trained on it: ``nf4``, ``int8``, ``fp8``, or ``none``."""
    said = _said(folder, PACKING_KEY)
    return said if said in _PACKINGS else "none"


def _said(folder: Path, key: str) -> str:
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as opened:
            return str((opened.metadata() or {}).get(key, ""))
    except Exception:  # torn or missing: whoever reads the tensors says so
        return ""


def read_rows(given: Any, state: Mapping[str, Tensor], where: str) -> dict[str, tuple[int, ...]]:
    """Matrix -> token ids, from a list (for the one matrix that has rows) or a mapping of name endings to lists.

    Args:
        given: the configuration's value.
        state: the tensors; ``MATRIX.token_rows`` are rows.
        where: file and key, for messages.
    """
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
                hint=SAVE_AGAIN,
            )
        rows[owner] = tuple(ids)
    if given and not owners:
        raise ModelError("the adapter names tokens, but holds no rows for them", where=where, hint=SAVE_AGAIN)
    return rows


def _fitting_rows(
    model: nn.Module, settings: StoredAdapter, state: Mapping[str, Tensor]
) -> tuple[Rows, dict[str, Tensor]]:
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
                f"the adapter trains rows of `{owner}` {why}", where=settings.source, hint=f"{hint}; {MERGE_THERE}"
            )
        width = token_rows.width(matrices[owner][0])
        key = f"{owner}{SUFFIX}"
        check_shape(settings, key, state, (len(ids), width))
        values[key] = state[key].float()
    try:
        require_rows(matrices, settings.rows)
    except RecipeError as error:
        raise ModelError(f"the adapter does not fit: {error.what}", where=settings.source, hint=hint) from None
    return settings.rows, values


def check_shape(settings: StoredAdapter, key: str, state: Mapping[str, Tensor], expected: tuple[int, ...]) -> None:
    """Raise ModelError where a tensor has not the shape that the model needs."""
    if tuple(state[key].shape) != expected:
        raise ModelError(
            f"`{key}` has shape {tuple(state[key].shape)}, this model needs {expected}",
            where=settings.source,
            hint="the adapter belongs to another model",
        )


def _untied(model: nn.Module, settings: StoredAdapter, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
        check_shape(settings, key, state, tuple(names[key].shape))
        tied = parameters.aliases(model, names[key])
        if any(alias not in state or not torch.equal(state[alias], state[key]) for alias in tied):
            raise ModelError(
                f"the adapter trains `{key}` apart from {', '.join(alias for alias in tied if alias != key)}; this model ties them",
                where=settings.source,
                hint="merge it with PEFT, or train with `ensure_weight_tying=True`",
            )
        beside[tied[0]] = state[key]
    return beside
