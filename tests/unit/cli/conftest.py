"""Run the command line in this process, in an empty folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.main import run

RECIPE = """\
name: desk
model: tunesmith-base-8m
data:
  train: {path: rows.jsonl, format: prompt-completion, columns: {prompt: text, completion: label}}
  validation: 0
  test: 0
"""
ROWS = [
    {"text": "Where is my parcel?", "label": "delivery"},
    {"text": "I was charged twice.\nPlease look.", "label": "billing"},
    {"text": "Nothing here works", "label": "repair"},
]


@dataclass(frozen=True)
class Said:
    """What a call of the command line came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run ``tunesmith`` with arguments."""

    def _call(*arguments: str) -> Said:
        capsys.readouterr()
        code = run([str(item) for item in arguments])
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return _call


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A small recipe with its data."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return Path("recipe.yaml")
