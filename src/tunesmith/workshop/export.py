"""A run to files that other tools read: an adapter in PEFT's layout or a merged model in Hugging Face layout.

What was written is loaded again and held against the trained model; a gate that refuses leaves nothing behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tunesmith.adapters import build
from tunesmith.adapters.added import AddedAdapter
from tunesmith.adapters.peft_files import write_adapter
from tunesmith.data.prepared import Prepared
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.engine.checkpoint import Checkpoint, CheckpointFolder
from tunesmith.errors import RunError
from tunesmith.files import copy_file, new_folder, sweep
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.facts import read_facts
from tunesmith.models.loading import load_model
from tunesmith.models.locate import ModelFolder
from tunesmith.models.quantised import dequantise
from tunesmith.planning.defaults import derive_context
from tunesmith.recipe.root import Recipe
from tunesmith.registry.result import result_step
from tunesmith.registry.runs import RunFolder
from tunesmith.types import Adapter, CannotMerge
from tunesmith.workshop.exportable import check_export
from tunesmith.workshop.gates import GateResult, gate_a, require
from tunesmith.workshop.headed import is_headed
from tunesmith.workshop.headed_export import HeadedExport
from tunesmith.workshop.machinery import attach_saved
from tunesmith.workshop.model_files import stored_dtype, write_model
from tunesmith.workshop.parity import NUM_TEXTS, Document, general_documents, logits_of, name_of, on_file, within
from tunesmith.workshop.prepare import base_of, cached_data, renderer_of
from tunesmith.workshop.resuming import as_started

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ExportResult:
    """Where it lies, what the gates measured, sentences to say aloud, and the number format of what was written."""

    folder: Path
    gates: list[GateResult]
    notes: list[str]
    dtype: str


def export(run_folder: Path, out: Path, *, merge: bool = False, dtype: str | None = None) -> ExportResult:
    """Write what a run trained and prove that it answers alike.

    Args:
        run_folder: a finished run.
        out: must not exist.
        merge: a whole model instead of an adapter; runs without an adapter always give a whole model.
        dtype: ``bfloat16``, ``float16`` or ``float32`` of a whole model's weights; None is the base's own.

    Raises:
        RunError: no run, an unfinished one, ``out`` exists, an adapter that cannot be merged, or a ``dtype`` for an adapter.
        GateRefused: a parity gate refused; nothing is written.
    """
    asked = check_export(run_folder, out, merge=merge, dtype=dtype)
    job = _export_of(asked.run, whole=asked.whole)
    swept = [f"removed {name}, which an export that was cut off left" for name in _sweep(asked.out)]
    with new_folder(asked.out) as folder:
        if asked.whole:
            written = _DTYPES[dtype] if dtype else stored_dtype(job.base.path)
            gates, notes = job.whole_model(folder, written)
        else:
            written, gates, notes = job.adapter(folder)
        require(gates)
    return ExportResult(asked.out, gates, swept + notes, name_of(written))


def _export_of(run: RunFolder, *, whole: bool) -> _Export | HeadedExport:
    job = _Export(run)
    if not is_headed(job.recipe):
        return job
    return HeadedExport(run, job.recipe, job.base, job.checkpoint().trained, whole=whole)


def _sweep(out: Path) -> list[str]:
    return sweep(out.parent, of=out.name, is_shared=True)


class _Export:
    """One call of ``export``."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        environment = run.environment()
        # Rows are found by the recipe as it was written.
        self.recipe: Recipe = as_started(run.recipe().placed(Path(environment.get("recipe_folder", "."))), run)
        self.base: ModelFolder = base_of(self.recipe)
        if self.base.sha256 != environment["base_sha256"]:
            raise RunError(
                "the base model changed since this run", where=str(self.base.path), hint="put it back as it was"
            )
        self.identity = environment["run_identity"]

    def adapter(self, folder: Path) -> tuple[torch.dtype, list[GateResult], list[str]]:
        """Write the adapter in the precision it has, attach what was written to a fresh base, compare with the trained one."""
        model, adapter = self._trained()
        if not isinstance(adapter, AddedAdapter):
            raise AssertionError("runs without an adapter export whole models")
        documents = self._documents()
        trained_NV = logits_of(model, documents)
        notes = write_adapter(folder, adapter, self.recipe.model.name, self.base.sha256, self.recipe.model.quantise)
        if self.run.card_path.exists():
            copy_file(self.run.card_path, folder / "README.md")
        again = load_model(self.base.path, quantise=self.recipe.model.quantise)
        attach_saved(again, folder)
        written_NV = logits_of(again, documents)
        dtype = next(iter(adapter.state().values())).dtype
        return dtype, [gate_a(written_NV, trained_NV), on_file(written_NV, trained_NV, "adapter", dtype)], notes

    def whole_model(self, folder: Path, dtype: torch.dtype) -> tuple[list[GateResult], list[str]]:
        """Merge in fp32, write in ``dtype``, load what was written, compare with the trained one."""
        model, adapter = self._trained(unpacked=True)
        documents = self._documents()
        trained_NV = logits_of(model, documents)
        try:
            adapter.merge(model.hf)
        except CannotMerge as error:
            raise RunError(
                str(error),
                where="--merge",
                hint="leave --merge out: the adapter is exported as it is and used on its base",
            ) from None
        merged_NV = logits_of(model, documents)
        renderer, _ = renderer_of(self.recipe, self.base)
        notes = write_model(
            folder, model.hf, self.base.path, dtype, template=renderer.template.source, stop_ids=renderer.stop_ids
        )
        if self.run.card_path.exists():
            copy_file(self.run.card_path, folder / "README.md")
        written_NV = logits_of(load_model(folder), documents)
        return [gate_a(merged_NV, trained_NV), on_file(written_NV, trained_NV, "model", dtype)], notes

    def _trained(self, *, unpacked: bool = False) -> tuple[CausalLM, Adapter]:
        """The model as the trainer left it, in fp32, from the checkpoint that became the result.

        Args:
            unpacked: plain layers with the weights that packed ones multiply with.
        """
        model = load_model(self.base.path, quantise=self.recipe.model.quantise)
        if unpacked:
            dequantise(model.hf)
        adapter = build(self.recipe.adapter, self.recipe.seed)
        adapter.attach(model.hf)
        prefix = "adapter/"
        trained = self.checkpoint().trained
        adapter.load_state(
            {name.removeprefix(prefix): value for name, value in trained.items() if name.startswith(prefix)}
        )
        model.eval()
        return model, adapter

    def checkpoint(self) -> Checkpoint:
        """The checkpoint that became the result.

        Raises:
            RunError: it is missing or damaged.
        """
        checkpoints = CheckpointFolder(self.run.checkpoints_path, self.identity)
        step = result_step(self.run.path)
        if step is None:
            step = int(self.run.status().get("result_step", self.run.status()["step"]))
        checkpoint = checkpoints.load(step)
        if checkpoint is None:
            raise RunError(
                f"the checkpoint of step {step} is missing or damaged, so the export cannot be proven",
                where=str(self.run.checkpoints_path),
                hint="train again into a new folder",
            )
        return checkpoint

    def _documents(self) -> list[Document]:
        """Held-out rows and general text, cut so that their logits fit into memory."""
        facts = read_facts(self.base.path)
        context: int = derive_context(self.recipe, facts).value
        tokenizer = Tokenizer.from_folder(self.base.path)
        documents = [*self._held_out(), *general_documents(tokenizer, context)]
        return within(documents, facts.vocab_size)

    def _held_out(self) -> list[Document]:
        data: Prepared | None = cached_data(self.recipe)[0]
        store = None if data is None else (data.validation or data.test or data.train)
        return [] if store is None else [store.row(index) for index in range(min(NUM_TEXTS, store.num_rows))]
