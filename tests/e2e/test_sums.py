"""A weighted sum from a recipe: rows go to the part of their kind, training resumes with equal bits, the result answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.e2e.model_folder import write_family
from tests.e2e.test_families import cut_and_whole
from tests.e2e.test_heads import tensors
from tunesmith.errors import DataError
from tunesmith.evaluation.scorecard import Scorecard
from tunesmith.recipe.codec import parse
from tunesmith.recipe.root import Recipe
from tunesmith.records import Message
from tunesmith.types import Sampling
from tunesmith.workshop.ask import open_answerer
from tunesmith.workshop.planning import plan_recipe
from tunesmith.workshop.prepare import open_data

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def recipe_for(folder: Path, **changes: Any) -> Recipe:
    write_family(folder / "base", "llama")
    with (folder / "chats.jsonl").open("w") as file:
        for number in range(32):
            file.write(json.dumps({"prompt": f"is {number} even", "completion": "no" if number % 2 else "yes"}) + "\n")
    with (folder / "books.jsonl").open("w") as file:
        for number in range(16):
            file.write(json.dumps({"text": f"heron {number} stood in the reeds " * (1 + number % 3)}) + "\n")
    values = {
        "name": "sum", "model": "base",
        "data": {"train": ["chats.jsonl", "books.jsonl"], "validation": 0.1, "test": 0.2},
        "objective": {"type": "sum", "parts": [{"type": "sft"}, {"type": "clm", "weight": 0.3, "label_smoothing": 0.1}]},
        "adapter": {"type": "lora", "rank": 4, "dropout": 0.1},
        "training": {"max_steps": 6, "batch_size": 8, "learning_rate": 1e-2, "checkpoint_every": 2, "precision": "fp32"},
        "evaluation": {"preserve": []},
        "machine": {"device": "cpu", "threads": 1},
        **changes,
    }  # fmt: skip
    return parse(values).placed(folder)


def test_rows_belong_to_the_part_of_their_kind(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path)
    data, _, _ = open_data(recipe)
    for row in range(data.train.num_rows):
        is_book = data.train.origin(row).file == "books.jsonl"
        assert data.train.parts[row] == int(is_book)
        trained = data.train.row(row)[1]
        assert trained[1:].all() == is_book, "documents train on every token, conversations on their answers"
    assert set(np.asarray(data.train.parts).tolist()) == {0, 1}


def test_train_interrupt_resume_and_ask(tmp_path: Path) -> None:
    plan = plan_recipe(recipe_for(tmp_path))
    assert any("the training loss is 1 · sft + 0.3 · clm" in note for note in plan.notes)
    cut, expected = cut_and_whole(plan, tmp_path)
    first, second = tensors(expected), tensors(cut)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
    lines = [line for line in cut.metrics() if "loss" in line]
    assert lines[-1]["loss"] < lines[0]["loss"]
    seen = {name for line in lines for name in ("nll_sft", "nll_clm") if line.get(name) is not None}
    assert seen == {"nll_sft", "nll_clm"}
    assert "loss" in Scorecard.load(cut.scorecards_path, "tuned").tasks
    page = (cut.path / "report.html").read_text(encoding="utf-8")
    assert "Loss by part" in page
    assert (
        "".join(open_answerer(str(cut.path)).stream([Message("user", "is 3 even")], Sampling(max_new_tokens=2)))
        is not None
    )


def test_another_weight_is_another_run_and_the_same_tokens(tmp_path: Path) -> None:
    other = {"type": "sum", "parts": [{"type": "sft", "weight": 2}, {"type": "clm"}]}
    one, two = open_data(recipe_for(tmp_path))[0], open_data(recipe_for(tmp_path, objective=other))[0]
    assert one.key == two.key
    swapped = {"type": "sum", "parts": [{"type": "clm"}, {"type": "sft"}]}
    assert open_data(recipe_for(tmp_path, objective=swapped))[0].key != one.key


def test_rows_without_a_part_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a plain document belongs to a part `clm`, and the sum has none"):
        open_data(recipe_for(tmp_path, objective={"type": "sum", "parts": [{"type": "sft"}]}))
    with pytest.raises(DataError, match="a conversation belongs to a part `sft`, and the sum has none"):
        open_data(recipe_for(tmp_path, objective={"type": "sum", "parts": [{"type": "clm"}]}))
