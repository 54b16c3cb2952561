"""Low-rank adaptation (Hu et al. 2021) on the linear layers of a model: W + scale · B A, base frozen.

A model may carry several adapters by name. ``attach`` makes the new one the only active and the only trained one;
``active`` switches. Parameters of the base that train beside it (``also_train``) are swapped with the adapter: their
values from before stay on the CPU, and with the adapter off the model holds them again, so ``active(())`` is the exact
base, the free reference policy. Rows of single tokens (``train_tokens``) are swapped in the same way.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from tunesmith.adapters import lora_layer, parameters, peft_layout, targets
from tunesmith.adapters.lora_layer import LoraWeights
from tunesmith.adapters.trained_tokens import TrainedTokens, chosen_rows, clash
from tunesmith.errors import RecipeError
from tunesmith.models import token_rows
from tunesmith.recipe.adapters import LoraSection
from tunesmith.types import CannotMerge, ParamGroup

_REGISTRY = "tunesmith_adapters"


class LoraAdapter:
    """LoRA by a recipe's section. Follows ``types.Adapter``.

    Args:
        section: rank, scale, dropout, targets and what trains beside.
        seed: with a layer's name it fixes that layer's A, whatever the order of layers.
        ranks: layer -> (rank, alpha), in place of the section's targets, rank and alpha; for adapters read from files.
        rows: embedding or head -> token ids, in place of the section's ``train_tokens``; for adapters read from files.
    """

    virtual_tokens = 0

    def __init__(
        self,
        section: LoraSection,
        seed: int,
        ranks: Mapping[str, tuple[int, float]] | None = None,
        rows: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.section = section
        self.seed = seed
        self.name = ""
        self.notes: list[str] = []
        """Sentences to say aloud about what was attached."""
        self._ranks = dict(ranks) if ranks is not None else None
        self._rows = dict(rows) if rows is not None else None
        self._model: nn.Module | None = None
        self._layers: dict[str, nn.Module] = {}
        self._beside: dict[str, nn.Parameter] = {}
        self._originals: dict[str, Tensor] = {}
        self._resting: dict[str, Tensor] = {}
        self._tokens: TrainedTokens
        self._is_active = False
        self._trains = False

    def attach(self, model: nn.Module, name: str = "default") -> None:
        """Add the adapter to ``model`` in place and freeze everything else; the model's other adapters rest.

        Raises:
            RecipeError: a pattern matches nothing, asks for a weight that the adapter is on, or a token has no row. The
                model is unchanged.
        """
        if self._model is not None:
            raise RuntimeError(f"this adapter is attached already, as `{self.name}`")
        if name in _adapters(model):
            raise ValueError(f"the model has an adapter named `{name}` already")
        if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
            raise ValueError(f"`{name}` cannot name an adapter: use letters, digits and underscores")
        ranks = self._ranks
        if ranks is None:
            chosen = targets.resolve(model, self.section.targets)
            ranks = dict.fromkeys(chosen, (self.section.rank, self.section.alpha))
        layers = {layer: model.get_submodule(layer) for layer in ranks}
        beside = parameters.match_parameters(model, self.section.also_train, "adapter.also_train")
        _refuse_overlap(layers, beside)
        rows = self._rows if self._rows is not None else chosen_rows(model, self.section.train_tokens, beside)
        _switch(model, ())
        for other in _adapters(model).values():
            other._trains = False
        model.requires_grad_(False)
        for layer, module in layers.items():
            lora_layer.add_part(module, name, self._new_part(layer, module, *ranks[layer]))
        for parameter in beside.values():
            parameter.requires_grad_(True)
        self.name, self._model, self._layers, self._beside = name, model, layers, beside
        self._originals = {key: part.detach().to("cpu", copy=True) for key, part in beside.items()}
        self._tokens = TrainedTokens(model, name, rows)
        self._trains, self._is_active = True, True
        _adapters(model)[name] = self
        _switch(model, (name,))

    def groups(self) -> list[ParamGroup]:
        """A, B and other matrices with decay; vectors, embeddings and token rows without. Names are those of ``state``."""
        model = self._attached()
        trained = {**self._parts(), **self._beside}
        return parameters.decay_groups(model, trained, prefix="lora ") + self._tokens.groups()

    def active(self, names: Collection[str]) -> AbstractContextManager[None]:
        """Within the context the model has exactly these adapters; ``()`` is the untouched base.

        Raises:
            ValueError: an unknown name, or two adapters that both train the same parameter of the base.
        """
        if isinstance(names, str):
            raise TypeError("`active` takes a collection of names, such as ('default',)")
        return _activated(self._attached(), tuple(names))

    def state(self) -> dict[str, Tensor]:
        """``LAYER.lora_A.weight``, ``LAYER.lora_B.weight`` and ``MATRIX.token_rows`` in fp32, and the parameters trained
        beside by their own names.

        The tensors share memory with the model.
        """
        self._attached()
        state = {key: part.detach() for key, part in self._parts().items()}
        for key, parameter in self._beside.items():
            state[key] = self._resting[key] if key in self._resting else parameter.detach()
        return state | self._tokens.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``. Raises RunError, with nothing changed, where names, shapes or dtypes differ."""
        parameters.load_tensors(self.state(), state)
        if self._is_active:
            self._tokens.write()

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """PEFT's configuration and tensors; what PEFT has no word for is told by ``export_notes``."""
        layout = self._layout()
        return layout.configuration, layout.tensors

    def export_notes(self) -> list[str]:
        """Sentences on what PEFT can load but not switch off."""
        return self._layout().notes

    def merge(self, model: nn.Module) -> None:
        """Fold B A into the weights in fp32, cast back, and leave a plain model that keeps what trained beside, rows too.

        The model's other adapters stay; this one is detached.

        Raises:
            CannotMerge: a weight is quantised, or shared with another layer that the update does not belong to; nothing is changed.
        """
        if model is not self._attached():
            raise CannotMerge("the adapter is attached to another model")
        names = parameters.own_names(model)
        for layer, module in self._layers.items():
            weight = module.weight
            if not cast(Tensor, weight).is_floating_point():
                raise CannotMerge(f"the weight of `{layer}` is quantised: merge into the unquantised base")
            owners = {name.rpartition(".")[0] for name, part in names.items() if part is weight}
            if len({id(model.get_submodule(owner)) for owner in owners}) > 1:
                raise CannotMerge(f"the weight of `{layer}` is shared by {', '.join(sorted(owners))}")
        for name, other in _adapters(model).items():
            if other is not self and clash(self._claims(), other._claims()):
                raise CannotMerge(
                    f"adapter `{name}` keeps base values of parameters that `{self.name}` trained: detach it first"
                )
        still_active = [name for name, other in _adapters(model).items() if other._is_active and name != self.name]
        _switch(model, (self.name,))
        self._tokens.write()
        for module in self._layers.values():
            lora_layer.fold(module, cast(LoraWeights, lora_layer.parts(module)[self.name]))
        self._forget()
        _switch(model, tuple(still_active))

    def detach(self) -> None:
        """Take the adapter off; the model is again what it was before ``attach``, frozen."""
        model = self._attached()
        still_active = [name for name, other in _adapters(model).items() if other._is_active and name != self.name]
        _switch(model, tuple(still_active))
        self._forget()

    def _forget(self) -> None:
        for module in self._layers.values():
            lora_layer.remove_part(module, self.name)
        self._tokens.remove()
        del _adapters(self._attached())[self.name]
        for parameter in self._beside.values():
            parameter.requires_grad_(False)
        self._model, self._layers, self._beside, self._originals, self._resting = None, {}, {}, {}, {}
        self._is_active = False

    def _attached(self) -> nn.Module:
        if self._model is None:
            raise RuntimeError("the adapter is not attached to a model")
        return self._model

    def _new_part(self, layer: str, module: nn.Module, rank: int, alpha: float) -> LoraWeights:
        digest = hashlib.sha256(f"{self.seed}\n{layer}\nlora_A".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        A, B = lora_layer.initial_weights(generator, *lora_layer.widths(module), rank)
        scale = alpha / (math.sqrt(rank) if self.section.rslora else rank)
        return LoraWeights(A, B, scale, self.section.dropout)

    def _parts(self) -> dict[str, nn.Parameter]:
        result: dict[str, nn.Parameter] = {}
        for layer, module in self._layers.items():
            part = cast(LoraWeights, lora_layer.parts(module)[self.name])
            result[f"{layer}.lora_A.weight"] = part.A
            result[f"{layer}.lora_B.weight"] = part.B
        return result

    def _layout(self) -> peft_layout.Layout:
        ranks = self._ranks or dict.fromkeys(self._layers, (self.section.rank, self.section.alpha))
        return peft_layout.layout(self._attached(), self.section, ranks, self._tokens.ids, self.state())

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


def _adapters(model: nn.Module) -> dict[str, LoraAdapter]:
    """The model's adapters by name, in the order they came."""
    registry = getattr(model, _REGISTRY, None)
    if registry is None:
        registry = {}
        setattr(model, _REGISTRY, registry)
    return cast(dict[str, LoraAdapter], registry)


@contextmanager
def _activated(model: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    before = tuple(name for name, adapter in _adapters(model).items() if adapter._is_active)
    _switch(model, names)
    try:
        yield
    finally:
        _switch(model, before)


def _switch(model: nn.Module, names: tuple[str, ...]) -> None:
    """Make exactly these adapters active.

    Whole parameters move by pointer and rows come back bit for bit, so graphs taken before stay valid after switching back.
    """
    adapters = _adapters(model)
    unknown = [name for name in names if name not in adapters]
    if unknown:
        raise ValueError(f"the model has no adapter `{unknown[0]}`; it has: {', '.join(adapters) or 'none'}")
    wanted = tuple(name for name in adapters if name in names)
    for one, other in itertools.combinations(wanted, 2):
        key = clash(adapters[one]._claims(), adapters[other]._claims())
        if key is not None:
            raise ValueError(f"adapters `{one}` and `{other}` both train `{key}`: only one of them can be active")
    for name, adapter in adapters.items():
        if adapter._is_active and name not in wanted:
            adapter._rest()
    for name in wanted:
        if not adapters[name]._is_active:
            adapters[name]._wake()
    for module in {id(layer): layer for adapter in adapters.values() for layer in adapter._layers.values()}.values():
        lora_layer.set_active(module, tuple(name for name in wanted if name in lora_layer.parts(module)))
    for module in {id(layer): layer for item in adapters.values() for layer in item._tokens.all_layers()}.values():
        token_rows.set_active(module, tuple(name for name in wanted if token_rows.has_rows(module, name)))


def _refuse_overlap(layers: Mapping[str, nn.Module], beside: Mapping[str, nn.Parameter]) -> None:
    """A weight that trains fully needs no low-rank part; PEFT cannot say both either."""
    fully = {id(parameter): name for name, parameter in beside.items()}
    for layer, module in layers.items():
        if id(module.weight) in fully:
            raise RecipeError(
                f"`{fully[id(module.weight)]}` cannot train fully and carry LoRA at once",
                where="adapter.also_train",
                hint=f"narrow `also_train`, or leave `{layer}` out of `targets`",
            )
