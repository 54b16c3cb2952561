"""The result of a run on disk: ``adapter/`` in PEFT's layout, ``model/`` where weights of the base trained, else ``head/``.

A head lies beside whatever else trained, as ``head.json`` and ``head.safetensors``.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

import torch

from tunesmith.adapters.added import AddedAdapter
from tunesmith.adapters.head_only import HeadOnly
from tunesmith.adapters.peft_files import write_adapter
from tunesmith.files import new_folder
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.task_head import save_head
from tunesmith.recipe.root import Recipe
from tunesmith.registry.result import forget_result, record_result
from tunesmith.registry.runs import RunFolder
from tunesmith.types import Adapter
from tunesmith.workshop.headed import HeadedMachine
from tunesmith.workshop.headed_files import write_headless
from tunesmith.workshop.model_files import write_model


def write_result(
    run: RunFolder,
    adapter: Adapter,
    model: CausalLM,
    recipe: Recipe,
    base: Path,
    stop_ids: Collection[int],
    step: int,
    headed: HeadedMachine | None = None,
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
        headed: the model with its head, where it has one.
    """
    target = _target(run, adapter)
    forget_result(run.path)
    with new_folder(target, replace=True) as folder:
        notes: list[str] = []
        if isinstance(adapter, AddedAdapter):
            section, sha256 = recipe.model, run.environment()["base_sha256"]
            notes = write_adapter(folder, adapter, section.name, sha256, section.quantise)
        elif target == run.model_path:
            write = write_headless if headed else partial(write_model, stop_ids=stop_ids)
            notes = write(folder, model.hf, base, torch.float32)
        if headed is not None:
            save_head(folder, headed.objective.head, headed.described)
    record_result(run.path, target, step)
    return notes


def _target(run: RunFolder, adapter: Adapter) -> Path:
    if isinstance(adapter, HeadOnly):
        return run.path / "head"
    return run.adapter_path if isinstance(adapter, AddedAdapter) else run.model_path
