"""`torchrun -m tunesmith train`: two ranks on one machine, through the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.desk import Call, Write, torn
from tunesmith import launcher
from tunesmith.cli.launch import without_nproc

RUN = Path("runs/desk")
TRAINING = {
    "max_steps": 8, "batch_size": 6, "samples": 0, "learning_rate": 1e-3, "checkpoint_every": 2, "evaluate_every": 4,
    "schedule": "constant",
}  # fmt: skip
CPU = {"device": "cpu"}


def _command(*arguments: str, ranks: int = 2) -> list[str]:
    options = ["--standalone", "--nproc-per-node", str(ranks)]
    # without the `--` the launcher takes `--run` for an abbreviation of its own options
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", "--", "tunesmith", *arguments]


def _torchrun(*arguments: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        _command(*arguments, ranks=ranks), capture_output=True, text=True, timeout=240, check=False, env=environment
    )


def _losses(run: Path = RUN) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def _validation(run: Path = RUN) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["validation_loss"] for line in lines if "validation_loss" in line]


def _file(name: str) -> Any:
    return json.loads((RUN / name).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_two_ranks_train_as_one_and_a_finished_run_has_nothing_to_do(desk: Path, call: Call, write: Write) -> None:
    recipe = write(training=TRAINING, machine=CPU)
    done = _torchrun("train", recipe, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "done"  # one rank speaks
    assert "2 ranks train together; a pass holds at most 3 examples" in done.stderr
    assert done.stderr.count("training: step 8 of 8") == 1
    assert _file("environment.json")["ranks"] == 2
    assert call("train", recipe, "--run", "alone").code == 0
    assert _losses() == pytest.approx(_losses(Path("alone")), rel=1e-5)
    assert _validation() == pytest.approx(_validation(Path("alone")), rel=1e-5)
    again = _torchrun("train", recipe)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr
    call("runs", "reproduce", RUN).refuses(2, "2 ranks trained this run together", f"at {RUN}", "as many ranks")
    child = call("train", recipe, "training.max_steps=10", "--fork", RUN, "--run", "child")
    assert child.code == 0, child.err


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2])
def test_killed_it_goes_on_with_another_number_of_ranks(desk: Path, call: Call, write: Write, first: int) -> None:
    recipe = write(training=TRAINING | {"max_steps": 40}, machine=CPU)
    assert call("train", recipe, "--run", "whole").code == 0
    arguments = ("train", recipe)
    command = _command(*arguments) if first == 2 else [sys.executable, "-m", "tunesmith", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while not any((RUN / "checkpoints").glob("0*/manifest.json")) and process.poll() is None:
            time.sleep(0.01)
        os.kill(_file("lease.json")["pid"], signal.SIGKILL)  # the main rank
        _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    # the other rank says that this one has ended, unless the launcher ends it before it notices
    assert "sorry, something broke" not in err
    if first == 1:
        done = _torchrun(*arguments)
        assert done.returncode == 0, done.stderr
        said = done.stderr
    else:
        again = call(*arguments)
        assert again.code == 0, again.err
        said = again.err
    assert "resumed from the checkpoint of step" in said
    assert f"ranks: {first} -> {3 - first}" in said
    assert _losses() == pytest.approx(_losses(Path("whole")), rel=1e-5)
    assert torn(Path()) == []


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices, which this machine does not have")
def test_two_cards_train_as_one(desk: Path, write: Write) -> None:
    recipe = write(training=TRAINING | {"precision": "fp32"}, machine={"device": "cuda", "deterministic": True})
    done = _torchrun("train", recipe)
    assert done.returncode == 0, done.stderr
    alone = _torchrun("train", recipe, "--run", "alone", ranks=1)
    assert alone.returncode == 0, alone.stderr
    assert _losses() == pytest.approx(_losses(Path("alone")), rel=1e-4)


@pytest.mark.slow
def test_mistakes_are_said(desk: Path, write: Write) -> None:
    recipe = write(training=TRAINING, machine=CPU)
    for words, arguments in {
        "a step has 1 examples, and there are 2 ranks": ("train", recipe, "training.batch_size=1"),
        "1 may have nothing to do": ("train", recipe, "training.batch_size=4", "training.max_steps=2"),
        "`tunesmith runs list` works in one process, and a launcher started 2": ("runs", "list"),
        "unknown key `batches`": ("train", recipe, "training.batches=1"),
    }.items():
        ranks = 3 if "may have" in words else 2
        done = _torchrun(*arguments, ranks=ranks)
        assert words in done.stderr, done.stderr
        assert (done.returncode == 0) == (ranks == 3)
    assert [path.name for path in Path("runs").iterdir()] == ["desk"]


def test_a_verb_that_works_alone_refuses_a_launcher(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for arguments in (("runs", "list"), ("doctor",)):
        call(*arguments).refuses(2, "works in one process, and a launcher started 2", "WORLD_SIZE", "without torchrun")


def test_half_a_launcher_is_said(desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in launcher.VARIABLES:
        if name != "WORLD_SIZE":
            monkeypatch.delenv(name, raising=False)
    call("train", write()).refuses(2, "WORLD_SIZE asks for 2 ranks, and RANK, LOCAL_RANK", "is not set", "torchrun")
    assert not Path("runs").exists()


def _nproc(*arguments: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tunesmith", *arguments, "--nproc", str(ranks)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.slow
def test_nproc_starts_the_ranks_with_one_voice(desk: Path, call: Call, write: Write) -> None:
    recipe = write(training=TRAINING, machine=CPU)
    done = _nproc("train", recipe, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "done"
    assert _file("environment.json")["ranks"] == 2
    assert _file("status.json")["times"]["communication"] > 0
    assert call("train", recipe, "--run", "alone").code == 0
    assert _losses() == pytest.approx(_losses(Path("alone")), rel=1e-5)


@pytest.mark.slow
def test_nproc_hands_signals_on_and_goes_on_with_the_same_command(desk: Path, call: Call, write: Write) -> None:
    recipe = write(training=TRAINING | {"max_steps": 60}, machine=CPU)
    command = [sys.executable, "-m", "tunesmith", "train", recipe, "--nproc", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not any((RUN / "checkpoints").glob("0*/manifest.json")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.count("error: ") == 1, err
    assert _file("status.json")["status"] == "interrupted"
    done = _nproc("train", recipe)
    assert done.returncode == 0, done.stderr
    assert "resumed from the checkpoint of step" in done.stderr
    assert call("train", recipe, "--run", "whole").code == 0
    assert _losses() == pytest.approx(_losses(Path("whole")), rel=1e-5)


@pytest.mark.slow
def test_nproc_ends_with_the_main_ranks_code(desk: Path, write: Write) -> None:
    done = _nproc("train", write(training=TRAINING, machine=CPU), "training.batch_size=1")
    assert done.returncode == 3, done.stderr
    assert "a step has 1 examples, and there are 2 ranks" in done.stderr
    wrong = _nproc("train", write(training=TRAINING, machine=CPU), "training.batches=1")
    assert wrong.returncode == 2
    assert wrong.stderr.count("unknown key `batches`") == 1


def test_nproc_refuses_what_makes_no_sense(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write()
    call("train", recipe, "--nproc", "2", "--detach").refuses(2, "--detach starts one process")
    assert call("train", recipe, "--nproc", "0").code == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    call("train", recipe, "--nproc", "2").refuses(2, "a launcher started 2 ranks already", "leave `--nproc` out")
    assert not Path("runs").exists()


def test_the_option_is_not_handed_on() -> None:
    given = ["--debug", "train", "r.yaml", "--nproc", "4", "a=1", "--nproc=4", "--run", "x y"]
    assert without_nproc(given) == ["--debug", "train", "r.yaml", "a=1", "--run", "x y"]


@pytest.mark.slow
def test_nproc_tells_what_a_rank_that_died_alone_said(
    desk: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that sees another disk than the main one: the run ends, with that rank's words and code."""
    recipe = write(training=TRAINING, machine=CPU)
    sitecustomize = desk / "path" / "sitecustomize.py"
    sitecustomize.parent.mkdir()
    sitecustomize.write_text(
        "import os, sys\nif os.environ.get('RANK') == '1':\n    print('error: this rank has no disk', file=sys.stderr)\n    os._exit(7)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{sitecustomize.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    begun = time.monotonic()
    done = _nproc("train", recipe)
    assert done.returncode == 7
    assert "rank 1: error: this rank has no disk" in done.stderr
    assert time.monotonic() - begun < 90
