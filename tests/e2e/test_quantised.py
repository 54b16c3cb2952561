"""QLoRA and its kin from a recipe: train, be killed, resume, answer, export, merge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.e2e.desk import Call, Write
from tests.e2e.processes import ended, hold_at, metrics, result, started, wait_for
from tunesmith.data.loader import make_batch
from tunesmith.models.loading import load_model
from tunesmith.models.quantised import QuantisedLinear
from tunesmith.workshop.opening import open_machine

pytest.importorskip("bitsandbytes", reason="needs the extra `quantise`")
RUN, WHOLE = Path("runs/desk"), Path("whole")
TRAINING = {
    "max_steps": 8,
    "checkpoint_every": 3,
    "evaluate_every": 4,
    "samples": 2,
    "batch_size": 4,
    "learning_rate": 1e-3,
}
ADAPTERS = [
    {"type": "lora", "rank": 4},
    {"type": "lora", "rank": 4, "dora": True},
    {"type": "gralora", "rank": 4, "blocks": 2, "alpha": 8.0},
    {"type": "aflora", "window": 2, "freeze_by": 0.7},
]


def _recipe(write: Write, kind: str, adapter: dict[str, object]) -> str:
    return write(model={"name": "tiny", "quantise": kind}, adapter=adapter, training=TRAINING)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=["lora", "dora", "gralora", "aflora"])
@pytest.mark.parametrize("kind", ["nf4", "int8", "fp8"])
def test_train_answer_export_and_merge(
    desk: Path, call: Call, write: Write, kind: str, adapter: dict[str, object]
) -> None:
    done = call("train", _recipe(write, kind, adapter))
    assert done.code == 0, done.err
    losses = [line["loss"] for line in metrics(RUN) if "loss" in line]
    assert losses[-1] < losses[0]
    assert call("generate", RUN, "--prompt", "case number 3: please look at it").code == 0
    exported = call("export", RUN, "out", "--json")
    assert exported.code == 0, exported.err
    assert torch.equal(_logits("out"), _logits(str(RUN))), "the adapter alone opens on the base that it was trained on"
    merged = call("export", RUN, "merged", "--merge", "--json")
    assert merged.code == 0, merged.err
    gates = merged.json["gates"]
    assert gates
    assert all(gate["passed"] for gate in gates)
    model = load_model(Path("merged"))
    assert not any(isinstance(module, QuantisedLinear) for module in model.modules())
    base = load_model(Path("tiny"))
    name = "model.layers.0.mlp.up_proj.weight"
    difference = model.hf.get_parameter(name).detach() - base.hf.get_parameter(name).detach()
    assert float(difference.abs().max()) > 0, "the merged weight is that of the unpacked base with the update"


@torch.inference_mode()
def _logits(model: str) -> torch.Tensor:
    opened = open_machine(model, device="cpu").machine.model
    row = np.arange(20, 50, dtype=np.uint32)
    return opened.head().logits(opened.hidden(make_batch([(row, row > 0)], [0])))


def test_killed_it_goes_on_to_the_same_bits(desk: Path, call: Call, write: Write) -> None:
    recipe = _recipe(write, "nf4", {"type": "lora", "rank": 4, "dropout": 0.1})
    assert call("train", recipe, "--run", WHOLE).code == 0
    with started(desk, "train", recipe, code=hold_at(5)) as process:
        wait_for((desk / "arrived").exists, process)
        process.kill()
        ended(process)
    assert call("train", recipe).code == 0
    assert result(RUN) == result(WHOLE)
    assert metrics(RUN) == metrics(WHOLE)


@pytest.mark.parametrize("scope", [{"type": "full"}, {"type": "partial", "last_layers": 1}])
def test_weights_that_train_cannot_be_packed(desk: Path, call: Call, write: Write, scope: dict[str, object]) -> None:
    said = call("train", _recipe(write, "nf4", scope))
    said.refuses(
        2,
        "`quantise: nf4` packs the base's weights",
        f"`adapter.type: {scope['type']}` trains them",
        "recipe.yaml",
        "lora",
    )
    assert not RUN.exists()


def test_another_packing_is_another_run(desk: Path, call: Call, write: Write) -> None:
    adapter = {"type": "lora", "rank": 4}
    assert call("train", _recipe(write, "int8", adapter)).code == 0
    call("train", _recipe(write, "fp8", adapter)).refuses(2, "another recipe", "model.quantise: 'int8' -> 'fp8'")


def test_the_plan_counts_fewer_bytes(desk: Path, call: Call, write: Write) -> None:
    """An eighth of four bytes for the linear layers; the rest stays."""
    found = {}
    for kind in ("none", "int8", "nf4"):
        said = call("plan", _recipe(write, kind, {"type": "lora", "rank": 4}), "--json")
        found[kind] = said.json["memory"]["parts"]["weights"]
    model = load_model(Path("tiny"))
    linear = sum(
        module.weight.numel()
        for name, module in model.hf.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    )
    assert found["none"] - found["nf4"] == pytest.approx(linear * (4 - 0.516), rel=0.01)
    assert found["none"] - found["int8"] == pytest.approx(linear * 3, rel=0.05)


def test_a_missing_library_is_said_before_anything_is_written(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    said = call("train", _recipe(write, "nf4", {"type": "lora", "rank": 4}))
    said.refuses(2, "needs bitsandbytes", "tunesmith[quantise]")
    assert not RUN.exists()
    assert json.loads(call("plan", _recipe(write, "int8", {"type": "lora"}), "--json").out)
