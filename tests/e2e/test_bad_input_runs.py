"""Runs that may not start, must stop, or are stopped: exit codes, words, and a folder that goes on or is not there."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.desk import ROWS, Call, Write, remains, torn, write_rows
from tests.faults import FaultyDisk
from tests.tiny import desk_model
from tunesmith.disk import use_disk
from tunesmith.evaluation.scorecard import Scorecard
from tunesmith.registry import line_files, run_folder
from tunesmith.workshop import results, scoring, train
from tunesmith.workshop.machinery import attach

RUN = Path("runs/desk")


def _status() -> dict[str, Any]:
    values: dict[str, Any] = json.loads((RUN / "status.json").read_text(encoding="utf-8"))
    return values


def _metrics_without_times() -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: line[key] for key in line if "second" not in key} for line in lines]


def _goes_on(call: Call, recipe: str) -> None:
    """The same call finishes the run, and once more there is nothing to do."""
    assert call("train", recipe, "--json").json["status"] == "done"
    again = call("train", recipe, "--json")
    assert again.code == 0
    assert "nothing to do" in again.err
    assert again.json["status"] == "done"
    assert torn(Path()) == []


def test_a_finished_run_has_nothing_to_do(desk: Path, call: Call, write: Write) -> None:
    recipe = write()
    _goes_on(call, recipe)
    before = {path: path.stat().st_mtime_ns for path in RUN.rglob("*")}
    assert call("train", recipe).code == 0
    assert before == {path: path.stat().st_mtime_ns for path in RUN.rglob("*")}
    (RUN / "report.html").unlink()  # as a crash between the last status and the page would leave it
    assert call("train", recipe).code == 0
    assert (RUN / "report.html").exists()


def test_what_needs_no_model_loads_no_torch(desk: Path, call: Call, write: Write) -> None:
    recipe = write()
    assert call("train", recipe).code == 0
    for code, arguments, words in (
        (0, ["train", recipe], "nothing to do: runs/desk is finished"),
        (2, ["train", write("other.yaml", adapter__rank=3), "--run", str(RUN)], "adapter.rank: 2 -> 3"),
        (2, ["export", "nosuch", "out"], "there is no such run folder"),
        (0, ["report", "desk"], "report.html"),
    ):
        program = (
            f"import sys; from tunesmith.cli.main import run; assert run({arguments}) == {code}; "
            "assert not {'torch', 'transformers'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert words in done.stdout + done.stderr


def test_a_folder_that_holds_other_files(desk: Path, call: Call, write: Write) -> None:
    RUN.mkdir(parents=True)
    (RUN / "mine.txt").write_text("mine")
    said = call("train", write(), "--json").refuses(2, "holds other files", "at runs/desk", "--run")
    assert set(said.json) == {"error"}
    assert [path.name for path in RUN.iterdir()] == ["mine.txt"]
    said = call("train", write(), "--run", "rows.jsonl").refuses(2, "this is a file", "at rows.jsonl", "--run")
    assert "other files" not in said.err
    assert (desk / "rows.jsonl").is_file()


def test_a_folder_that_holds_another_recipes_run(desk: Path, call: Call, write: Write) -> None:
    recipe = write()
    assert call("train", recipe).code == 0
    call("train", write("other.yaml", adapter__rank=3, seed=4)).refuses(
        2, "adapter.rank: 2 -> 3", "seed: 0 -> 4", "at runs/desk", "--run"
    )
    assert call("train", write("free.yaml", training__log_every=2, machine={"threads": 2})).code == 0
    _goes_on(call, recipe)


def test_another_recipe_is_refused_also_where_the_run_was_cut_off_at_its_creation(
    desk: Path, call: Call, write: Write
) -> None:
    recipe = write()
    assert call("train", recipe).code == 0
    kept = (RUN / "recipe.json").read_bytes()
    shutil.rmtree(RUN)
    RUN.mkdir()
    (RUN / "recipe.json").write_bytes(kept)
    call("train", write("other.yaml", seed=4)).refuses(2, "seed: 0 -> 4")
    _goes_on(call, recipe)


def test_what_a_run_stands_on_may_not_change(desk: Path, call: Call, write: Write) -> None:
    recipe = write()
    assert call("train", recipe).code == 0
    finished = _status()
    write_rows(desk / "rows.jsonl", [*ROWS[:-1], {"text": "new", "label": "repair"}])
    call("train", recipe).refuses(2, "the data changed", "at rows.jsonl", "--run")
    write_rows(desk / "rows.jsonl", ROWS)

    template = desk / "tiny" / "chat_template.jinja"
    kept = template.read_text(encoding="utf-8")
    template.write_text(kept + "\n", encoding="utf-8")
    call("train", recipe).refuses(2, "chat template", "changed", "tiny")
    template.write_text(kept, encoding="utf-8")

    shutil.copytree(desk / "tiny", desk / "kept")
    desk_model(desk / "tiny", desk / "kept", seed=3)
    call("train", recipe).refuses(2, "the base model changed", "tiny", "--run")
    call("generate", RUN, "--prompt", "hello").refuses(2, "the base model changed", "tiny")
    call("export", RUN, "out").refuses(2, "the base model changed", "tiny")
    assert not (desk / "out").exists()
    assert _status() == finished


def test_a_damaged_run_is_a_users_error(desk: Path, call: Call, write: Write) -> None:
    recipe = write()
    assert call("train", recipe).code == 0
    for name, text in (("status.json", "{"), ("environment.json", "{}"), ("recipe.json", "{}"), ("plan.json", "[")):
        kept = (RUN / name).read_bytes()
        (RUN / name).write_text(text)
        call("train", recipe, "--json").refuses(2, f"at {RUN / name}")
        if name != "plan.json":
            call("export", RUN, "out").refuses(2, f"at {RUN / name}")
        (RUN / name).write_bytes(kept)
    _goes_on(call, recipe)


def test_no_gpu_where_one_is_asked_for(desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for verb in ("train", "plan"):
        said = call(verb, write(machine={"device": "cuda"}), "--json")
        said.refuses(3, "CUDA", "at recipe.yaml:", "[machine.device]", "tunesmith doctor")
        assert said.json["error"]["exit_code"] == 3
    assert remains(desk) == []


def test_a_plan_that_does_not_fit(desk: Path, call: Call, write: Write) -> None:
    said = call("train", write(machine={"memory_gib": 0.05}), "--json")
    said.refuses(3, "GiB of memory and 0.05 GiB are available", "the largest part is")
    assert said.json["error"]["exit_code"] == 3
    assert not (desk / "runs").exists()
    planned = call("plan", write(machine={"memory_gib": 0.05}), "--json").refuses(3)
    assert planned.json["memory"]["total_bytes"] > 0.05 * 2**30


def _explodes(write: Write) -> str:
    training = {"max_steps": 9, "batch_size": 4, "samples": 0, "learning_rate": 1e38, "warmup": 0, "clip": None}
    return write(training=training, adapter={"type": "full"})


def test_a_loss_that_is_not_finite_stops_with_step_and_rows(desk: Path, call: Call, write: Write) -> None:
    recipe = _explodes(write)
    said = call("train", recipe, "--json").refuses(
        4, "not finite at step 1", "at step 1, rows rows.jsonl:", "leave `training.learning_rate` out"
    )
    assert said.json["status"] == "stopped"
    assert said.json["run"] == "runs/desk"
    assert _status()["message"] in said.err
    assert _status()["diverged"] is True
    assert torn(desk) == []
    call("export", RUN, "out").refuses(2, "stopped, not done", "at runs/desk")
    call("generate", RUN, "--prompt", "hello").refuses(2, "no result yet")
    assert not (desk / "out").exists()
    assert call("report", RUN).code == 0
    assert "stopped" in call("runs", "list").out


def test_weights_that_overflow_in_the_last_step_do_not_pass_for_a_result(desk: Path, call: Call, write: Write) -> None:
    recipe = _explodes(write)
    call("train", recipe, "training.max_steps=1", "--json").refuses(4, "not finite", "step 1")
    assert _status()["status"] == "stopped"
    assert not (RUN / "model").exists()
    assert torn(desk) == []


def _raises(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("place", "name", "number"),
    [(run_folder, "write_json", errno.EROFS), (line_files, "append_line", errno.ENOSPC)],
)
def test_a_full_or_read_only_disk_at_the_runs_creation(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, number: int
) -> None:
    recipe = write()
    with monkeypatch.context() as patch:
        patch.setattr(place, name, _raises(OSError(number, os.strerror(number))))
        said = call("train", recipe, "--json")
    said.refuses(2, "the run folder cannot be written", os.strerror(number), "at runs/desk", "--run")
    assert set(said.json) == {"error"}
    assert not (desk / "runs").exists()
    _goes_on(call, recipe)


def test_a_full_disk_before_the_first_step_is_the_users_to_mend(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write()
    with monkeypatch.context() as patch:
        patch.setattr(Scorecard, "save", _raises(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        call("train", recipe).refuses(
            2, "scoring the base", os.strerror(errno.ENOSPC), "at runs/desk", "free some space"
        )
    _goes_on(call, recipe)


@pytest.mark.parametrize("full", ["checkpoint", "metrics", "result", "everything"])
def test_a_full_disk_in_training_stops_and_can_go_on(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    recipe = write()
    no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch, ExitStack() as stack:
        if full in ("checkpoint", "everything"):
            stack.enter_context(use_disk(FaultyDisk(1, "full", only=lambda path: "checkpoints" in path.parts)))
        if full == "metrics":
            stack.enter_context(use_disk(FaultyDisk(1, "full", only=lambda path: path.name == "metrics.jsonl")))
        if full == "result":
            patch.setattr(results, "write_adapter", _raises(no_space))
        if full == "everything":
            begin = attach

            def break_and_attach(*arguments: Any) -> Any:
                patch.setattr(run_folder.RunFolder, "set_status", _raises(no_space))
                patch.setattr(run_folder.RunFolder, "append_event", _raises(no_space))
                return begin(*arguments)

            patch.setattr(train, "attach", break_and_attach)
        said = call("train", recipe, "--json")
    said.refuses(4, os.strerror(errno.ENOSPC), "at runs/desk", "free some space")
    assert said.json["run"] == "runs/desk"
    assert _status()["status"] == ("running" if full == "everything" else "stopped")
    assert not _status().get("diverged")
    assert torn(desk) == []
    assert not (RUN / "adapter").exists()
    _goes_on(call, recipe)


def test_a_limit_on_files_met_by_the_tensors_themselves(desk: Path, write: Write) -> None:
    """safetensors tells of a full disk in an error of its own: a real limit, in a process of its own."""
    recipe = write(adapter={"type": "full"})
    script = (
        "import signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from tunesmith.cli.main import main; main()"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    command = [sys.executable, "-c", script, "train", recipe, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=desk, preexec_fn=limit)
    assert done.returncode == 4, done.stderr
    assert "could not be written: File too large" in done.stderr
    assert json.loads(done.stdout)["status"] == "stopped"
    assert torn(desk) == []


@pytest.mark.parametrize(
    ("place", "name", "number"),
    [
        (scoring.Scoring, "score", signal.SIGTERM),
        (scoring.Scoring, "score", signal.SIGINT),
        (results, "write_adapter", signal.SIGTERM),
    ],
)
def test_a_signal_outside_the_loop_is_an_interruption(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, number: int
) -> None:
    recipe = write()
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, lambda *_, **__: signal.raise_signal(number))
        said = call("train", recipe, "--json")
    said.refuses(130, "stopped by a signal", "at runs/desk", "the same command again")
    assert said.json["status"] == "interrupted"
    assert _status()["status"] == "interrupted"
    assert signal.getsignal(number) == before
    _goes_on(call, recipe)


def test_a_signal_in_training_saves_and_the_rest_is_as_if_it_had_not_been(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(training__max_steps=4, training__checkpoint_every=4)
    assert call("train", recipe, "--run", "whole").code == 0
    append = run_folder.RunFolder.append_metric

    def at_step_two(self: run_folder.RunFolder, line: dict[str, Any]) -> None:
        append(self, line)
        if line["step"] == 2 and "loss" in line:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "append_metric", at_step_two)
        said = call("train", recipe, "--json").refuses(
            130, "after step 2 of 4", "a checkpoint is saved", "same command"
        )
    assert said.json == {
        "run": "runs/desk",
        "status": "interrupted",
        "steps": 2,
        "tokens": _status()["tokens"],
        "loss": next(line["loss"] for line in _metrics_without_times() if line["step"] == 2 and "loss" in line),
    }
    assert (RUN / "checkpoints" / "00000002" / "manifest.json").exists()
    _goes_on(call, recipe)
    resumed = _metrics_without_times()
    shutil.rmtree(RUN)
    (desk / "whole").rename(RUN)
    assert resumed == _metrics_without_times()


def test_sigterm_ends_a_process_with_its_run_kept(desk: Path, write: Write) -> None:
    recipe = write(training__max_steps=100_000, training__checkpoint_every=100_000, training__evaluate_every=100_000)
    command = [sys.executable, "-m", "tunesmith", "train", recipe, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=desk) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("training: step 1 "):
                break
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out)["status"] == "interrupted"
    assert "hint: start the same command again" in err
    assert "Traceback" not in err
    steps = json.loads(out)["steps"]
    assert (RUN / "checkpoints" / f"{steps:08d}" / "manifest.json").exists()
    assert torn(desk) == []


def test_sigterm_while_data_is_prepared_leaves_nothing(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.data.builder.write_meta", lambda *_: signal.raise_signal(signal.SIGTERM))
    said = call("train", write(), "--json").refuses(130, "interrupted", "same command")
    assert said.json["error"]["exit_code"] == 130
    assert remains(desk) == []
