"""The recipe: what a person writes."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, PrivateAttr, model_validator

from tunesmith.recipe.adapters import AdapterField
from tunesmith.recipe.data import DataSection
from tunesmith.recipe.evaluation import EvaluationSection
from tunesmith.recipe.low_rank import AfloraSection, LoraSection
from tunesmith.recipe.machine import LoggingSection, MachineSection
from tunesmith.recipe.model import ModelField
from tunesmith.recipe.objectives import ObjectiveField, SftSection
from tunesmith.recipe.section import Section
from tunesmith.recipe.syntax import Written
from tunesmith.recipe.training import TrainingSection

_DIGITS = 10
_KEY = re.compile(r"(?:recipe \S+ \[)?([a-z_]+(?:\.[a-z0-9_]+)*)\]?")


class Recipe(Section):
    """One run, as a person writes it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the run and of its folder."""
    model: ModelField
    """Base model: a name, or a section."""
    data: DataSection
    """Examples and splits."""
    objective: ObjectiveField = SftSection()
    """What to minimise."""
    adapter: AdapterField = LoraSection()
    """Which parameters train."""
    training: TrainingSection = TrainingSection()
    """How long and how fast."""
    evaluation: EvaluationSection = EvaluationSection()
    """What to measure."""
    machine: MachineSection = MachineSection()
    """Hardware and prices."""
    logging: LoggingSection = LoggingSection()
    """Extra sinks for metrics."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seeds data order, initialisation and dropout."""
    _folder: Path = PrivateAttr(default_factory=Path)
    _written: Written = PrivateAttr(default_factory=Written)

    @model_validator(mode="after")
    def _one_rule_freezes(self) -> Recipe:
        if isinstance(self.adapter, AfloraSection) and self.training.freezing is not None:
            raise ValueError(
                "`adapter.type: aflora` freezes by a rule of its own: leave `training.freezing` out, or take `type: lora`"
            )
        return self

    @property
    def folder(self) -> Path:
        """Folder that relative paths of the recipe start from; not part of its values."""
        return self._folder

    def where(self, place: str) -> str:
        """Name a key such as ``machine.device`` by file and line; any other place is returned as it is."""
        found = _KEY.fullmatch(place)
        keys = (
            tuple(int(part) if part.isdigit() and len(part) < _DIGITS else part for part in found[1].split("."))
            if found
            else ()
        )
        if not self._written.source or not keys or keys[0] not in type(self).model_fields:
            return place
        return self._written.where(keys)

    def written_as(self, written: Written) -> Recipe:
        """Return the same recipe that knows where its keys stand; not part of its values."""
        copy = self.model_copy()
        copy._written = written
        return copy

    def placed(self, folder: Path) -> Recipe:
        """Return the same recipe with its relative paths starting from ``folder``."""
        copy = self.model_copy()
        copy._folder = folder
        return copy
