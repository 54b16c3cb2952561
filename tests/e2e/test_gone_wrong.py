"""Numbers gone wrong on the embedded model: a rate 100 times too high, a poisoned row, a corrupt shard."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.desk import Call, Write
from tunesmith import embedded

RUN = Path("runs/desk")


def _model_with(folder: Path, name: str, index: int, payload: bytes) -> Path:
    """A copy of the embedded model in which one bf16 or fp32 value of a tensor is replaced."""
    like = embedded.model_folder("tunesmith-base-8m")
    assert like is not None
    shutil.copytree(like, folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    entry = json.loads(content[8 : 8 + length])[name]
    size = {"F32": 4, "BF16": 2}[entry["dtype"]]
    start = 8 + length + entry["data_offsets"][0] + index * size
    content[start : start + size] = payload[:size] if size == 2 else (b"\0\0" + payload)[:4]
    path.write_bytes(content)
    return folder


NAN, HUGE = b"\xc0\x7f", b"\x7f\x7f"
"""Not a number, and the largest number of bf16: the two high bytes of the same in fp32."""


@pytest.mark.parametrize("payload", [NAN, HUGE], ids=["nan", "huge"])
def test_a_corrupt_shard_does_not_start(desk: Path, call: Call, write: Write, payload: bytes) -> None:
    _model_with(desk / "broken", "model.layers.2.mlp.up_proj.weight", 77, payload)
    said = call("train", write(model="broken"), "--json")
    fault = "not finite" if payload == NAN else "damaged: the largest is 3.39e+38"
    named = f"the weights of `model.layers.2.mlp.up_proj.weight` are {fault}"
    said.refuses(2, named, "broken", "copy the model again")
    assert not (desk / "runs").exists()


def test_a_damaged_row_of_the_embedding_is_found_though_no_text_uses_it(desk: Path, call: Call, write: Write) -> None:
    _model_with(desk / "broken", "model.embed_tokens.weight", 8000 * 256 + 5, HUGE)
    call("train", write(model="broken")).refuses(2, "`model.embed_tokens.weight` are damaged", "copy the model again")


def _poisoned(desk: Path, write: Write, monkeypatch: pytest.MonkeyPatch, **guards: Any) -> str:
    """A row whose loss is not a number, whatever the weights."""
    import torch

    from tunesmith.objectives.next_token import NextToken

    original = NextToken.__call__

    def poisoned(self: Any, model: Any, batch: Any, seen: Any) -> Any:
        loss = original(self, model, batch, seen)
        if (7 in batch.rows and torch.is_grad_enabled()) or batch.rows == (7,):
            loss.totals["loss"] = loss.totals["loss"] * float("nan")
        return loss

    monkeypatch.setattr(NextToken, "__call__", poisoned)
    training = {"max_steps": 12, "batch_size": 4, "samples": 0, "learning_rate": 1e-3, "guards": guards}
    return write(data__validation=0, evaluation__tasks=[], training=training)


def test_a_poisoned_row_is_named_by_file_and_line(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _poisoned(desk, write, monkeypatch)
    said = call("train", recipe).refuses(4, "1 of the step's rows are not finite by themselves", "rows rows.jsonl:8")
    assert "training.guards.non_finite=skip --run NAME" in said.err


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_poisoned_row_is_left_out_and_said(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    recipe = _poisoned(desk, write, monkeypatch, non_finite=policy, max_rollbacks=9, rollback_window=0)
    assert call("train", recipe).code == 0
    events = [json.loads(line) for line in (RUN / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    kind = {"skip": "step_skipped", "rollback": "rolled_back"}[policy]
    assert len([event for event in events if event["kind"] == kind]) == 2, "two epochs of 24 rows in twelve steps"
    lines = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "learning_rate" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert len([line for line in steps if "refused_by" in line]) == 2
    assert json.loads((RUN / "status.json").read_text(encoding="utf-8"))["status"] == "done"


@pytest.mark.slow
def test_a_rate_a_hundred_times_too_high_is_divergence(desk: Path, call: Call) -> None:
    """The starter's recipe with its rule's rate times 100."""
    assert call("init", "start").code == 0
    said = call(
        "train", "start/recipe.yaml", "--run", "runs/desk", "training.learning_rate=0.15", "training.epochs=null",
        "training.max_steps=80", "training.samples=0", "evaluation.tasks=[]", "evaluation.preserve=[]",
    )  # fmt: skip
    said.refuses(
        4, "diverged", "learning rate is too high", "try a tenth of the rate: `training.learning_rate=1.5e-02`"
    )


def test_a_run_too_short_for_the_guard_that_ends_worse_is_no_success(desk: Path, call: Call) -> None:
    """Twenty steps: the loop compares medians of 32. The way out that the hint names works."""
    assert call("init", "start").code == 0
    short = (
        "training.epochs=null", "training.max_steps=20", "training.samples=0", "evaluation.tasks=[]", "evaluation.preserve=[]",
        "adapter.rank=8",
    )  # fmt: skip
    said = call("train", "start/recipe.yaml", "--run", RUN, "training.learning_rate=0.5", *short)
    said.refuses(4, "training has diverged: the held-out loss rose from", "no result is written", "--run NAME")
    assert json.loads((RUN / "status.json").read_text(encoding="utf-8"))["status"] == "stopped"
    assert not (RUN / "adapter").exists()
    again = call("train", "start/recipe.yaml", "--run", RUN, "training.learning_rate=0.5", *short)
    again.refuses(4, "training has diverged", "no result is written")
    warned = call(
        "train",
        "start/recipe.yaml",
        "--run",
        "runs/warn",
        "training.learning_rate=0.5",
        "training.guards.divergence=warn",
        *short,
    )
    assert warned.code == 0
    assert "writes the result all the same" in warned.err
    good = call("train", "start/recipe.yaml", "--run", "runs/good", *short)
    assert good.code == 0, good.err


def test_a_rate_beyond_all_reason_gets_no_tenth(desk: Path, call: Call, write: Write) -> None:
    said = call("train", write(training={"learning_rate": 1e300, "max_steps": 8, "batch_size": 4, "samples": 0}))
    said.refuses(4, "leave `training.learning_rate` out", "--run NAME")
    other = call("train", write(training={"learning_rate": 1e-3, "max_steps": 8, "batch_size": 4, "samples": 0}))
    other.refuses(2, "another recipe", "name another folder with --run")
    assert "--fork" not in other.err, "there is no checkpoint to start from"
