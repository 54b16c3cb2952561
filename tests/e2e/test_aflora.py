"""AFLoRA from a recipe: what is frozen when, a child that goes on, a kill, answers, export, merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.desk import Call, Write
from tests.e2e.processes import ended, hold_at, metrics, result, started, wait_for
from tests.e2e.test_families import our_logits
from tunesmith.models.loading import load_model
from tunesmith.workshop.export import export
from tunesmith.workshop.machinery import attach_saved
from tunesmith.workshop.opening import open_machine

RUN, WHOLE = Path("runs/desk"), Path("whole")
ADAPTER = {"type": "aflora", "window": 2, "freeze_from": 0.0, "freeze_by": 0.75, "boundaries": 3, "procedure": "paper"}
TRAINING = {
    "max_steps": 8, "batch_size": 4, "samples": 0, "learning_rate": 2e-3, "warmup": 0, "checkpoint_every": 2,
    "evaluate_every": 4, "keep_checkpoints": 9,
}  # fmt: skip
"""Boundaries at steps 2, 4 and 6, from 0: shares 0.70, 0.96 and all."""


def _lines(name: str, run: Path = RUN) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text(encoding="utf-8").splitlines()]


def _sizes(run: Path = RUN) -> list[int]:
    return [line["trained_parameters"] for line in _lines("metrics.jsonl", run) if "trained_parameters" in line]


def _hashes(run: Path, step: int) -> dict[str, str]:
    manifest = json.loads((run / "checkpoints" / f"{step:08d}" / "manifest.json").read_text(encoding="utf-8"))
    return {name: item["sha256"] for name, item in manifest["files"].items() if name != "state.json"}


@pytest.mark.parametrize("procedure", ["paper", "released"])
def test_train_answer_export_and_merge(desk: Path, call: Call, write: Write, procedure: str) -> None:
    recipe = write(adapter=ADAPTER | {"procedure": procedure}, training=TRAINING)
    planned = call("plan", recipe, "--json").json["parameters"]
    done = call("train", recipe)
    assert done.code == 0, done.err
    sizes = _sizes()
    assert (sizes[0], sizes[-1]) == (planned["trainable"], planned["at_end"])
    assert sizes == sorted(sizes, reverse=True)
    events = [line for line in _lines("events.jsonl") if line["kind"] == "matrices_frozen"]
    assert (
        {line["step"] for line in events}
        == {step for step in range(1, 8) if sizes[step] != sizes[step - 1]}
        <= {2, 4, 6}
    )
    assert json.loads((RUN / "recipe.json").read_text(encoding="utf-8"))["adapter"]["procedure"] == procedure
    page = (RUN / "report.html").read_text(encoding="utf-8")
    assert "Trained parameters, average over the steps" in page
    assert f"AFLoRA adapter of rank 4, {procedure} procedure" in (RUN / "card.md").read_text(encoding="utf-8")
    assert call("generate", RUN, "--prompt", "case number 3: please look at it").code == 0
    ids = torch.randint(8, 8192, (40,), generator=torch.Generator().manual_seed(1))
    base = load_model(desk / "tiny")
    untouched = our_logits(base, ids)
    trained = our_logits(open_machine(str(RUN), device="cpu").machine.model, ids)
    assert relative(untouched, trained) > 1e-3
    assert all(gate.passed for gate in export(RUN, desk / "adapter").gates)
    assert json.loads((desk / "adapter/adapter_config.json").read_text(encoding="utf-8"))["peft_type"] == "LORA"
    attach_saved(base, desk / "adapter")
    assert relative(our_logits(base, ids), trained) < 1e-5
    assert all(gate.passed for gate in export(RUN, desk / "merged", merge=True).gates)
    assert relative(our_logits(load_model(desk / "merged"), ids), trained) < 1e-5


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("at", [3, 4, 6])
def test_a_child_goes_on_where_it_was(desk: Path, call: Call, write: Write, at: int) -> None:
    """From within a window, at a boundary and after the last: it ends with the bits of the whole run."""
    recipe = write(adapter=ADAPTER, training=TRAINING | {"checkpoint_every": 1})
    assert call("train", recipe).code == 0
    said = call("train", recipe, "--fork", f"runs/desk@{at}", "--run", "runs/child")
    assert said.code == 0, said.err
    assert _hashes(Path("runs/child"), 8) == _hashes(RUN, 8)
    assert _sizes(Path("runs/child")) == _sizes()[at:]


def test_a_child_under_another_rule_starts_it_anew(desk: Path, call: Call, write: Write) -> None:
    """Behind the last boundary all is frozen at once."""
    recipe = write(adapter=ADAPTER, training=TRAINING)
    assert call("train", recipe).code == 0
    said = call("train", recipe, "adapter.procedure=released", "--fork", "runs/desk@4", "--run", "runs/child")
    assert said.code == 0, said.err
    assert "what is frozen starts anew: `adapter` is not the parent's" in said.err
    assert _sizes(Path("runs/child"))[-1] == _sizes()[-1]


def test_killed_behind_a_boundary_it_goes_on_to_the_same_bits(desk: Path, call: Call, write: Write) -> None:
    recipe = write(adapter=ADAPTER | {"dropout": 0.1}, training=TRAINING | {"checkpoint_every": 3})
    assert call("train", recipe, "--run", WHOLE).code == 0
    with started(desk, "train", recipe, code=hold_at(5)) as process:
        wait_for((desk / "arrived").exists, process)
        process.kill()
        ended(process)
    assert call("train", recipe).code == 0
    assert result(RUN) == result(WHOLE)
    assert metrics(RUN) == metrics(WHOLE)


def test_a_schedule_of_layers_beside_it_is_refused(desk: Path, call: Call, write: Write) -> None:
    recipe = write(adapter=ADAPTER, training=TRAINING | {"freezing": {"type": "freezeout"}})
    call("plan", recipe).refuses(2, "freezes by a rule of its own", "training.freezing")
