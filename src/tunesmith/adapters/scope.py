"""Training the base's own parameters: all of them, or a part. No base is kept, so there is no reference policy.

Both follow ``types.Adapter``. Names are those of the model; a tied weight trains once, under its first name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from tunesmith.adapters import parameters
from tunesmith.adapters.targets import input_embedding, output_head
from tunesmith.errors import RecipeError
from tunesmith.recipe.adapters import PARTIAL_CHOICES, FullSection, PartialSection
from tunesmith.types import NoBase, ParamGroup


class _Trained:
    """The chosen parameters of one model, and what both scopes do with them."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.name = ""
        self.model: nn.Module | None = None
        self.chosen: dict[str, nn.Parameter] = {}

    def start(self, model: nn.Module, chosen: dict[str, nn.Parameter], name: str) -> None:
        if self.model is not None:
            raise RuntimeError(f"this scope is attached already, as `{self.name}`")
        model.requires_grad_(False)
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        self.model, self.chosen, self.name = model, chosen, name

    def groups(self) -> list[ParamGroup]:
        if self.model is None:
            raise RuntimeError("the scope is not attached to a model")
        return parameters.decay_groups(self.model, self.chosen)

    def active(self, names: Collection[str]) -> AbstractContextManager[None]:
        if tuple(names) != (self.name,):
            raise NoBase(
                f"{self.scope} fine-tuning changes the base itself and keeps no copy: only `{self.name}` can be active"
            )
        return nullcontext()

    def state(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.chosen.items()}


class FullScope:
    """Every parameter trains, tied weights once.

    Args:
        section: holds no options.
        seed: unused, nothing is drawn.
    """

    virtual_tokens = 0

    def __init__(self, section: FullSection, seed: int = 0) -> None:
        self.section = section
        self.notes: list[str] = []
        self._trained = _Trained("full")

    def attach(self, model: nn.Module, name: str = "default") -> None:
        """Let every parameter train. Raises RecipeError where some are quantised."""
        chosen = parameters.own_parameters(model)
        parameters.require_trainable(chosen, "adapter")
        self._trained.start(model, chosen, name)

    def groups(self) -> list[ParamGroup]:
        """Matrices with decay; norms, biases and embeddings without."""
        return self._trained.groups()

    def active(self, names: Collection[str]) -> AbstractContextManager[None]:
        """Raise NoBase for anything but the name given to ``attach``."""
        return self._trained.active(names)

    def state(self) -> dict[str, Tensor]:
        """The parameters by name, sharing memory with the model."""
        return self._trained.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``. Raises RunError, with nothing changed, where names, shapes or dtypes differ."""
        parameters.load_tensors(self.state(), state)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A marker in place of PEFT's configuration, and the tensors by their names in the model."""
        return {"tunesmith_scope": "full"}, self.state()

    def merge(self, model: nn.Module) -> None:
        """Do nothing: the model holds its trained weights already."""


class PartialScope:
    """Some of the base's parameters train; the section's choices add up.

    Args:
        section: layers from either end or every n-th, globs, norms, biases, embeddings, head.
        seed: unused, nothing is drawn.
    """

    virtual_tokens = 0

    def __init__(self, section: PartialSection, seed: int = 0) -> None:
        self.section = section
        self.notes: list[str] = []
        """Sentences to say aloud about what was attached."""
        self._trained = _Trained("partial")

    def attach(self, model: nn.Module, name: str = "default") -> None:
        """Let the chosen parameters train and freeze the rest.

        Raises:
            RecipeError: a choice matches nothing (lists what exists), or nothing was chosen. The model is unchanged.
        """
        ids = self._ids(model)
        if not ids:
            raise RecipeError(
                "no parameter is chosen to train",
                where="adapter",
                hint=f"set one of {PARTIAL_CHOICES}",
            )
        chosen = {key: parameter for key, parameter in parameters.own_parameters(model).items() if id(parameter) in ids}
        parameters.require_trainable(chosen, "adapter")
        self._trained.start(model, chosen, name)
        self.notes = _tied_notes(model, chosen)

    def groups(self) -> list[ParamGroup]:
        """Matrices with decay; norms, biases and embeddings without."""
        return self._trained.groups()

    def active(self, names: Collection[str]) -> AbstractContextManager[None]:
        """Raise NoBase for anything but the name given to ``attach``."""
        return self._trained.active(names)

    def state(self) -> dict[str, Tensor]:
        """The trained parameters by name, sharing memory with the model."""
        return self._trained.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``. Raises RunError, with nothing changed, where names, shapes or dtypes differ."""
        parameters.load_tensors(self.state(), state)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A marker in place of PEFT's configuration, and the trained tensors by their names in the model."""
        return {"tunesmith_scope": "partial", "parameters": list(self._trained.chosen)}, self.state()

    def merge(self, model: nn.Module) -> None:
        """Do nothing: the model holds its trained weights already."""

    def _ids(self, model: nn.Module) -> set[int]:
        """Ids of the chosen parameters, every choice checked to match something."""
        section = self.section
        chosen = list(parameters.match_parameters(model, section.patterns, "adapter.patterns").values())
        chosen += _layers(model, section)
        if section.norms:
            chosen += _found(model, _norms(model), "norms", "normalisation weight")
        if section.biases:
            biases = [part for key, part in parameters.own_names(model).items() if key.rpartition(".")[2] == "bias"]
            chosen += _found(model, biases, "biases", "bias")
        if section.embeddings:
            chosen += _found(model, _of(input_embedding(model)), "embeddings", "input embedding")
        if section.head:
            chosen += _found(model, _of(output_head(model)), "head", "output head")
        return {id(parameter) for parameter in chosen}


def layer_names(model: nn.Module) -> list[str]:
    """Names of the transformer layers in order: the items of the longest outermost ``nn.ModuleList``."""
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if not outer:
        return []
    longest = max(outer, key=lambda name: lists[name])
    return [f"{longest}.{index}" for index in range(lists[longest])]


def _layers(model: nn.Module, section: PartialSection) -> list[nn.Parameter]:
    layers = layer_names(model)
    prefixes = tuple(f"{layers[index]}." for index in section.chosen_layers(len(layers)))
    return [parameter for name, parameter in parameters.own_names(model).items() if name.startswith(prefixes)]


def _norms(model: nn.Module) -> list[nn.Parameter]:
    return [
        parameter
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    ]


def _of(module: nn.Module | None) -> list[nn.Parameter]:
    return list(module.parameters()) if module is not None else []


def _found(model: nn.Module, chosen: list[nn.Parameter], key: str, what: str) -> list[nn.Parameter]:
    if not chosen:
        raise RecipeError(
            f"the model has no {what} to train",
            where=f"adapter.{key}",
            hint=f"parameters here: {parameters.list_parameters(model)}",
        )
    return chosen


def _tied_notes(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> list[str]:
    notes = []
    for parameter in chosen.values():
        tied = parameters.aliases(model, parameter)
        if len(tied) > 1:
            notes.append(
                f"{' and '.join(f'`{name}`' for name in tied)} are one tied weight: training one trains the other"
            )
    return notes
