"""A short recipe, and the error that another text or override gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.errors import RecipeError
from tunesmith.recipe import codec

SHORT = """\
name: banking
model: tunesmith-base-8m
data:
  train:
    - path: train.csv
      format: prompt-completion
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe: the short one with more lines behind it, or another text."""

    def _write(more: str = "", *, text: str | None = None, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_text(SHORT + more if text is None else text, encoding="utf-8")
        return path

    return _write


@pytest.fixture
def refused(write: Callable[..., Path]) -> Callable[..., RecipeError]:
    """Load what must be refused and return the error."""

    def _refused(more: str = "", *overrides: str, text: str | None = None, name: str = "recipe.yaml") -> RecipeError:
        path = write(more, text=text, name=name)
        with pytest.raises(RecipeError) as caught:
            codec.load(path, *overrides)
        assert caught.value.exit_code == 2
        assert caught.value.what
        assert caught.value.where
        return caught.value

    return _refused
