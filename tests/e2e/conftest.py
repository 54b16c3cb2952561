"""The command line on tiny models and tiny data, in a folder of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.desk import ROWS, Call, Said, Write, recipe_values, write_rows
from tests.tiny import desk_model
from tunesmith import embedded
from tunesmith.cli.main import run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with the embedded tokenizer; 128 tokens of context."""
    like = embedded.model_folder("tunesmith-base-8m")
    assert like is not None
    folder = tmp_path_factory.mktemp("models") / "tiny"
    desk_model(folder, like)
    return folder


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    """The current folder: holds ``rows.jsonl``, a copy of the model in ``tiny`` and, once used, ``cache``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny_model, tmp_path / "tiny")
    write_rows(tmp_path / "rows.jsonl", ROWS)
    return tmp_path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run ``tunesmith`` with arguments, in this process."""

    def _call(*arguments: object) -> Said:
        capsys.readouterr()
        code = run([str(item) for item in arguments])
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return _call


@pytest.fixture
def write(desk: Path) -> Write:
    """Write a recipe with changes by ``section__key``; JSON is YAML. Returns the name of its file."""

    def _write(name: str = "recipe.yaml", **changes: Any) -> str:
        values = recipe_values()
        for dotted, value in changes.items():
            node = values
            *parents, last = dotted.split("__")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        (desk / name).write_text(json.dumps(values, indent=1), encoding="utf-8")
        return name

    return _write
