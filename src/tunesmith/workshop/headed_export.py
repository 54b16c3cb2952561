"""A run of a model with a head to files that other tools read, each loaded again and held against the trained model."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from tunesmith.adapters import build
from tunesmith.adapters.added import AddedAdapter
from tunesmith.adapters.peft_files import write_adapter
from tunesmith.data.prepared import Prepared
from tunesmith.engine.checkpoint import load_trained
from tunesmith.errors import RunError
from tunesmith.evaluation.probes import general_texts
from tunesmith.files import copy_file
from tunesmith.models.facts import read_facts
from tunesmith.models.head_shape import HeadFile, read_head, transformers_class
from tunesmith.models.loading import load_model
from tunesmith.models.locate import ModelFolder, open_model
from tunesmith.models.quantised import dequantise
from tunesmith.models.task_head import TaskHead, load_head, save_head
from tunesmith.objectives.headed import Headed
from tunesmith.planning.defaults import derive_context
from tunesmith.recipe.root import Recipe
from tunesmith.registry.runs import RunFolder
from tunesmith.types import Adapter, CannotMerge
from tunesmith.workshop.gates import GateResult, gate_a, gate_b
from tunesmith.workshop.headed import HeadedMachine, Ids
from tunesmith.workshop.headed_files import to_class, write_class, write_headless
from tunesmith.workshop.machinery import attach_saved
from tunesmith.workshop.prepare import cached_data, renderer_of

_TEXTS = 64
_BATCH_TOKENS = 4096


class HeadedExport:
    """One call of ``export`` for a run with a head.

    Args:
        run: finished.
        recipe: of the run.
        base: as the run found it.
        trained: tensors of the checkpoint that became the result.
        whole: whether a whole model is written: packed weights are then plain layers with what they multiply with.

    Raises:
        ModelError: what describes the head is damaged.
    """

    def __init__(
        self, run: RunFolder, recipe: Recipe, base: ModelFolder, trained: Mapping[str, Tensor], *, whole: bool
    ) -> None:
        self.run, self.recipe, self.base = run, recipe, base
        folder = open_model(str(run.path)).head
        assert folder is not None
        self.described = read_head(folder)
        self.facts = read_facts(base.path)
        self.context: int = derive_context(recipe, self.facts).value
        self.renderer, _ = renderer_of(recipe, base)
        self.texts = self._texts()
        self.machine, self._adapter = self._trained(trained, unpacked=whole)

    def _texts(self) -> list[Ids]:
        """Held-out rows where they are at hand, else general text."""
        data: Prepared | None = cached_data(self.recipe)[0]
        if data is not None:
            store = data.test or data.validation or data.train
            return [store.row(row)[0] for row in range(min(_TEXTS, store.num_rows))]
        encode = self.renderer.tokenizer.encode_document
        return [np.asarray(encode(text.text), dtype=np.uint32) for text in islice(general_texts(), _TEXTS)]

    def _trained(self, trained: Mapping[str, Tensor], *, unpacked: bool) -> tuple[HeadedMachine, Adapter]:
        model = load_model(self.base.path, headless=True, quantise=self.recipe.model.quantise)
        if unpacked:
            dequantise(model.hf)
        adapter = build(self.recipe.adapter, self.recipe.seed)
        adapter.attach(model.hf)
        objective = Headed(self.described.shape)
        load_trained(trained, adapter, objective.parts)
        return HeadedMachine(model, objective, self.described, self.context, _BATCH_TOKENS), adapter

    def adapter(self, folder: Path) -> tuple[torch.dtype, list[GateResult], list[str]]:
        """Write adapter and head, attach what was written to a fresh base, compare with the trained one."""
        if not isinstance(self._adapter, AddedAdapter):
            raise AssertionError("runs without an adapter export whole models")
        trained = self._logits(self.machine)
        notes = write_adapter(
            folder, self._adapter, self.recipe.model.name, self.base.sha256, self.recipe.model.quantise
        )
        save_head(folder, self.machine.objective.head, self.described)
        self._card(folder)
        again = load_model(self.base.path, headless=True, quantise=self.recipe.model.quantise)
        attach_saved(again, folder)
        written = self._logits(self._machine_of(again, *load_head(folder)))
        dtype = next(iter(self._adapter.state().values())).dtype
        said = "the head lies beside the adapter, in head.json and head.safetensors: PEFT reads the adapter alone"
        return dtype, [gate_a(written, trained), self._on_file(written, trained, "adapter", dtype)], [*notes, said]

    def whole_model(self, folder: Path, dtype: torch.dtype) -> tuple[list[GateResult], list[str]]:
        """Merge in fp32, write in ``dtype``, load what was written, compare with the trained one."""
        trained = self._logits(self.machine)
        try:
            self._adapter.merge(self.machine.model.hf)
        except CannotMerge as error:
            hint = "leave --merge out: the adapter is exported with its head and used on its base"
            raise RunError(str(error), where="--merge", hint=hint) from None
        merged = self._logits(self.machine)
        if transformers_class(self.described.shape, self.facts) is None:
            notes = self._own_layout(folder, dtype)
            again = load_model(folder, headless=True)
            written = self._logits(self._machine_of(again, *load_head(folder)))
        else:
            notes, written = self._class(folder, dtype)
        self._card(folder)
        return [gate_a(merged, trained), self._on_file(written, trained, "model", dtype)], notes

    def _own_layout(self, folder: Path, dtype: torch.dtype) -> list[str]:
        notes = write_headless(folder, self.machine.model.hf, self.base.path, dtype)
        save_head(folder, self.machine.objective.head, self.described)
        shape = self.described.shape
        where = "the last layer" if shape.layer is None else f"layer {shape.layer}"
        said = (
            f"transformers has no class for a {shape.kind} head on {shape.pooling} of {where} of this model: the model is "
            "written with head.json and head.safetensors beside it, which Tunesmith opens"
        )
        return [*notes, said]

    def _class(self, folder: Path, dtype: torch.dtype) -> tuple[list[str], Tensor]:
        tokenizer = self.renderer.tokenizer
        pad = next((item for item in (tokenizer.pad_id, tokenizer.eos_id) if item is not None), None)
        head: TaskHead = self.machine.objective.head
        model = to_class(self.machine.model.hf, head, self.base.path, self.described, pad)
        notes = write_class(folder, model, self.base.path, dtype, self.described)
        name = transformers_class(self.described.shape, self.facts)
        assert name is not None
        again = getattr(transformers, name).from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        return [*notes, f"the model is one of transformers' {name} ({type(again).__name__})"], self._theirs(
            again.eval()
        )

    @torch.no_grad()
    def _theirs(self, model: Any) -> Tensor:
        """What a model of transformers says of each text by itself."""
        found = [model(input_ids=_ids(text[: self.context])).logits[0] for text in self.texts]
        return (torch.cat(found) if self.described.shape.task == "tag" else torch.stack(found)).float()

    def _machine_of(self, model: Any, head: TaskHead, described: HeadFile) -> HeadedMachine:
        objective = Headed(described.shape)
        objective.head.load_state_dict(head.state_dict())
        return HeadedMachine(model, objective, described, self.context, _BATCH_TOKENS)

    def _logits(self, machine: HeadedMachine) -> Tensor:
        """What a head says of each text, or of each token of them."""
        if self.described.shape.task == "tag":
            every = [range(len(text[: self.context])) for text in self.texts]
            return torch.from_numpy(np.concatenate(machine.word_logits(self.texts, every))).float()
        return torch.from_numpy(machine.logits(self.texts)).float()

    def _on_file(self, written: Tensor, trained: Tensor, what: str, dtype: torch.dtype) -> GateResult:
        name = f"{what} written in {str(dtype).removeprefix('torch.')}"
        task = self.described.shape.task
        return gate_b(log_shares(trained, task), log_shares(written, task), name)

    def _card(self, folder: Path) -> None:
        if self.run.card_path.exists():
            copy_file(self.run.card_path, folder / "README.md")


def log_shares(logits_NK: Tensor, task: str) -> Tensor:
    """Log-probabilities whose divergence tells two heads apart: of the labels, or of each label and its absence.

    A number is read as the log-odds of a share, so that a small difference of it is a small divergence.
    """
    if task in ("classify", "tag"):
        return logits_NK.log_softmax(-1)
    flat = logits_NK.reshape(-1)
    return torch.stack([torch.nn.functional.logsigmoid(-flat), torch.nn.functional.logsigmoid(flat)], dim=-1)


def _ids(text: Ids) -> Tensor:
    return torch.from_numpy(np.asarray(text, dtype=np.int64))[None]
