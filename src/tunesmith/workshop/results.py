"""The result of a run on disk: ``adapter/`` in PEFT's layout, or ``model/`` where weights of the base trained."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from tunesmith.adapters.added import AddedAdapter
from tunesmith.adapters.peft_files import write_adapter
from tunesmith.files import new_folder
from tunesmith.models.causal_lm import CausalLM
from tunesmith.recipe.root import Recipe
from tunesmith.registry.result import forget_result, record_result
from tunesmith.registry.runs import RunFolder
from tunesmith.types import Adapter
from tunesmith.workshop.model_files import write_model


def write_result(
    run: RunFolder, adapter: Adapter, model: CausalLM, recipe: Recipe, base: Path, stop_ids: Collection[int], step: int
) -> list[str]:
    """Write what was trained into its run folder, whole or not at all; returns sentences to say aloud.

    Args:
        run: the run.
        adapter: attached to ``model``.
        model: as training left it.
        recipe: names the base.
        base: folder of the base, whose configuration and tokenizer a whole model takes along.
        stop_ids: tokens that end an answer.
        step: whose weights these are.
    """
    is_lora = isinstance(adapter, AddedAdapter)
    target = run.adapter_path if is_lora else run.model_path
    forget_result(run.path)
    with new_folder(target, replace=True) as folder:
        if isinstance(adapter, AddedAdapter):
            notes = write_adapter(folder, adapter, recipe.model.name)
        else:
            notes = write_model(folder, model.hf, base, torch.float32, stop_ids=stop_ids)
    record_result(run.path, target, step)
    return notes
