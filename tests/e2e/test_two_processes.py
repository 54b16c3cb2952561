"""Two processes on one run folder: the second is refused, the first is seen to live, and a killed one is lost, not running."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.desk import Call, Write
from tests.e2e.processes import ended, events, hold_at, lines, metrics, result, started, wait_for
from tunesmith.cli import doors

RUN = Path("runs/desk")


def _recipe(write: Write, **more: Any) -> str:
    return write(training__max_steps=8, training__checkpoint_every=2, training__evaluate_every=4, **more)


def test_from_running_to_lost_to_done(desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe(write)
    assert call("train", recipe, "--run", "whole").code == 0
    with started(desk, "train", recipe, code=hold_at(5)) as process:
        wait_for((desk / "arrived").exists, process)
        before = {path: path.stat().st_mtime_ns for path in RUN.rglob("*") if path.name != "lease.json"}
        with monkeypatch.context() as patch:
            patch.setattr(doors, "plan_recipe", lambda recipe: pytest.fail("it was planned"), raising=False)
            refused = call("train", recipe, "--json")
        words = (f"another process works on this run: process {process.pid}, since", f"`kill {process.pid}`", "--run")
        refused.refuses(2, "at runs/desk", *words)
        assert refused.json["error"]["exit_code"] == 2
        assert before == {path: path.stat().st_mtime_ns for path in RUN.rglob("*") if path.name != "lease.json"}
        _is_shown(call, "running", 5)
        assert "still running at step 5 of 8" in (RUN / "report.html").read_text(encoding="utf-8")
        assert ended(process, signal.SIGKILL)[0] == -signal.SIGKILL
    _is_shown(call, "lost", 5)
    gone = f"process that worked on it is gone: process {process.pid}, since"
    assert gone in " ".join(call("runs", "show", RUN).out.split())
    assert gone in call("runs", "list").out
    assert gone in (RUN / "report.html").read_text(encoding="utf-8")
    assert "start the same command again" in (RUN / "report.html").read_text(encoding="utf-8")
    assert call("train", recipe).code == 0
    assert call("runs", "list", "--json").json["runs"][0]["status"] == "done"
    assert [f"process {process.pid}, since" in said for said in events(RUN, "lost")] == [True]
    assert "resumed from the checkpoint of step 4 of 8" in events(RUN, "resumed")
    assert not (RUN / "lease.json").exists()
    assert result(RUN) == result(Path("whole"))
    assert metrics(RUN) == metrics(Path("whole"))


def _is_shown(call: Call, status: str, step: int) -> None:
    """What other verbs say of a run that is running or lost at a step of 8."""
    shown = call("runs", "show", RUN, "--json").json
    assert (shown["status"], shown["step"], shown["steps"]) == (status, step, 8)
    assert shown["curves"]["steps"] == list(range(1, step + 1))
    assert bool(shown["go_on"]) == bool(shown["message"]) == (status == "lost")
    assert call("runs", "list", "--json").json["runs"][0]["status"] == status
    said = call("runs", "show", RUN).out
    assert f"{status}, {step} of 8 steps" in said
    assert ("to go on" in said) == (status == "lost")
    assert call("runs", "compare", RUN, "whole", "--json").json["a"]["status"] == status
    assert call("report", RUN).code == 0
    call("export", RUN, "out").refuses(2, f"this run is {status}, not done", "at runs/desk")
    call("generate", RUN, "--prompt", "hello").refuses(2, "no result yet")


def test_a_run_whose_folder_is_removed_under_it_stops_and_writes_nothing(desk: Path, call: Call, write: Write) -> None:
    """Somebody clears runs/ away and starts anew, while the first process still trains."""
    recipe = _recipe(write)
    with started(desk, "train", recipe, "--json", code=hold_at(5)) as process:
        wait_for((desk / "arrived").exists, process)
        wait_for((RUN / "checkpoints" / "00000004").exists, process)
        shutil.rmtree(RUN)
        assert call("train", recipe).code == 0
        before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
        (desk / "go").touch()
        code, out, err = ended(process)
    assert code == 2
    assert "error: the run folder was removed while this process worked on it" in err
    assert "hint: " in err
    assert "Traceback" not in err
    assert json.loads(out)["error"]["exit_code"] == 2
    assert before == {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}


def test_a_run_that_was_killed_before_its_first_step_is_lost(desk: Path, call: Call, write: Write) -> None:
    recipe = _recipe(write)
    code = "import os\nfrom tunesmith.workshop import train\ntrain._Job.train = lambda self: os.kill(os.getpid(), 9)\n"
    with started(desk, "train", recipe, code=code) as process:
        assert ended(process)[0] == -signal.SIGKILL
    assert not (RUN / "status.json").exists()
    assert call("runs", "list", "--json").json["runs"][0]["status"] == "lost"
    assert call("train", recipe).code == 0
    assert len(events(RUN, "lost")) == 1


def test_a_start_that_was_killed_before_there_was_a_run_leaves_a_free_folder(
    desk: Path, call: Call, write: Write
) -> None:
    recipe = _recipe(write)
    code = (
        "import os\nfrom tunesmith.workshop import start\nstart.open_data = lambda *_, **__: os.kill(os.getpid(), 9)\n"
    )
    with started(desk, "train", recipe, code=code) as process:
        assert ended(process)[0] == -signal.SIGKILL
    assert [item.name for item in RUN.iterdir()] == ["lease.json"]
    assert call("runs", "list", "--json").json["runs"] == []
    assert call("train", recipe).code == 0
    assert lines(RUN / "events.jsonl")[0]["kind"] == "started"
