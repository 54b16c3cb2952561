"""Scores of a base kept in the cache: many runs on the same rows ask the same base the same questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from tunesmith.data.cache_key import cache_root
from tunesmith.errors import RunError
from tunesmith.evaluation.scorecard import Scorecard
from tunesmith.files import sweep
from tunesmith.models.locate import ModelFolder
from tunesmith.planning.settings import Settings
from tunesmith.recipe.fingerprint import fingerprint
from tunesmith.recipe.root import Recipe

VERSION = 1
"""Counts up when a task or probe measures otherwise than before."""
_NAME = "base"
_DECIDING = ("device", "precision", "weights_dtype", "quantise", "context", "deterministic", "threads")


@dataclass(frozen=True)
class BaseScores:
    """Where the scores of a base lie, by all that decides them."""

    folder: Path
    suite: dict[str, Any]

    @classmethod
    def of(
        cls, recipe: Recipe, settings: Settings, data_key: str, base: ModelFolder, template: str, suite: dict[str, Any]
    ) -> BaseScores:
        """The place for the scores that a recipe asks of its base.

        The seed decides too: it keys bootstraps, hidden tokens and random weights.
        """
        decides = {
            "version": VERSION, "data": data_key, "base": [base.sha256, base.config_sha256], "template": template,
            "model": recipe.model.model_dump(mode="json"), "objective": recipe.objective.model_dump(mode="json"),
            "suite": suite, "seed": recipe.seed, "batch_tokens": recipe.evaluation.batch_tokens,
            "libraries": [torch.__version__, transformers.__version__],
            "settings": {name: getattr(settings, name) for name in _DECIDING},
        }  # fmt: skip
        return cls(cache_root() / "scores" / fingerprint(decides), suite)

    def read(self) -> Scorecard | None:
        """The kept scores; None where there are none, or they are damaged and will be written anew.

        What a process that ended left half-written there is removed.
        """
        try:
            sweep(self.folder, is_shared=True)
            card = Scorecard.load(self.folder, _NAME)
        except (RunError, OSError):
            return None
        return card if card.suite == self.suite else None

    def keep(self, card: Scorecard) -> str | None:
        """Keep scores for later runs; why they could not be kept, where the cache cannot be written."""
        try:
            card.save(self.folder, _NAME)
        except OSError as error:
            return f"the scores of the base are not kept for other runs: {error.strerror or error} ({self.folder})"
        return None
