"""The flat loops are oracles: on the same rows in the same order they have the engine's losses."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tunesmith.embedded import DEFAULT_MODEL, HELPDESK
from tunesmith.recipe.codec import parse
from tunesmith.registry.run_folder import RunFolder
from tunesmith.workshop.planning import plan_recipe
from tunesmith.workshop.train import train

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STEPS, BATCH_SIZE = 5, 4


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def engine_losses(folder: Path, **sections: Any) -> list[float]:
    """Losses of the workshop on the embedded help desk, with the product's defaults but for the budget."""

    def source(split: str) -> dict[str, Any]:
        return {"path": f"{split}.jsonl", **sections["source"]}

    values = {
        "name": "oracle",
        "model": DEFAULT_MODEL,
        "data": {"train": [source("train")], "validation": [source("validation")], "test": [source("test")], "duplicates": "error"},
        "objective": sections["objective"],
        "adapter": sections["adapter"],
        "training": {"max_steps": STEPS, "batch_size": BATCH_SIZE, "precision": "fp32", "evaluate_every": 100, "samples": 0},
        "evaluation": {"tasks": sections.get("tasks", [{"type": "loss", "limit": 1}]), "preserve": []},
        "machine": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    run = train(plan_recipe(parse(values).placed(HELPDESK)), folder / "run")
    return [line["loss"] for line in RunFolder(run.folder).metrics() if "loss" in line]


def test_sft_with_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = example("sft_lora_loop")
    monkeypatch.setattr(loop, "BATCH_SIZE", BATCH_SIZE)
    model, tokenizer, trained = loop.load()
    found = loop.train(model, tokenizer, trained, STEPS)
    expected = engine_losses(
        tmp_path,
        source={"format": "prompt-completion", "columns": {"prompt": "ticket", "completion": "queue"}},
        objective={"type": "sft"},
        adapter={"type": "lora", "rank": 16, "train_tokens": "none"},
    )
    assert found == pytest.approx(expected, rel=1e-5)
    assert found[-1] < found[0]


def test_sft_with_bottleneck_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = example("bottleneck_loop")
    monkeypatch.setattr(loop, "BATCH_SIZE", BATCH_SIZE)
    model, tokenizer, trained = loop.load()
    found = loop.train(model, tokenizer, trained, STEPS)
    expected = engine_losses(
        tmp_path,
        source={"format": "prompt-completion", "columns": {"prompt": "ticket", "completion": "queue"}},
        objective={"type": "sft"},
        adapter={"type": "bottleneck", "preset": "parallel", "train_tokens": "none"},
    )
    assert found == pytest.approx(expected, rel=1e-5)
    assert found[-1] < found[0]


def test_sft_with_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = example("prompt_loop")
    monkeypatch.setattr(loop, "BATCH_SIZE", BATCH_SIZE)
    model, tokenizer = loop.load()
    found = loop.train(model, tokenizer, STEPS)
    expected = engine_losses(
        tmp_path,
        source={"format": "prompt-completion", "columns": {"prompt": "ticket", "completion": "queue"}},
        objective={"type": "sft"},
        adapter={"type": "prompt", "train_tokens": "none"},
    )
    assert found == pytest.approx(expected, rel=1e-5)
    assert found[-1] < found[0]


def test_continued_pre_training_of_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = example("clm_full_loop")
    monkeypatch.setattr(loop, "BATCH_SIZE", BATCH_SIZE)
    model, tokenizer = loop.load()
    found = loop.train(model, tokenizer, STEPS)
    expected = engine_losses(
        tmp_path,
        source={"format": "text", "columns": {"text": "ticket"}},
        objective={"type": "clm"},
        adapter={"type": "full"},
    )
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*_loop.py")), ids=lambda path: path.stem)
def test_a_loop_is_flat_and_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    for package in ("engine", "workshop", "objectives", "planning"):
        assert f"tunesmith.{package}" not in text


@pytest.mark.parametrize(("frozen", "adapter"), [(True, "head"), (False, "full")])
def test_a_classification_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: bool, adapter: str) -> None:
    loop = example("classify_head_loop")
    monkeypatch.setattr(loop, "BATCH_SIZE", BATCH_SIZE)
    model, tokenizer, labels = loop.load(frozen=frozen)
    found = loop.train(model, tokenizer, labels, STEPS, peak=loop.HEAD_RATE if frozen else loop.LEARNING_RATE)
    expected = engine_losses(
        tmp_path,
        source={"format": "labelled", "columns": {"text": "ticket", "label": "queue"}},
        objective={"type": "classify"},
        adapter={"type": adapter},
        tasks=[{"type": "classification", "limit": 1}],
    )
    assert found == pytest.approx(expected, rel=1e-5)
