"""A finished run of two steps, made once, and copies of it to spoil."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.desk import ROWS, Said, recipe_values, write_rows
from tests.tiny import desk_model
from tunesmith import embedded
from tunesmith.cli.main import run

Call = Callable[..., Said]


def call(*arguments: object) -> Said:
    """Run ``tunesmith`` with arguments, in this process and the current folder."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(item) for item in arguments])
    return Said(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tiny``, ``rows.jsonl``, ``recipe.yaml``, ``cache`` and two finished runs, ``desk`` and ``other``."""
    folder = tmp_path_factory.mktemp("trained")
    like = embedded.model_folder(embedded.DEFAULT_MODEL)
    assert like is not None
    desk_model(folder / "tiny", like)
    write_rows(folder / "rows.jsonl", ROWS)
    values = recipe_values()
    values["evaluation"] = {"preserve": [], "tasks": [{"type": "label_ranking", "data": "validation"}]}
    values["training"]["samples"] = 1
    (folder / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")
    before, cache = Path.cwd(), os.environ.get("TUNESMITH_CACHE")
    os.chdir(folder)
    os.environ["TUNESMITH_CACHE"] = str(folder / "cache")
    try:
        said = call("train", "recipe.yaml")
        assert said.code == 0, said.err
    finally:
        os.chdir(before)
        if cache is not None:
            os.environ["TUNESMITH_CACHE"] = cache
    shutil.copytree(folder / "runs" / "desk", folder / "runs" / "other")
    return folder


@pytest.fixture
def desk(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a copy of ``trained`` that may be spoilt."""
    folder = tmp_path / "desk"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TUNESMITH_CACHE", str(folder / "cache"))
    return folder
