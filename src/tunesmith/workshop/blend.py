"""Several adapters of one base to one adapter, or to a merged model: what they change of each weight is blended.

What was written is loaded again and held against the blend itself, folded into the base's weights. A blend that is written exactly
must pass the parity gates; one that was reduced to a rank says what that costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters import parameters, updates
from tunesmith.adapters.added import AddedAdapter, activate
from tunesmith.adapters.blending import Blending
from tunesmith.adapters.linear import LinearAdapter
from tunesmith.adapters.peft_files import attach_read, read_adapter, write_adapter
from tunesmith.adapters.starts import start_generator
from tunesmith.adapters.trained_tokens import SUFFIX
from tunesmith.adapters.updates import Update
from tunesmith.errors import UserError
from tunesmith.files import new_folder, write_json, write_text
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.facts import read_facts
from tunesmith.models.loading import load_model
from tunesmith.models.locate import check_weights
from tunesmith.models.quantised import dequantise
from tunesmith.types import CannotMerge
from tunesmith.workshop.bases import one_base
from tunesmith.workshop.blendable import LEAST_LOST, BlendOptions, Source, check_blend
from tunesmith.workshop.blended_files import LINEAGE, Changes, as_lora, base_name, card
from tunesmith.workshop.gates import GateResult, gate_a, require
from tunesmith.workshop.model_files import stored_dtype, write_model
from tunesmith.workshop.opening import renderer_for
from tunesmith.workshop.parity import general_documents, logits_of, name_of, on_file, within

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class BlendedLayer:
    """One weight of a blend: the rank it is written with, the size of the update, and of what the rank leaves out."""

    name: str
    rank: int
    norm: float
    lost: float


@dataclass(frozen=True)
class BlendResult:
    """Where it lies and what it is.

    Attributes:
        folder: of the adapter or the model.
        lineage: sources with hashes, weights and method, as ``blend.json`` has it.
        layers: every blended weight.
        lost: share of the update's Frobenius norm that the rank leaves out; 0 where nothing was reduced.
        gates: what was required of the file against the blend; none where a rank leaves something out.
        cost: what the rank costs against the whole blend: ``mean_kl_nats``, ``top1_agreement``, ``positions``.
        notes: sentences to say aloud.
    """

    folder: Path
    lineage: dict[str, Any]
    layers: list[BlendedLayer]
    lost: float
    gates: list[GateResult]
    cost: dict[str, float]
    notes: list[str]


@dataclass
class _Made:
    """What a blend changes, and how large each update is."""

    changes: Changes = field(default_factory=Changes)
    sizes: list[BlendedLayer] = field(default_factory=list)

    @property
    def lost(self) -> float:
        """Share of the norm that is left out."""
        total = math.sqrt(math.fsum(item.norm**2 for item in self.sizes))
        return math.sqrt(math.fsum(item.lost**2 for item in self.sizes)) / total if total else 0.0


def blend(sources: Sequence[str | Path], out: str | Path, **how: Any) -> BlendResult:
    """Blend adapters of one base into a new folder.

    Args:
        sources: adapter folders, or runs that trained one.
        out: must not exist.
        how: fields of ``BlendOptions``: ``weights``, ``method``, ``density``, ``seed``, ``rank``, ``normalise``, ``base``, ``merge``,
            ``dtype``.

    Raises:
        UserError: settings that do not fit, a folder that is taken, or parts that cannot meet.
        ModelError: no adapter, one that is no change of weights, or one of another base.
        GateRefused: what was written does not answer as the blend; nothing is written.
    """
    options = BlendOptions(**how)
    found = check_blend([str(source) for source in sources], Path(out), options)
    with new_folder(Path(out)) as folder:
        return _Blend(found, Path(out), options).write(folder)


class _Blend:
    """One call of ``blend``."""

    def __init__(self, sources: tuple[Source, ...], out: Path, how: BlendOptions) -> None:
        self.sources, self.out, self.how = sources, out, how
        references = {source.name: source.reference for source in sources}
        self.base, self.quantise, self.notes = one_base(references)
        check_weights(self.base.path)
        self.renderer, self.context = renderer_for(sources[0].reference)
        prints = {str(renderer_for(source.reference)[0].fingerprint()) for source in sources}
        if len(prints) > 1:
            self.notes.append(
                "the adapters were trained with different templates; the blend is asked by the first one's"
            )
        self.blending = Blending(how.method, tuple(source.weight for source in sources), how.share, how.normalise)

    def write(self, folder: Path) -> BlendResult:
        """Blend, write, load again, compare."""
        model = load_model(self.base.path, quantise=self.quantise)
        dequantise(model.hf)
        made = self._made(model.hf)
        documents = within(
            general_documents(self.renderer.tokenizer, self.context), read_facts(self.base.path).vocab_size
        )
        exact_NV = logits_of(model, documents)
        if self.how.merge:
            written, dtype = self._merged(folder, model)
        else:
            del model  # a second base comes into memory
            written, dtype = self._adapter(folder, made), torch.float32
        written_NV = logits_of(written, documents)
        what = "model" if self.how.merge else "adapter"
        gates = [on_file(written_NV, exact_NV, what, dtype)]
        if not self.how.merge:
            gates.insert(0, gate_a(written_NV, exact_NV))
        lost = 0.0 if self.how.merge else made.lost
        cost: dict[str, float] = {}
        if lost < LEAST_LOST:
            require(gates)
        else:
            gates, cost = [], dict(gates[-1].numbers)
        lineage = self._lineage(made, lost, name_of(dtype))
        write_json(folder / LINEAGE, lineage)
        write_text(folder / "README.md", card(lineage))
        return BlendResult(self.out, lineage, made.sizes, lost, gates, cost, self.notes)

    @torch.no_grad()
    def _made(self, hf: nn.Module) -> _Made:
        """The blend, which is folded into the model's weights on the way, layer by layer."""
        adapters = self._attached(hf)
        made = _Made()
        order = {name: number for number, (name, _) in enumerate(hf.named_modules())}
        for name in sorted({name for adapter in adapters for name in adapter.carriers()}, key=order.__getitem__):
            given = [
                updates.update_at(adapter, name) for adapter in adapters
            ]  # of one layer: DoRA's are whole matrices
            update = self._blended(name, given)
            _fold(hf.get_submodule(name), update)
            made.changes.layers[name] = kept = self._of_rank(name, given, update, made)
            assert kept.rank is not None
        changes = [adapter.beside_changes() for adapter in adapters]
        for adapter in adapters:
            adapter.detach()
        self._beside(hf, changes, made)
        return made

    def _attached(self, hf: nn.Module) -> list[AddedAdapter]:
        adapters: list[AddedAdapter] = []
        for number, source in enumerate(self.sources):
            settings, state = read_adapter(source.folder)
            adapter = attach_read(hf, settings, state, f"a{number}")
            if not isinstance(adapter, LinearAdapter):
                raise AssertionError("methods without a change of weights are refused before")
            try:
                adapter.require_mergeable()
            except CannotMerge as error:
                raise UserError(
                    f"`{source.name}` cannot be blended: {error}", where="ADAPTER", hint="stack it instead"
                ) from None
            adapter.freeze()
            activate(hf, ())
            adapters.append(adapter)
        own = parameters.own_names(hf)
        fully = {id(own[key]) for adapter in adapters for key in adapter.beside_changes()[0]}
        for adapter in adapters:
            for name, layer in adapter.carriers().items():
                if id(cast(Any, layer).weight) in fully:
                    raise UserError(
                        f"`{name}` trains fully in one of the adapters and by low rank in another",
                        where="ADAPTER",
                        hint="stack them instead, or train both in one way",
                    )
        return adapters

    def _draws(self, key: str) -> Any:
        """Randomness by seed, tensor and adapter: the order of the adapters does not matter."""
        return lambda number: start_generator(self.how.seed or 0, key, f"dare {self.sources[number].sha256}")

    def _blended(self, name: str, given: Sequence[Update | None]) -> Update:
        if self.blending.is_sum:
            pairs = [
                (item, factor) for item, factor in zip(given, self.blending.factors, strict=True) if item and factor
            ]
            if pairs:
                return updates.summed([item for item, _ in pairs], [factor for _, factor in pairs])
        shape = next(item for item in given if item).shape
        dense = [torch.zeros(shape) if item is None else item.dense() for item in given]
        return Update(whole=self.blending.of(dense, self._draws(name)))

    def _of_rank(self, name: str, given: Sequence[Update | None], update: Update, made: _Made) -> Update:
        """The update as factors of the rank that was asked for."""
        narrow = min(update.shape)
        most = self.how.rank
        if most is None and update.rank is None:
            known = [source.rank for source in given if source and source.rank]
            most = sum(known) if len(known) == sum(item is not None for item in given) else narrow
        most = min(most or narrow, narrow)
        norm, lost, kept = update.norm(), 0.0, update
        if update.rank is None or update.rank > most:
            kept, lost = updates.reduced(update, most)
        assert kept.rank is not None
        made.sizes.append(BlendedLayer(name, kept.rank, norm, lost))
        return kept

    def _beside(self, hf: nn.Module, changes: Sequence[tuple[dict[str, Tensor], Any]], made: _Made) -> None:
        """Whole parameters and single rows, blended by the same method and put into the model."""
        own = parameters.own_names(hf)
        for key in dict.fromkeys(key for whole, _ in changes for key in whole):
            given = []
            for whole, rows in changes:
                change = whole.get(key, torch.zeros(own[key].shape)).clone()
                if key.removesuffix(".weight") in rows:
                    ids, values = rows[key.removesuffix(".weight")]
                    change[list(ids)] = values
                given.append(change)
            made.changes.whole[key] = self.blending.of(given, self._draws(key))
            own[key].data.add_(made.changes.whole[key].to(own[key].dtype))
        for matrix in dict.fromkeys(matrix for _, rows in changes for matrix in rows):
            weight = own[f"{matrix}.weight"]
            if f"{matrix}.weight" in made.changes.whole:
                continue
            ids = tuple(sorted({token for _, rows in changes for token in rows.get(matrix, ((), None))[0]}))
            given = []
            for _, rows in changes:
                change = torch.zeros(len(ids), weight.shape[1])
                held, values = rows.get(matrix, ((), None))
                if held:
                    change[[ids.index(token) for token in held]] = values
                given.append(change)
            made.changes.rows[matrix] = ids, self.blending.of(given, self._draws(matrix + SUFFIX))
            weight.data[list(ids)] += made.changes.rows[matrix][1].to(weight.dtype)

    def _adapter(self, folder: Path, made: _Made) -> CausalLM:
        """Write the blend as a LoRA adapter and attach what was written to a fresh base."""
        base = load_model(self.base.path, quantise=self.quantise)
        settings, state = as_lora(base.hf, made.changes, str(folder))
        adapter = attach_read(base.hf, settings, state)
        self.notes += write_adapter(folder, adapter, base_name(self.base), self.base.sha256)
        adapter.detach()
        again, tensors = read_adapter(folder)
        attach_read(base.hf, again, tensors).freeze()
        return base

    def _merged(self, folder: Path, model: CausalLM) -> tuple[CausalLM, torch.dtype]:
        dtype = _DTYPES[self.how.dtype] if self.how.dtype else stored_dtype(self.base.path)
        template, stops = self.renderer.template.source, self.renderer.stop_ids
        self.notes += write_model(folder, model.hf, self.base.path, dtype, template=template, stop_ids=stops)
        return load_model(folder), dtype

    def _lineage(self, made: _Made, lost: float, dtype: str) -> dict[str, Any]:
        how = self.how
        drops = how.method != "linear"
        return {
            "method": how.method,
            "density": how.share if drops else None,
            "seed": (how.seed or 0) if how.method.startswith("dare") else None,
            "normalise": how.normalise,
            "rank": how.rank,
            "merged": how.merge,
            "dtype": dtype,
            "lost": lost,
            "base": {"name": self.base.name, "sha256": self.base.sha256},
            "sources": [
                {
                    "name": source.name,
                    "folder": str(source.folder),
                    "sha256": source.sha256,
                    "weight": source.weight,
                    "factor": factor,
                }
                for source, factor in zip(self.sources, self.blending.factors, strict=True)
            ],
            "layers": [asdict(item) for item in made.sizes],
        }


def _fold(layer: nn.Module, update: Update) -> None:
    weight = cast(Tensor, layer.weight)
    dense = update.dense()
    weight.data.add_((dense.t() if isinstance(layer, Conv1D) else dense).to(weight.dtype))
