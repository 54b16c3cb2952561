"""From names to folders: what is found, and what is said where nothing is."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from tunesmith import embedded
from tunesmith.errors import ModelError, RunError
from tunesmith.models.locate import base_of_run, check_weights, locate, open_model, tokenizer_size

BASE = embedded.model_folder(embedded.DEFAULT_MODEL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a copy of the embedded model under ``models/mine``."""
    shutil.copytree(BASE, tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_embedded_name() -> None:
    found = locate(embedded.DEFAULT_MODEL)
    assert (found.path, found.embedded) == (BASE.resolve(), True)
    assert found.sha256 == hashlib.sha256((BASE / "model.safetensors").read_bytes()).hexdigest()


def test_relative_to_the_recipe_before_the_current_folder(folder: Path) -> None:
    assert locate("models/mine").path == folder / "models" / "mine"
    shutil.copytree(BASE, folder / "project" / "models" / "mine")
    assert locate("models/mine", folder / "project").path == folder / "project" / "models" / "mine"
    assert locate(str(folder / "models" / "mine"), folder / "project").path == folder / "models" / "mine"


def test_hub_id_says_that_hub_access_is_off_and_what_to_do(folder: Path) -> None:
    with pytest.raises(ModelError, match="hub access is off") as caught:
        locate("meta-llama/Llama-3.2-1B@abc123")
    assert "--revision abc123" in caught.value.hint
    assert "--local-dir Llama-3.2-1B" in caught.value.hint


@pytest.mark.parametrize(("name", "near"), [("models/mime", "models/mine"), ("tunesmith-base-8", "tunesmith-base-8m")])
def test_near_names(folder: Path, name: str, near: str) -> None:
    with pytest.raises(ModelError, match="no model") as caught:
        locate(name)
    assert f"did you mean `{near}`" in caught.value.hint


def test_file_instead_of_folder(folder: Path) -> None:
    with pytest.raises(ModelError, match="this is a file"):
        locate("models/mine/model.safetensors")


def test_folder_that_is_no_model(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json; it holds: mine"):
        locate("models")


def adapter(folder: Path, base: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return folder


def test_adapter_folder(folder: Path) -> None:
    path = adapter(folder / "a", embedded.DEFAULT_MODEL)
    found = open_model(str(path))
    assert (found.base.path, found.adapter, found.run) == (BASE.resolve(), path, None)
    path = adapter(folder / "b", "../models/mine")
    assert open_model("b").base.path == folder / "models" / "mine"
    with pytest.raises(ModelError, match="this is an adapter"):
        locate("b")


@pytest.mark.parametrize("base", ["gone/base", None, ""])
def test_adapter_without_base(folder: Path, base: object) -> None:
    adapter(folder / "a", base)
    with pytest.raises(ModelError, match="base"):
        open_model("a")


def run(folder: Path, name: str, plan: dict | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps({"model": {"name": name}}))
    if plan is not None:
        (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def test_run_folder_with_adapter(folder: Path) -> None:
    path = run(folder / "run", "models/mine")
    with pytest.raises(RunError, match="no result yet"):
        open_model("run")
    adapter(path / "adapter", "models/mine")
    found = open_model("run")
    assert (found.base.path, found.adapter, found.run) == (folder / "models" / "mine", path / "adapter", path)


def test_run_folder_finds_its_base_by_the_plan_from_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run(folder / "run", "models/mine", {"model": {"path": str(folder / "models" / "mine")}})
    adapter(path / "adapter", "models/mine")
    (folder / "else").mkdir()
    monkeypatch.chdir(folder / "else")
    assert open_model(str(path)).base.path == folder / "models" / "mine"
    (path / "plan.json").unlink()
    with pytest.raises(ModelError, match=r"base `models/mine` of this run"):
        open_model(str(path))


def test_run_folder_with_whole_model(folder: Path) -> None:
    path = run(folder / "run", embedded.DEFAULT_MODEL)
    shutil.copytree(BASE, path / "model")
    found = open_model("run")
    assert (found.base.path, found.adapter, found.run) == (path / "model", None, path)
    assert base_of_run(path).path == BASE.resolve()
    with pytest.raises(ModelError, match="run folder, a base model is wanted"):
        locate("run")


def test_weights_of_the_embedded_model_pass() -> None:
    check_weights(BASE)
    assert tokenizer_size(BASE) == 8192


def test_tokenizer_larger_than_the_embedding(folder: Path) -> None:
    path = folder / "models" / "mine" / "tokenizer.json"
    values = json.loads(path.read_text())
    values["added_tokens"].append({"id": 8200, "content": "<new>"})
    path.write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"8,201 tokens, the model's embedding has only 8,192 rows"):
        check_weights(path.parent)


def test_broken_tokenizer(folder: Path) -> None:
    path = folder / "models" / "mine" / "tokenizer.json"
    path.write_text('{"model": {}}')
    with pytest.raises(ModelError, match=r"tokenizer\.json is broken"):
        check_weights(path.parent)
