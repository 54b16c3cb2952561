"""`tunesmith inspect` on runs, folders and pairs of them, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.desk import Call, Write
from tunesmith.adapters import lora_layer
from tunesmith.models.loading import load_model


def test_runs_by_themselves_and_side_by_side(desk: Path, call: Call, write: Write) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        said = call("train", write(f"{name}.yaml", seed=seed), "--run", f"runs/{name}")
        assert said.code == 0, said.err
    said = call("inspect", "one", "two", "--top", 2)
    assert said.code == 0, said.err
    for piece in (
        "of the weights they change",
        "answers of held-out rows",
        "general texts",
        "cosine of all updates",
        "base expects",
    ):
        assert piece in said.out, said.out
    told = call("inspect", "runs/one", "--text", "Where is it?", "--json").json
    assert [found["on"] for found in told["adapters"][0]["movements"]] == ["given texts"]
    assert len(told["adapters"][0]["layers"]) == 14
    assert told["overlaps"] == []
    assert call("export", "runs/one", "out").code == 0
    (desk / "texts.txt").write_text("One text.\n\nAnother one.\n", encoding="utf-8")
    told = call("inspect", "out", "--texts", "texts.txt", "--json").json
    assert told["adapters"][0]["movements"][0]["texts"] == 2


def test_a_quantised_base_has_the_size_of_what_it_multiplies_with(desk: Path, call: Call, write: Write) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra `quantise`")
    said = call("train", write(model={"name": "tiny", "quantise": "nf4"}), "--run", "runs/packed")
    assert said.code == 0, said.err
    layers = call("inspect", "runs/packed", "--text", "Where is it?", "--json").json["adapters"][0]["layers"]
    hf = load_model(desk / "tiny", quantise="nf4").hf
    for layer in layers:
        weight = lora_layer.weight_of(hf.get_submodule(layer["name"]))
        assert layer["norm"] / layer["relative"] == pytest.approx(float(weight.norm()), rel=1e-4)


def test_heads_and_whole_models(desk: Path, call: Call, write: Write) -> None:
    columns = {"text": "text", "label": "label"}
    head = write(
        "head.yaml",
        objective={"type": "classify"},
        data__train=[{"path": "rows.jsonl", "format": "labelled", "columns": columns}],
        evaluation={"preserve": [], "tasks": [{"type": "classification", "data": "validation"}]},
    )
    said = call("train", head, "--run", "runs/head")
    assert said.code == 0, said.err
    said = call("inspect", "runs/head")
    assert said.code == 0, said.err
    assert "next-token predictions were not compared" in said.out
    assert call("train", write("full.yaml", adapter={"type": "full"}), "--run", "runs/full").code == 0
    call("inspect", "runs/full").refuses(2, "no adapter to inspect", "tunesmith eval")


def test_refusals(desk: Path, call: Call, write: Write) -> None:
    assert call("train", write(), "--run", "runs/one").code == 0
    call("inspect", "runs/nothing").refuses(2, "nothing")
    call("inspect", "tiny").refuses(2, "no adapter to inspect")
    call("inspect", "runs/one", "runs/one").refuses(2, "named twice")
    call("inspect", "runs/one", "--text", " ").refuses(2, "a text is empty")
    call("inspect", "runs/one", "--texts", "nowhere.txt").refuses(2, "cannot be read", "UTF-8")
    (desk / "empty.txt").write_text("\n\n", encoding="utf-8")
    call("inspect", "runs/one", "--texts", "empty.txt").refuses(2, "holds 0 texts")
    (desk / "binary.txt").write_bytes(b"\xff\xfe\x00")
    call("inspect", "runs/one", "--texts", "binary.txt").refuses(2, "cannot be read")
    call("inspect", "runs/one", "--top", "0").refuses(2, "--top")
