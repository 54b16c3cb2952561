"""`runs reproduce RUN`: the same bits in another process, or the first step that differs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.desk import ROWS, Call, Write, torn, write_rows
from tunesmith.registry import run_folder

RUN = Path("runs/desk")
AGAIN = Path("runs/desk-reproduced")
TRAINING = {
    "max_steps": 7, "batch_size": 4, "samples": 2, "learning_rate": 1e-3, "checkpoint_every": 3, "evaluate_every": 3,
    "early_stopping": {"patience": 5},
}  # fmt: skip


def _metrics(run: Path = RUN) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _change(path: Path, change: Callable[[Any], None]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    values.pop("seal", None)
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def _cli(*arguments: str, threads: int = 1) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "tunesmith", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


@pytest.fixture
def trained(desk: Path, call: Call, write: Write) -> str:
    """A finished run with dropout, packs, and early stopping that chose a best step; its recipe."""
    adapter = {"type": "lora", "rank": 2, "dropout": 0.1}
    recipe = write(training=TRAINING, adapter=adapter)
    assert call("train", recipe).code == 0
    return recipe


def test_equal_in_another_process(trained: str) -> None:
    done = _cli("runs", "reproduce", str(RUN), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {
        "run": str(RUN), "folder": None, "steps": 7, "first": None, "environment": [], "notes": [], "equal": True,
    }  # fmt: skip
    assert not AGAIN.exists()
    assert "training: step 7 of 7" in done.stderr
    assert "scoring" not in done.stderr


def test_a_folder_that_is_named_is_kept_and_holds_the_same(call: Call, trained: str) -> None:
    said = call("runs", "reproduce", "desk", "--into", "again")
    assert said.code == 0, said.err
    assert said.out.splitlines() == [
        "equal: 7 steps, their validation losses and the trained tensors, to the bit", "run: again",
    ]  # fmt: skip
    times = {"seconds", "tokens_per_second"}
    for one, other in zip(_metrics(), _metrics(Path("again")), strict=True):
        assert {key: one[key] for key in one.keys() - times} == {key: other[key] for key in other.keys() - times}
    assert not Path("again/scorecards/base.json").exists()
    assert call("runs", "show", "again").code == 0
    call("runs", "reproduce", RUN, "--into", "again").refuses(2, "holds a run already", "at again", "--into")
    call("runs", "reproduce", RUN, "--into", RUN).refuses(2, "holds a run already", f"at {RUN}", "--into")


def _tampered(step: int, key: str, value: Any) -> None:
    lines = _metrics()
    for line in lines:
        if line["step"] == step and key in line:
            line[key] = value(line[key])
    (RUN / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize(("step", "key"), [(5, "loss"), (1, "grad_norm"), (3, "validation_loss"), (7, "tokens")])
def test_a_tampered_number_is_found_at_its_step(call: Call, trained: str, step: int, key: str) -> None:
    real = next(line[key] for line in _metrics() if line["step"] == step and key in line)
    wrong = real + 1 if key == "tokens" else real * (1 + 2**-50)
    assert wrong != real
    _tampered(step, key, lambda _: wrong)
    said = call("runs", "reproduce", RUN, "--json")
    said.refuses(
        3, "the run is not reproduced", f"step {step}: {key.replace('_', ' ')}", repr(wrong), repr(real), f"at {RUN}"
    )
    assert said.json["first"] == {"step": step, "what": key, "recorded": wrong, "found": real}
    assert said.json["equal"] is False
    assert said.json["folder"] == str(AGAIN)
    assert json.loads((AGAIN / "status.json").read_text(encoding="utf-8"))["status"] == "stopped"
    assert max(line["step"] for line in _metrics(AGAIN)) == step  # it does not train on after a difference
    call("runs", "reproduce", RUN).refuses(2, "holds a run already", f"at {AGAIN}", "remove it")


def test_a_line_that_is_gone_is_found(call: Call, trained: str) -> None:
    lines = [line for line in _metrics() if not (line["step"] == 4 and "loss" in line)]
    (RUN / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    call("runs", "reproduce", RUN).refuses(3, "step 4: the line 'nothing' -> 'a line'")


def test_another_seed_is_found_at_the_first_step(call: Call, trained: str) -> None:
    _change(RUN / "plan.json", lambda plan: plan["settings"].update(seed=5))
    call("runs", "reproduce", RUN).refuses(3, "the first difference is at step 1: ")


def test_another_rate_is_found_where_it_first_shows(call: Call, trained: str) -> None:
    _change(RUN / "plan.json", lambda plan: plan["settings"].update(schedule="wsd"))
    call("runs", "reproduce", RUN).refuses(3, "the first difference is at step 3: learning rate ")


def test_another_number_of_threads_is_named(call: Call, trained: str) -> None:
    _change(RUN / "plan.json", lambda plan: plan["settings"].update(threads=2))
    _tampered(2, "loss", lambda loss: loss * 2)  # so small a model may give the same bits on two threads
    said = call("runs", "reproduce", RUN, "--json")
    assert said.code == 3
    assert said.json["environment"] == ["threads: 1 -> 2"]
    assert "what may explain it" in said.err
    assert said.json["first"]["step"] <= 2


def test_other_weights_with_the_same_numbers_are_found(call: Call, trained: str) -> None:
    shutil.rmtree(RUN / "checkpoints")
    assert call("runs", "reproduce", RUN).code == 0  # the files of the result stand for them
    file = RUN / "adapter" / "adapter_model.safetensors"
    payload = bytearray(file.read_bytes())
    payload[-1] ^= 1
    file.write_bytes(payload)
    call("runs", "reproduce", RUN).refuses(3, "sha256 of adapter/adapter_model.safetensors")


def test_an_interrupted_repetition_goes_on(call: Call, trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    append = run_folder.RunFolder.append_metric

    def at_step_four(self: run_folder.RunFolder, line: dict[str, Any]) -> None:
        append(self, line)
        if line["step"] == 4 and "loss" in line:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "append_metric", at_step_four)
        call("runs", "reproduce", RUN).refuses(130, "after step 4 of 7", "same command")
    assert json.loads((AGAIN / "status.json").read_text(encoding="utf-8"))["status"] == "interrupted"
    said = call("runs", "reproduce", RUN)
    assert said.code == 0, said.err
    assert "resumed from the checkpoint of step 4" in said.err
    assert not AGAIN.exists()
    assert torn(Path()) == []


def test_what_cannot_be_reproduced(desk: Path, call: Call, trained: str) -> None:
    call("runs", "reproduce", "runs/none").refuses(2, "no such run folder", "at runs/none")
    kept = (RUN / "status.json").read_text(encoding="utf-8")
    _change(RUN / "status.json", lambda status: status.update(status="stopped"))
    call("runs", "reproduce", RUN).refuses(2, "stopped, not done", f"at {RUN}", "finish it first")
    (RUN / "status.json").write_text(kept, encoding="utf-8")

    write_rows(desk / "rows.jsonl", [{"text": "new", "label": "repair"}, *ROWS[1:]])
    call("runs", "reproduce", RUN).refuses(2, "the data changed", "rows.jsonl: ", "put it back as it was")
    (desk / "rows.jsonl").unlink()
    call("runs", "reproduce", RUN).refuses(2, "rows.jsonl")
    write_rows(desk / "rows.jsonl", ROWS)
    (desk / "tiny").rename(desk / "moved")
    call("runs", "reproduce", RUN).refuses(2, "no model `tiny`")
    (desk / "moved").rename(desk / "tiny")
    _change(RUN / "recipe.json", lambda recipe: recipe.update(seed=9))
    call("runs", "reproduce", RUN).refuses(2, "do not belong together: seed: 9 -> 0", f"at {RUN}")
    assert not AGAIN.exists()


def test_a_run_of_a_gpu_needs_one(call: Call, trained: str) -> None:
    _change(RUN / "plan.json", lambda plan: plan["settings"].update(device="cuda"))
    call("runs", "reproduce", RUN).refuses(3, "trained on a CUDA device", f"at {RUN}")
    assert not AGAIN.exists()


def test_a_child_is_reproduced_from_its_own_start_or_its_parents(call: Call, trained: str) -> None:
    child = Path("runs/child")
    arguments = ("train", trained, "training.max_steps=11", "--fork", RUN, "--run", child)
    assert call(*arguments, "training.keep_checkpoints=9").code == 0
    assert call("runs", "reproduce", child).code == 0
    shutil.rmtree(child / "checkpoints" / "00000007")
    assert call("runs", "reproduce", child).code == 0  # from the parent's
    RUN.rename("gone")
    call("runs", "reproduce", child).refuses(
        2, "the run is a child", "parent's of step 7 cannot be used", "checkpoints"
    )


def test_a_run_that_went_back_is_reproduced(call: Call, write: Write) -> None:
    """A rollback takes lines back that were told: only the whole can be compared."""
    guards = {
        "spikes": {"window": 8, "threshold": 0.01, "action": "rollback"},
        "max_rollbacks": 9,
        "rollback_window": 1,
    }
    recipe = write(training=TRAINING | {"guards": guards, "max_steps": 9})
    assert call("train", recipe).code == 0
    assert any("refused_by" in line for line in _metrics())
    assert call("runs", "reproduce", RUN).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_two_processes_with_the_recorded_threads_have_the_same_bits(desk: Path, write: Write, threads: int) -> None:
    """Whatever the second process would choose by itself, the run's record decides."""
    recipe = write(training=TRAINING, machine={}, adapter={"type": "full"})
    hashes = []
    for name in ("a", "b"):
        done = _cli("train", recipe, "--run", name, threads=threads)
        assert done.returncode == 0, done.stderr
        manifest = json.loads(Path(f"{name}/checkpoints/00000007/manifest.json").read_text(encoding="utf-8"))
        hashes.append({file: item["sha256"] for file, item in manifest["files"].items() if file != "state.json"})
    assert hashes[0] == hashes[1]
    plan = json.loads(Path("a/plan.json").read_text(encoding="utf-8"))
    facts = json.loads(Path("a/environment.json").read_text(encoding="utf-8"))
    assert plan["settings"]["threads"] == facts["threads"] == threads
    done = _cli("runs", "reproduce", "a", "--json", threads=3 - threads)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["environment"] == []


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, which this machine does not have")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_equal_on_cuda_in_another_process(desk: Path, call: Call, write: Write, precision: str) -> None:
    machine = {"device": "cuda", "deterministic": True}
    recipe = write(
        training=TRAINING | {"precision": precision},
        adapter={"type": "lora", "rank": 2, "dropout": 0.1},
        machine=machine,
    )
    assert call("train", recipe).code == 0
    done = _cli("runs", "reproduce", str(RUN), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["equal"]
