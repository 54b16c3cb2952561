"""A base that is frozen whole: only the head that the objective puts on it trains."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from tunesmith.adapters import parameters
from tunesmith.recipe.adapters import HeadOnlySection
from tunesmith.types import ParamGroup


class HeadOnly:
    """Freezes every parameter of the base; what trains is the objective's.

    Args:
        section: holds no options.
        seed: unused, nothing is drawn.
    """

    virtual_tokens = 0

    def __init__(self, section: HeadOnlySection, seed: int = 0) -> None:
        self.section = section
        self.notes: list[str] = []

    def attach(self, model: nn.Module, name: str = "default") -> None:
        """Freeze the model."""
        model.requires_grad_(False)

    def groups(self) -> list[ParamGroup]:
        """None."""
        return []

    def active(self, names: Collection[str]) -> AbstractContextManager[None]:
        """The base is always exact."""
        return nullcontext()

    def state(self) -> dict[str, Tensor]:
        """Nothing of the base trains."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Raise RunError where the state holds anything."""
        parameters.load_tensors({}, state)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A marker in place of PEFT's configuration, and no tensors."""
        return {"tunesmith_scope": "head"}, {}

    def merge(self, model: nn.Module) -> None:
        """Do nothing: the base is as it was."""
