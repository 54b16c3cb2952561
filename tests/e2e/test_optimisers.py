"""Optimisers with compact moments, from a recipe: a kill, a child, and what a machine without a card refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from tests.e2e.desk import Call, Write
from tests.e2e.processes import ended, hold_at, metrics, started, wait_for

RUN, WHOLE, LAST = Path("runs/desk"), Path("whole"), "checkpoints/00000008"
TRAINING: dict[str, Any] = {
    "max_steps": 8, "batch_size": 4, "samples": 0, "learning_rate": 1e-3, "checkpoint_every": 3, "evaluate_every": 4,
    "optimiser": "adamw_8bit",
}  # fmt: skip


def test_killed_it_goes_on_to_the_same_bits(desk: Path, call: Call, write: Write) -> None:
    """The embedding's moments are packed; norms keep theirs in fp32."""
    recipe = write(adapter={"type": "full"}, training=TRAINING)
    assert call("train", recipe, "--run", WHOLE).code == 0
    with started(desk, "train", recipe, code=hold_at(5)) as process:
        wait_for((desk / "arrived").exists, process)
        process.kill()
        ended(process)
    assert call("train", recipe).code == 0
    assert metrics(RUN) == metrics(WHOLE)
    for name in ("trained.safetensors", "optimiser.safetensors"):
        assert (RUN / LAST / name).read_bytes() == (WHOLE / LAST / name).read_bytes()
    state = load_file(RUN / LAST / "optimiser.safetensors")
    assert str(state["model.embed_tokens.weight/exp_avg_codes"].dtype) == "uint8"
    assert str(state["model.norm.weight/exp_avg"].dtype) == "float32"


def test_the_plan_asks_for_less_memory(desk: Path, call: Call, write: Write) -> None:
    parts = [
        call("plan", write(adapter={"type": "full"}, training=TRAINING | {"optimiser": name}), "--json").json["memory"][
            "parts"
        ]
        for name in ("adamw", "adamw_8bit")
    ]
    assert parts[1]["optimiser"] < 0.3 * parts[0]["optimiser"]


def test_a_child_with_other_moments_starts_them_anew(desk: Path, call: Call, write: Write) -> None:
    recipe = write(training=TRAINING)
    assert call("train", recipe).code == 0
    said = call(
        "train",
        recipe,
        "training.optimiser=adamw",
        "training.max_steps=10",
        "--fork",
        "runs/desk@8",
        "--run",
        "runs/child",
    )
    assert said.code == 0, said.err
    assert "the optimiser is adamw, the parent's was adamw_8bit: its state starts anew" in said.err


def test_moments_on_the_host_are_refused_where_they_are_there_anyway(desk: Path, call: Call, write: Write) -> None:
    recipe = write(training=TRAINING | {"offload_optimiser": True})
    call("plan", recipe).refuses(3, "on cpu they are there already", "training.offload_optimiser", "adamw_8bit")
    call("plan", write(training=TRAINING | {"offload_optimiser": True, "optimiser": "sgd"})).refuses(
        2, "moves AdamW's moments"
    )
