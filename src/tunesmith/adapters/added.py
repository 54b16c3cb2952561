"""Adapters that add parts to a frozen base: what LoRA, its kin, bottlenecks and prompts have in common.

A model may carry several adapters by name. ``attach`` makes the new one the only active and the only trained one;
``active`` switches. Parameters of the base that train beside it (``also_train``) are swapped with the adapter: their
values from before stay on the CPU, and with the adapter off the model holds them again, so ``active(())`` is the exact
base, the free reference policy. Rows of single tokens (``train_tokens``) are swapped in the same way.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

from torch import Tensor, nn

from tunesmith.adapters import parameters, sites
from tunesmith.adapters.peft_layout import Layout
from tunesmith.adapters.sites import Part
from tunesmith.adapters.trained_tokens import TrainedTokens, chosen_rows, clash
from tunesmith.models import token_rows
from tunesmith.recipe.low_rank import AddedSection
from tunesmith.types import CannotMerge, ParamGroup

_REGISTRY = "tunesmith_adapters"
_ACTIVE = "tunesmith_active"


class AddedAdapter(ABC):
    """Parts at chosen sites of a model, and what trains beside them. Follows ``types.Adapter``.

    Args:
        section: the recipe's.
        seed: with a site's name it fixes that site's start, whatever the order of sites.
        rows: embedding or head -> token ids, in place of the section's ``train_tokens``; for adapters read from files.
    """

    virtual_tokens = 0

    def __init__(self, section: AddedSection, seed: int, rows: Mapping[str, Sequence[int]] | None = None) -> None:
        self.section: Any = section
        self.seed = seed
        self.name = ""
        self.notes: list[str] = []
        """Sentences to say aloud about what was attached."""
        self._rows = dict(rows) if rows is not None else None
        self._model: nn.Module | None = None
        self._sites: dict[str, nn.Module] = {}
        self._beside: dict[str, nn.Parameter] = {}
        self._originals: dict[str, Tensor] = {}
        self._resting: dict[str, Tensor] = {}
        self._tokens: TrainedTokens
        self._is_active = False
        self._trains = False

    @abstractmethod
    def choose_sites(self, model: nn.Module) -> dict[str, nn.Module]:
        """Modules that get a part, by name in module order. Raises RecipeError where a choice fits nothing."""

    @abstractmethod
    def new_part(self, name: str, site: nn.Module) -> Part:
        """The part of one site at its start, where it changes nothing."""

    @abstractmethod
    def layout(self) -> Layout:
        """Configuration and tensors in PEFT's layout where PEFT has the method, and sentences on what PEFT cannot express."""

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The layout's configuration and tensors."""
        laid_out = self.layout()
        return laid_out.configuration, laid_out.tensors

    def require_apart(self, chosen: Mapping[str, nn.Module], beside: Mapping[str, nn.Parameter]) -> None:
        """Raise RecipeError where a parameter beside the parts belongs to them; none does where they are all new."""
        return

    def require_mergeable(self) -> None:
        """Raise CannotMerge where the parts are no change of weights."""
        raise CannotMerge(f"{self.section.type} adds computation that no weight of the base can hold")

    def fold(self, site: nn.Module, part: Part) -> None:
        """Put one part's change into the base's weights."""
        raise AssertionError("merge asks `require_mergeable` first")

    def attach(self, model: nn.Module, name: str = "default") -> None:
        """Add the adapter to ``model`` in place and freeze everything else; the model's other adapters rest.

        Raises:
            RecipeError: a pattern matches nothing, asks for a weight that the adapter is on, or a token has no row. The
                model is unchanged.
        """
        if self._model is not None:
            raise RuntimeError(f"this adapter is attached already, as `{self.name}`")
        if name in adapters_of(model):
            raise ValueError(f"the model has an adapter named `{name}` already")
        if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
            raise ValueError(f"`{name}` cannot name an adapter: use letters, digits and underscores")
        chosen = self.choose_sites(model)
        beside = parameters.match_parameters(model, self.section.also_train, "adapter.also_train")
        self.require_apart(chosen, beside)
        rows = self._rows if self._rows is not None else chosen_rows(model, self.section.train_tokens, beside)
        _switch(model, ())
        for other in adapters_of(model).values():
            other._trains = False
        model.requires_grad_(False)
        for site_name, site in chosen.items():
            sites.add_part(site, name, self.new_part(site_name, site))
        for parameter in beside.values():
            parameter.requires_grad_(True)
        self.name, self._model, self._sites, self._beside = name, model, chosen, beside
        self._originals = {key: part.detach().to("cpu", copy=True) for key, part in beside.items()}
        self._tokens = TrainedTokens(model, name, rows)
        self._trains, self._is_active = True, True
        adapters_of(model)[name] = self
        _switch(model, (name,))

    def groups(self) -> list[ParamGroup]:
        """Matrices of the parts with decay; vectors, embeddings and token rows without. Names are those of ``state``."""
        trained = {**self.trained_parts(), **self._beside}
        return parameters.decay_groups(self.model, trained, prefix=f"{self.section.type} ") + self._tokens.groups()

    def active(self, names: Collection[str]) -> AbstractContextManager[None]:
        """Within the context the model has exactly these adapters, in this order; ``()`` is the untouched base.

        Raises:
            ValueError: an unknown name, or two adapters that have values of their own for one parameter of the base. Rows of
                adapters that are frozen may meet: their changes of the row are summed.
        """
        if isinstance(names, str):
            raise TypeError("`active` takes a collection of names, such as ('default',)")
        return _activated(self.model, tuple(names))

    def state(self) -> dict[str, Tensor]:
        """All numbers of the parts as ``SITE.ENDING``, ``MATRIX.token_rows``, and the parameters trained beside by their
        own names.

        The tensors share memory with the model.
        """
        state = {key: part.detach() for key, part in self._named_parts().items()}
        for key, parameter in self._beside.items():
            state[key] = self._resting[key] if key in self._resting else parameter.detach()
        return state | self._tokens.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``. Raises RunError, with nothing changed, where names, shapes or dtypes differ."""
        parameters.load_tensors(self.state(), state)
        if self._is_active:
            self._tokens.write()

    def merge(self, model: nn.Module) -> None:
        """Fold the parts into the weights in fp32, cast back, and leave a plain model that keeps what trained beside, rows too.

        The model's other adapters stay; this one is detached.

        Raises:
            CannotMerge: the parts are no change of weights, a weight is quantised, or shared with another layer that the
                update does not belong to; nothing is changed.
        """
        if model is not self.model:
            raise CannotMerge("the adapter is attached to another model")
        self.require_mergeable()
        for name, other in adapters_of(model).items():
            if other is not self and clash(self._claims(), other._claims()):
                raise CannotMerge(
                    f"adapter `{name}` keeps base values of parameters that `{self.name}` trained: detach it first"
                )
        still_active = [name for name in active_names(model) if name != self.name]
        _switch(model, (self.name,))
        self._tokens.write()
        for site in self._sites.values():
            self.fold(site, self.part_at(site))
            for part in sites.parts(site).values():
                cast(Part, part).rebase(site)
        self._forget()
        _switch(model, tuple(still_active))

    def detach(self) -> None:
        """Take the adapter off; the model is again what it was before ``attach``, frozen."""
        model = self.model
        still_active = [name for name in active_names(model) if name != self.name]
        _switch(model, tuple(still_active))
        self._forget()

    def freeze(self) -> None:
        """Train nothing more: the adapter is used as it is."""
        self._trains = False
        for parameter in itertools.chain(
            self.trained_parts().values(), self._beside.values(), self._tokens.parameters()
        ):
            parameter.requires_grad_(False)

    def why_alone(self) -> str:
        """Why its requests cannot share a pass with those of other adapters, as the end of a sentence; empty where they can."""
        if self.virtual_tokens:
            return "puts tokens in front of every document of a batch"
        beside = next(iter(self._beside), None)
        return "" if beside is None else f"has a whole parameter of the base of its own (`{beside}`)"

    @property
    def model(self) -> nn.Module:
        """The model it is attached to."""
        if self._model is None:
            raise RuntimeError("the adapter is not attached to a model")
        return self._model

    def carriers(self) -> dict[str, nn.Module]:
        """The modules that carry its parts, by name."""
        return dict(self._sites)

    def token_layers(self) -> list[nn.Module]:
        """The embeddings and heads that have rows of its own."""
        return self._tokens.all_layers()

    def beside_changes(self) -> tuple[dict[str, Tensor], dict[str, tuple[tuple[int, ...], Tensor]]]:
        """What it changes of the base beside its parts, fp32: whole parameters by name, and matrix -> token ids and rows."""
        _ = self.model
        whole = {
            key: (self._resting.get(key, part.data).float() - self._originals[key].to(part.device).float()).detach()
            for key, part in self._beside.items()
        }
        return whole, self._tokens.changes()

    def part_at(self, site: nn.Module) -> Part:
        """The adapter's own part at a site."""
        return cast(Part, sites.parts(site)[self.name])

    def trained_parts(self) -> dict[str, nn.Parameter]:
        """The parts' parameters that train, by their names in ``state``."""
        _ = self.model
        return {
            f"{name}.{ending}": parameter
            for name, site in self._sites.items()
            for ending, parameter in self.part_at(site).trained().items()
        }

    def _named_parts(self) -> dict[str, Tensor]:
        _ = self.model
        return {
            f"{name}.{ending}": tensor
            for name, site in self._sites.items()
            for ending, tensor in self.part_at(site).named().items()
        }

    def _forget(self) -> None:
        for site in self._sites.values():
            sites.remove_part(site, self.name)
        self._tokens.remove()
        del adapters_of(self.model)[self.name]
        for parameter in self._beside.values():
            parameter.requires_grad_(False)
        self._model, self._sites, self._beside, self._originals, self._resting = None, {}, {}, {}, {}
        self._is_active = False

    def _claims(self) -> dict[str, Collection[int] | None]:
        """Parameters of the base that this adapter trains, whole (None) or some rows."""
        rows: dict[str, Collection[int] | None] = {f"{name}.weight": ids for name, ids in self._tokens.ids.items()}
        return rows | dict.fromkeys(self._beside)

    def _rest(self) -> None:
        """Put the base's own values back; what was trained waits beside."""
        self._tokens.restore()
        for key, parameter in self._beside.items():
            self._resting[key] = parameter.data
            parameter.requires_grad_(False)
            parameter.data = self._originals[key].to(parameter.device)
        self._is_active = False

    def _wake(self) -> None:
        for key, parameter in self._beside.items():
            parameter.data = self._resting.pop(key)
            parameter.requires_grad_(self._trains)
        self._tokens.write()
        self._is_active = True


