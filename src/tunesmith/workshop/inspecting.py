"""What is in an adapter: how large its updates are and in how many directions, where predictions moved, what several have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.adapters import lora_layer, parameters
from tunesmith.adapters.added import AddedAdapter, activate
from tunesmith.adapters.bottleneck import Bottleneck
from tunesmith.adapters.lora_layer import LinearPart
from tunesmith.adapters.peft_files import attach_read, read_adapter
from tunesmith.adapters.prompts import VirtualPart
from tunesmith.adapters.spectra import Overlap, Spectrum, overlap, spectrum
from tunesmith.adapters.updates import Update, update_at
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.encoder_lm import EncoderLM
from tunesmith.models.loading import load_model
from tunesmith.models.locate import ModelFolder, ModelRef, check_weights
from tunesmith.registry.runs import RunFolder
from tunesmith.workshop.bases import one_base
from tunesmith.workshop.inspectable import adapters_of_names
from tunesmith.workshop.movements import Movement, movement
from tunesmith.workshop.opening import recipe_of, renderer_for
from tunesmith.workshop.parity import NUM_TEXTS, Document, general_documents
from tunesmith.workshop.prepare import cached_data
from tunesmith.workshop.resuming import as_started

_NEAREST = 3


@dataclass
class Inspected:
    """One adapter.

    Attributes:
        name: as it was written.
        method: the type of its section.
        numbers: how many it has.
        relative: size of all updates of weights over that of the weights; None where it has none.
        layers: update of each layer, or the linear path of each bottleneck, by name.
        beside: whole parameters of the base: size of the change, and over that of the parameter.
        rows: token, its text, size of its row's change, and over that of the row; by matrix.
        virtual: what stands in front of the input, a line each.
        movements: effect on the predictions of texts.
        notes: sentences to say aloud.
    """

    name: str
    method: str
    numbers: int
    relative: float | None
    layers: dict[str, Spectrum]
    beside: dict[str, tuple[float, float]] = field(default_factory=dict)
    rows: dict[str, list[tuple[int, str, float, float]]] = field(default_factory=dict)
    virtual: list[dict[str, Any]] = field(default_factory=list)
    movements: list[Movement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "method": self.method,
            "numbers": self.numbers,
            "relative": self.relative,
            "layers": [{"name": name, **found.to_json()} for name, found in self.layers.items()],
            "beside": [
                {"name": key, "norm": norm, "relative": relative} for key, (norm, relative) in self.beside.items()
            ],
            "rows": [
                {"matrix": matrix, "token": token, "text": text, "norm": norm, "relative": relative}
                for matrix, rows in self.rows.items()
                for token, text, norm, relative in rows
            ],
            "virtual": self.virtual,
            "movements": [found.to_json() for found in self.movements],
            "notes": self.notes,
        }


@dataclass(frozen=True)
class Common:
    """Two adapters: the cosine of all their updates, and the overlap of each layer that both have."""

    first: str
    second: str
    cosine: float | None
    layers: dict[str, Overlap]
    alone: tuple[int, int]

    def mean(self, key: str) -> float:
        """Mean of a number of the layers' overlaps."""
        return math.fsum(getattr(item, key) for item in self.layers.values()) / len(self.layers)

    @property
    def chance(self) -> tuple[float, float]:
        """What random directions would have in common, of inputs and outputs, on average."""
        count = len(self.layers)
        inputs, outputs = (math.fsum(item.chance[side] for item in self.layers.values()) / count for side in (0, 1))
        return inputs, outputs

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        summary = {}
        if self.layers:
            summary = {
                "reads": self.mean("reads"),
                "writes": self.mean("writes"),
                "chance_reads": self.chance[0],
                "chance_writes": self.chance[1],
            }
        return {
            "first": self.first,
            "second": self.second,
            "cosine": self.cosine,
            **summary,
            "layers": [{"name": name, **item.to_json()} for name, item in self.layers.items()],
            "layers_of_first_alone": self.alone[0],
            "layers_of_second_alone": self.alone[1],
        }


@dataclass(frozen=True)
class Inspection:
    """The base, each adapter, and each pair of them."""

    base: ModelFolder
    adapters: list[Inspected]
    overlaps: list[Common]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "base": {"name": self.base.name, "sha256": self.base.sha256},
            "adapters": [item.to_json() for item in self.adapters],
            "overlaps": [item.to_json() for item in self.overlaps],
            "notes": self.notes,
        }


