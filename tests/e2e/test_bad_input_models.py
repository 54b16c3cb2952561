"""Wrong model folders: refused before a weight is loaded or a run is made, by file and reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.e2e.desk import Call, Write, remains

VERBS = [("train", "recipe.yaml"), ("plan", "recipe.yaml"), ("eval", "tiny", "recipe.yaml")]
ASK = ("generate", "tiny", "--prompt", "hello")


def _cut(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])


def _only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _more_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["added_tokens"].append({**values["added_tokens"][0], "id": 8192, "content": "<new>"})
    path.write_text(json.dumps(values), encoding="utf-8")


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | changes), encoding="utf-8")


SPOILT: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ("has no weights", "it holds:", "tiny")),
    "torn weights": (lambda folder: _cut(folder, -100), ("is torn", "model.safetensors", "copy or download")),
    "torn header": (lambda folder: _cut(folder, 100), ("is torn", "model.safetensors")),
    "five bytes": (lambda folder: _cut(folder, 5), ("not a safetensors file (5 bytes)",)),
    "pickles only": (_only_pickles, ("pytorch_model.bin", "runs code", "safetensors")),
    "too many tokens": (_more_tokens, ("knows 8,193 tokens", "8,192 rows", "tokenizer.json")),
    "no config": (lambda folder: (folder / "config.json").unlink(), ("no config.json",)),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), ("config.json is not valid JSON",)),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ("no tokenizer", "tokenizer.json")),
    "broken tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), ("it has no 'model'",)),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_folder(desk: Path, call: Call, write: Write, name: str) -> None:
    spoil, needles = SPOILT[name]
    write()
    spoil(desk / "tiny")
    for arguments in (*VERBS, ASK):
        call(*arguments).refuses(2, *needles)
    assert set(call(*ASK, "--json").refuses(2).json) == {"error"}
    assert remains(desk) == []


@pytest.mark.parametrize(
    ("changes", "needles"),
    [
        ({"model_type": "foo", "architectures": ["FooForCausalLM"]}, ("model type `foo`", "config.json", "models.md")),
        ({"hidden_size": 64}, ("another shape than config.json says", "(8192, 32)", "config.json")),
        ({"num_hidden_layers": 3}, ("lack layer 2", "config.json")),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_the_weights_leaves_no_run(
    desk: Path, call: Call, write: Write, changes: dict[str, Any], needles: tuple[str, ...]
) -> None:
    _config(desk / "tiny", **changes)
    said = call("train", write(), "--json").refuses(2, *needles)
    assert set(said.json) == {"error"}
    assert len(said.json["error"]["what"]) < 400
    call(*ASK).refuses(2, *needles)
    assert not (desk / "runs").exists()


def test_poisoned_weights_are_called_that(desk: Path, call: Call, write: Write) -> None:
    path = desk / "tiny" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    recipe = write()
    for arguments in (("train", recipe), ("eval", "tiny", recipe), ASK):
        call(*arguments).refuses(2, "not finite", "tiny", "damaged")
    assert not (desk / "runs").exists()


@pytest.mark.parametrize(
    ("name", "needles"),
    [
        ("tinny", ("no model `tinny`", "did you mean `tiny`?")),
        ("nothing", ("no model `nothing`", "tunesmith-base-8m")),
        ("org/model@main", ("hub access is off", "--revision main")),
        ("rows.jsonl", ("a model is a folder", "rows.jsonl")),
    ],
)
def test_a_model_that_is_not_there(desk: Path, call: Call, write: Write, name: str, needles: tuple[str, ...]) -> None:
    call("train", write(model=name)).refuses(2, *needles)
    call("generate", name, "--prompt", "hello").refuses(2, *needles)
    assert remains(desk) == []