def adapters_of(model: nn.Module) -> dict[str, AddedAdapter]:
    """The model's adapters by name, in the order they came."""
    registry = getattr(model, _REGISTRY, None)
    if registry is None:
        registry = {}
        setattr(model, _REGISTRY, registry)
    return cast(dict[str, AddedAdapter], registry)


def active_names(model: nn.Module) -> tuple[str, ...]:
    """The adapters that are active, in the order in which they act."""
    return tuple(name for name in getattr(model, _ACTIVE, ()) if name in adapters_of(model))


def activate(model: nn.Module, names: Sequence[str]) -> None:
    """Make exactly these adapters active, in this order, until the next call; as ``AddedAdapter.active`` without a context.

    Raises:
        ValueError: as there.
    """
    _switch(model, tuple(names))


@contextmanager
def _activated(model: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    before = active_names(model)
    _switch(model, names)
    try:
        yield
    finally:
        _switch(model, before)


def _switch(model: nn.Module, names: tuple[str, ...]) -> None:
    """Make exactly these adapters active.

    Whole parameters move by pointer and rows come back bit for bit, so graphs taken before stay valid after switching back.
    """
    adapters = adapters_of(model)
    unknown = [name for name in names if name not in adapters]
    if unknown:
        raise ValueError(f"the model has no adapter `{unknown[0]}`; it has: {', '.join(adapters) or 'none'}")
    wanted = tuple(dict.fromkeys(names))
    for one, other in itertools.combinations(wanted, 2):
        first, second = adapters[one], adapters[other]
        key = clash(first._claims(), second._claims(), rows=first._trains or second._trains)
        if key is not None:
            raise ValueError(f"adapters `{one}` and `{other}` both train `{key}`: only one of them can be active")
    for name, adapter in adapters.items():
        if adapter._is_active and name not in wanted:
            adapter._rest()
    for name in wanted:
        if not adapters[name]._is_active:
            adapters[name]._wake()
    setattr(model, _ACTIVE, wanted)
    for site in {id(item): item for adapter in adapters.values() for item in adapter._sites.values()}.values():
        sites.set_active(site, tuple(name for name in wanted if name in sites.parts(site)))
    for module in {id(layer): layer for item in adapters.values() for layer in item._tokens.all_layers()}.values():
        token_rows.set_active(module, tuple(name for name in wanted if token_rows.has_rows(module, name)))