def inspect_adapters(
    adapters: Sequence[str | Path], *, texts: Sequence[str] | None = None, base: str | None = None, top: int = 8
) -> Inspection:
    """Measure adapters of one base.

    Args:
        adapters: adapter folders, or runs that trained one.
        texts: what predictions are compared on; None takes answers of a run's held-out rows and general texts.
        base: the base of adapter folders whose own name for it leads nowhere.
        top: how many positions and tokens are listed.

    Raises:
        UserError: nothing to inspect, or one is named twice.
        ModelError: no adapter, or one of another base.
    """
    references = adapters_of_names([str(item) for item in adapters], base)
    folder, quantise, notes = one_base(references)
    check_weights(folder.path)
    headed = any(reference.head is not None for reference in references.values())
    model = load_model(folder.path, quantise=quantise, headless=headed)
    attached: list[AddedAdapter] = []
    for number, reference in enumerate(references.values()):
        settings, state = read_adapter(cast(Path, reference.adapter))
        attached.append(attach_read(model.hf, settings, state, f"a{number}"))
        attached[-1].freeze()
        activate(model.hf, ())
    measures, overlaps = _measured(model.hf, list(references), attached)
    found = []
    for (name, reference), adapter in zip(references.items(), attached, strict=True):
        one = _described(model, name, adapter, measures[name], Tokenizer.from_folder(folder.path))
        if headed or isinstance(model, EncoderLM):
            one.notes.append(
                "next-token predictions were not compared: the model has a head of labels or reads both ways"
            )
        else:
            one.movements = _movements(model, adapter, reference, texts, top)
        found.append(one)
    return Inspection(folder, found, overlaps, notes)


@torch.no_grad()
def _measured(
    hf: nn.Module, names: Sequence[str], adapters: Sequence[AddedAdapter]
) -> tuple[dict[str, dict[str, Spectrum]], list[Common]]:
    """Every layer of every adapter, and every pair; a layer at a time, since updates may be whole matrices."""
    found: dict[str, dict[str, Spectrum]] = {name: {} for name in names}
    pairs = {(one, other): _Pair() for one, other in combinations(range(len(names)), 2)}
    order = {name: number for number, (name, _) in enumerate(hf.named_modules())}
    for layer in sorted(
        {key for adapter in adapters for key in adapter.carriers()}, key=lambda key: order.get(key, -1)
    ):
        updates = [_update_at(adapter, layer) for adapter in adapters]
        for name, adapter, update in zip(names, adapters, updates, strict=True):
            if update is not None:
                found[name][layer] = spectrum(update, _base_norm(hf, layer, adapter))
        for (one, other), pair in pairs.items():
            pair.add(layer, updates[one], updates[other])
    return found, [pair.common(names[one], names[other]) for (one, other), pair in pairs.items()]


@dataclass
class _Pair:
    """What was seen of two adapters so far."""

    inner: float = 0.0
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0])
    layers: dict[str, Overlap] = field(default_factory=dict)
    alone: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, layer: str, one: Update | None, other: Update | None) -> None:
        """Take a layer in."""
        meet = one is not None and other is not None and one.shape == other.shape
        for side, update in enumerate((one, other)):
            if update is not None:
                self.squares[side] += update.norm() ** 2
                self.alone[side] += not meet
        if one is not None and other is not None and meet:
            self.inner += one.inner(other)
            if (found := overlap(one, other)) is not None:
                self.layers[layer] = found

    def common(self, first: str, second: str) -> Common:
        """The account of the pair."""
        cosine = self.inner / math.sqrt(math.prod(self.squares)) if all(self.squares) else None
        return Common(first, second, cosine, self.layers, (self.alone[0], self.alone[1]))


def _update_at(adapter: AddedAdapter, name: str) -> Update | None:
    """The change of a weight, or a bottleneck's two matrices as if nothing stood between them."""
    site = adapter.carriers().get(name)
    if site is not None and isinstance(part := adapter.part_at(site), Bottleneck):
        return Update(part.down.detach(), part.settings.scaling * part.up.detach())
    return update_at(adapter, name)


