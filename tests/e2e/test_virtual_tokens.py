"""Prompts and prefixes through the whole of it: cut and resumed, answering, scored, exported, refused where there is no room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.desk import Call, Write
from tests.e2e.test_families import cut_and_whole, our_logits, weights
from tunesmith.models.loading import load_model
from tunesmith.recipe.codec import load
from tunesmith.workshop.export import export
from tunesmith.workshop.machinery import attach_saved
from tunesmith.workshop.opening import open_machine
from tunesmith.workshop.planning import plan_recipe

ADAPTERS: dict[str, dict[str, Any]] = {
    "prompt": {"type": "prompt", "num_tokens": 5, "init_text": "Which queue?", "train_tokens": ["<|im_end|>"]},
    "p-tuning": {"type": "p-tuning", "num_tokens": 5, "encoder": "lstm", "encoder_width": 8, "dropout": 0.1, "train_tokens": "none"},
    "prefix": {"type": "prefix", "num_tokens": 5, "init_text": "Which queue?", "also_train": ["model.norm.weight"]},
    "projected": {"type": "prefix", "num_tokens": 5, "projection": True, "projection_width": 8},
}  # fmt: skip
TRAINING = {"max_steps": 6, "batch_size": 4, "samples": 0, "learning_rate": 1e-2, "checkpoint_every": 2}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_cut_and_resumed_it_has_the_same_bits_and_exports(desk: Path, write: Write, kind: str) -> None:
    plan = plan_recipe(load(write(training=TRAINING, adapter=ADAPTERS[kind])))
    assert plan.settings.context == 128 - 5
    cut, expected = cut_and_whole(plan, desk)
    ours, theirs = weights(cut), weights(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())

    ids = torch.randint(8, 8192, (40,), generator=torch.Generator().manual_seed(1))
    trained = our_logits(open_machine(str(cut.path), device="cpu").machine.model, ids)
    base = load_model(desk / "tiny")
    assert float((our_logits(base, ids) - trained).abs().max()) > 1e-3 * float(trained.abs().max())
    result = export(cut.path, desk / "adapter")
    assert [gate.passed for gate in result.gates] == [True, True]
    attach_saved(base, desk / "adapter")
    assert torch.equal(our_logits(base, ids), trained)
    assert open_machine(str(desk / "adapter"), device="cpu").machine.context == 128 - 5


@pytest.mark.parametrize("kind", ["prompt", "p-tuning", "prefix"])
def test_generate_eval_and_a_refused_merge(desk: Path, write: Write, call: Call, kind: str) -> None:
    tasks = [{"type": "loss", "data": "validation"}, {"type": "exact_match", "data": "validation"}, {"type": "label_ranking", "data": "validation"}]  # fmt: skip
    recipe = write(
        training=TRAINING | {"max_steps": 2}, adapter=ADAPTERS[kind], evaluation={"preserve": [], "tasks": tasks}
    )
    said = call("train", recipe, "--run", "runs/v")
    assert said.code == 0, said.err
    answers = []
    assert call("export", "runs/v", "adapter").code == 0
    for model in ("runs/v", "adapter"):
        said = call("generate", model, "--prompt", "case number 3", "--max-new-tokens", "4", "--temperature", "0")
        assert said.code == 0, said.err
        answers.append(said.out)
    assert answers[0] == answers[1]
    scored = call("eval", "runs/v", recipe, "--json")
    assert scored.code == 0, scored.err
    call("export", "runs/v", "merged", "--merge").refuses(2, f"`{kind}`", "cannot be merged", "leave --merge out")
    card = (desk / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "5 virtual tokens" in card
    assert 'library_name: "peft"' in card


@pytest.mark.parametrize(
    ("adapter", "needles"),
    [
        ({"type": "prefix", "num_tokens": 127}, ("no example has room", "adapter.num_tokens", "usual are 5 to 100")),
        (
            {"type": "prompt", "num_tokens": 120},
            ("longer than the 8 tokens that 120 virtual tokens leave of the context", "adapter.num_tokens"),
        ),
        ({"type": "prompt", "init_text": ""}, ("`init_text` is empty",)),
        ({"type": "prefix", "projection": True, "init_text": "Which queue?"}, ("cannot be combined",)),
    ],
)
def test_what_leaves_no_room_is_refused_before_anything_is_loaded(
    desk: Path, write: Write, call: Call, adapter: dict[str, Any], needles: tuple[str, ...]
) -> None:
    call("train", write(adapter=adapter), "--run", "runs/v").refuses(2, *needles)
    assert not (desk / "runs").exists()
