"""Adapter folders with random numbers, as training would leave them, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tunesmith.adapters import build
from tunesmith.adapters.added import AddedAdapter
from tunesmith.adapters.peft_files import write_adapter
from tunesmith.models.loading import load_model
from tunesmith.models.locate import ModelFolder
from tunesmith.recipe.section import Section


def stirred(model: Any, section: Section, seed: int, name: str = "default", size: float = 0.1) -> AddedAdapter:
    """An adapter on a module of transformers, all that trains moved at random."""
    adapter = build(section, seed)
    assert isinstance(adapter, AddedAdapter)
    adapter.attach(model, name)
    generator = torch.Generator().manual_seed(1000 + seed)
    for group in adapter.groups():
        for _, parameter in group.parameters:
            parameter.data.add_((torch.randn(parameter.shape, generator=generator) * size).to(parameter.dtype))
    with adapter.active(()), adapter.active((name,)):  # what trains beside is written into the base again
        pass
    return adapter


def write_random(folder: Path, base: Path, section: Section, seed: int, **more: Any) -> Path:
    """Write such an adapter of a model folder; ``more`` goes to ``stirred``."""
    folder.mkdir(parents=True)
    hf = load_model(base).hf
    write_adapter(folder, stirred(hf, section, seed, **more), str(base), ModelFolder(base, str(base)).sha256)
    return folder