@torch.no_grad()
def _described(
    model: CausalLM, name: str, adapter: AddedAdapter, layers: dict[str, Spectrum], tokenizer: Tokenizer
) -> Inspected:
    sizes = {key: _base_norm(model.hf, key, adapter) for key in layers}
    known = [(layers[key].norm, size) for key, size in sizes.items() if size is not None]
    total = math.hypot(*(size for _, size in known)) if known else 0.0
    found = Inspected(
        name,
        str(adapter.section.type) + (" (dora)" if getattr(adapter.section, "dora", False) else ""),
        sum(tensor.numel() for tensor in adapter.state().values()),
        math.hypot(*(norm for norm, _ in known)) / total if total else None,
        layers,
    )
    own = parameters.own_names(model.hf)
    whole, rows = adapter.beside_changes()
    for key, change in whole.items():
        found.beside[key] = _sizes(change, own[key])
    for matrix, (ids, change_NH) in rows.items():
        weight = own[f"{matrix}.weight"]
        found.rows[matrix] = [
            (token, tokenizer.decode([token]), *_sizes(change_NH[place], weight[token]))
            for place, token in enumerate(ids)
        ]
    for site in adapter.carriers().values():
        if isinstance(part := adapter.part_at(site), VirtualPart):
            found.virtual += _virtual(model, part, tokenizer)
    if any(isinstance(adapter.part_at(site), Bottleneck) for site in adapter.carriers().values()):
        found.notes.append(
            "bottlenecks change no weights: sizes and directions are those of their two matrices, without what stands between"
        )
    return found


def _sizes(change: Tensor, base: Tensor) -> tuple[float, float]:
    norm, size = float(torch.linalg.norm(change.float())), float(torch.linalg.norm(base.float()))
    return norm, norm / size if size else math.inf


def _base_norm(hf: nn.Module, name: str, adapter: AddedAdapter) -> float | None:
    site = hf.get_submodule(name)
    if not isinstance(adapter.part_at(site), LinearPart):
        return None
    return float(torch.linalg.norm(lora_layer.weight_of(site)))


def _virtual(model: CausalLM, part: VirtualPart, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Of an embedded token: its size over that of a usual one, and the tokens it is most like; of cached ones: sizes by layer."""
    embedded_VH, cached = part.embedded(), part.cached()
    if embedded_VH is not None:
        weight_NH = model.hf.get_input_embeddings().weight.float()
        usual = float(weight_NH.norm(dim=1).mean())
        cosines_VN = nn.functional.normalize(embedded_VH.float()) @ nn.functional.normalize(weight_NH).T
        nearest = cosines_VN.topk(_NEAREST)
        return [
            {
                "place": place,
                "relative": float(embedded_VH[place].norm()) / usual,
                "nearest": [
                    {"token": tokenizer.decode([token]), "cosine": cosine}
                    for token, cosine in zip(
                        nearest.indices[place].tolist(), nearest.values[place].tolist(), strict=True
                    )
                ],
            }
            for place in range(len(embedded_VH))
        ]
    return [
        {"layer": layer, "keys": float(keys.float().norm()), "values": float(values.float().norm())}
        for layer, (keys, values) in enumerate(cached or [])
    ]


def _movements(
    model: CausalLM, adapter: AddedAdapter, reference: ModelRef, texts: Sequence[str] | None, top: int
) -> list[Movement]:
    renderer, context = renderer_for(reference)
    tokenizer, room = renderer.tokenizer, context - adapter.virtual_tokens
    if texts is not None:
        sets = {"given texts": _encoded(tokenizer, texts, room)}
    else:
        sets = {
            "answers of held-out rows": _held_out(reference, room),
            "general texts": general_documents(tokenizer, room),
        }
    found = [
        movement(model, adapter.name, on, documents, lambda ids: tokenizer.decode(list(ids)), top)
        for on, documents in sets.items()
    ]
    activate(model.hf, ())
    return [item for item in found if item is not None]


def _encoded(tokenizer: Tokenizer, texts: Sequence[str], room: int) -> list[Document]:
    found = [np.asarray(tokenizer.encode_document(text)[:room], dtype=np.uint32) for text in texts]
    return [(ids, np.ones(len(ids), dtype=np.bool_)) for ids in found]


def _held_out(reference: ModelRef, room: int) -> list[Document]:
    """Rows of a run that it did not train on, where its token cache is still there."""
    if reference.run is None:
        return []
    data = cached_data(as_started(recipe_of(reference), RunFolder.open(reference.run)))[0]
    store = None if data is None else (data.test or data.validation)
    if store is None:
        return []
    rows = [store.row(index) for index in range(min(NUM_TEXTS, store.num_rows))]
    return [(ids[:room], trained[:room]) for ids, trained in rows]
