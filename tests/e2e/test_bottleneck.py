"""Bottleneck adapters through the whole of it: cut and resumed, answering, scored, exported, reproduced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.desk import Call, Write
from tests.e2e.test_families import cut_and_whole, losses, our_logits, weights
from tunesmith.errors import RunError
from tunesmith.models.loading import load_model
from tunesmith.recipe.codec import load
from tunesmith.registry.run_folder import RunFolder
from tunesmith.workshop.export import export
from tunesmith.workshop.machinery import attach_saved
from tunesmith.workshop.opening import open_machine
from tunesmith.workshop.planning import plan_recipe

ADAPTER: dict[str, Any] = {
    "type": "bottleneck", "placement": "hybrid", "layer_norm": "before", "dropout": 0.1, "also_train": ["model.norm.weight"],
    "train_tokens": ["<|im_end|>"],
}  # fmt: skip
TRAINING = {"max_steps": 6, "batch_size": 4, "samples": 0, "learning_rate": 1e-2, "checkpoint_every": 2}


def test_cut_and_resumed_it_has_the_same_bits_and_exports(desk: Path, write: Write, call: Call) -> None:
    plan = plan_recipe(load(write(training=TRAINING, adapter=ADAPTER)))
    cut, expected = cut_and_whole(plan, desk)
    ours, theirs = weights(cut), weights(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())
    assert plan.parameters.trainable == sum(tensor.numel() for tensor in theirs.values())

    ids = torch.randint(8, 8192, (40,), generator=torch.Generator().manual_seed(1))
    trained = our_logits(open_machine(str(cut.path), device="cpu").machine.model, ids)
    base = load_model(desk / "tiny")
    assert float((our_logits(base, ids) - trained).abs().max()) > 1e-2 * float(trained.abs().max())
    result = export(cut.path, desk / "adapter")
    assert [gate.passed for gate in result.gates] == [True, True]
    assert any("PEFT has no bottleneck adapters" in note for note in result.notes)
    attach_saved(base, desk / "adapter")
    assert torch.equal(our_logits(base, ids), trained)
    with pytest.raises(RunError, match="no weight of the base can hold") as caught:
        export(cut.path, desk / "merged", merge=True)
    assert "leave --merge out" in caught.value.hint
    assert not (desk / "merged").exists()
    call("export", "cut", "merged", "--merge").refuses(2, "`bottleneck` adds computation", "--merge")


def test_generate_eval_and_reproduce(desk: Path, write: Write, call: Call) -> None:
    recipe = write(training=TRAINING | {"max_steps": 3}, adapter=ADAPTER)
    assert call("train", recipe, "--run", "runs/b").code == 0
    assert call("generate", "runs/b", "--prompt", "case number 3", "--max-new-tokens", "3").code == 0
    scored = call("eval", "runs/b", recipe, "--json")
    assert scored.code == 0, scored.err
    command = [sys.executable, "-m", "tunesmith", "runs", "reproduce", "runs/b", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["equal"] is True


def test_on_a_packed_base(desk: Path, write: Write, call: Call) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra `quantise`")
    recipe = write(training=TRAINING, adapter=ADAPTER | {"also_train": []}, model={"name": "tiny", "quantise": "nf4"})
    done = call("train", recipe, "--run", "runs/b")
    assert done.code == 0, done.err
    found = [line[1] for line in losses(RunFolder.open(desk / "runs" / "b"))]
    assert found[-1] < found[0]
    exported = call("export", "runs/b", "out", "--json")
    assert exported.code == 0, exported.err
    assert all(gate["passed"] for gate in exported.json["gates"])
