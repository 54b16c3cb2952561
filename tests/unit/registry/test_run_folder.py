"""A run folder: creation, identity, status, lines that survive a crash."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import RunError
from tunesmith.recipe.codec import parse
from tunesmith.recipe.root import Recipe
from tunesmith.registry import run_folder
from tunesmith.registry.run_folder import RunFolder


def make_recipe(**changes: Any) -> Recipe:
    return parse({"name": "tickets", "model": "tunesmith-base-8m", "data": {"train": "train.csv"}, **changes})


def make_run(path: Path, **changes: Any) -> RunFolder:
    run = RunFolder(path)
    run.create(make_recipe(**changes).model_dump(mode="json"))
    return run


def test_a_created_run_opens_with_the_same_recipe(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", seed=7)
    run = RunFolder.open(tmp_path / "runs" / "a")
    assert run.recipe() == make_recipe(seed=7)
    assert run.name == "a"
    assert run.status()["status"] == "interrupted"


@pytest.mark.parametrize(("kind", "words"), [("missing", "no such run folder"), ("empty", "holds no run")])
def test_open_refuses_what_is_no_run(tmp_path: Path, kind: str, words: str) -> None:
    path = tmp_path / kind
    if kind == "empty":
        path.mkdir()
    with pytest.raises(RunError, match=words) as caught:
        RunFolder.open(path)
    assert caught.value.hint
    assert caught.value.where == str(path)


def test_create_takes_an_empty_folder_and_refuses_a_used_one(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    run = make_run(empty)
    with pytest.raises(RunError, match="holds a run already"):
        run.create({})
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="holds other files"):
        make_run(used)
    assert [item.name for item in used.iterdir()] == ["thesis.txt"]
    with pytest.raises(RunError, match="this is a file"):
        make_run(used / "thesis.txt")


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
def test_a_full_or_read_only_disk_is_a_run_error_and_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(path: Path, value: Any) -> None:
        path.parent.mkdir(parents=True)
        raise OSError(code, "the disk says no")

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "write_json", refuse)
        with pytest.raises(RunError, match="the disk says no") as caught:
            make_run(tmp_path / "a")
    assert caught.value.exit_code == 2
    assert "--run" in caught.value.hint
    assert make_run(tmp_path / "a").exists


def test_another_recipe_is_refused_with_the_differences(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", seed=1, training={"batch_size": 8, "log_every": 1})
    run.check_identity(
        make_recipe(seed=1, name="renamed", training={"batch_size": 8, "log_every": 50, "micro_batch_size": 2})
    )
    with pytest.raises(RunError) as caught:
        run.check_identity(make_recipe(seed=2, training={"batch_size": 16}))
    assert "seed: 1 -> 2" in caught.value.what
    assert "training.batch_size: 8 -> 16" in caught.value.what
    assert "log_every" not in caught.value.what
    assert "--run" in caught.value.hint


def test_a_recipe_of_another_version_is_a_run_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    values = json.loads(run.recipe_path.read_text())
    run.recipe_path.write_text(json.dumps({**values, "warp": 9}))
    with pytest.raises(RunError, match="warp"):
        run.recipe()
    run.recipe_path.write_text('{"name": "tic')
    with pytest.raises(RunError, match="not valid JSON"):
        run.check_identity(make_recipe())


def test_status_keeps_what_is_not_given_anew_but_not_the_old_message(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.set_status("stopped", step=3, steps=10, message="the loss is not finite")
    run.set_status("running", step=4)
    with run.held():
        assert run.status() == {"status": "running", "step": 4, "steps": 10, "message": ""}
    lost = {"status": "lost", "step": 4, "steps": 10, "message": "the process that worked on it is gone"}
    assert run.status() == lost, "nobody holds the lease: its process is gone"
    run.set_status("stopped", step=5)
    stored = json.loads(run.status_path.read_text())
    assert stored == {"status": "stopped", "step": 5, "steps": 10, "message": ""}, "only what was said is stored"
    with pytest.raises(ValueError, match="sleeping"):
        run.set_status("sleeping")


def test_rewind_drops_metrics_and_samples_after_the_step_and_keeps_events(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    for step in range(1, 7):
        run.append_metric({"step": step, "loss": 1 / step})
    run.append_sample({"step": 2, "answer": "früher"})
    run.append_sample({"step": 6, "answer": "later"})
    run.append_event("checkpoint", 6, "saved")
    assert run.rewind_metrics(4) == 3
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4]
    assert [line["answer"] for line in run.samples()] == ["früher"]
    assert [(line["step"], line["kind"]) for line in run.events()] == [(6, "checkpoint")]
    assert run.rewind_metrics(4) == 0


def test_rewind_leaves_the_old_file_where_the_new_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "a")
    for step in (1, 2):
        run.append_metric({"step": step})
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        run.rewind_metrics(1)
    monkeypatch.undo()
    assert [line["step"] for line in run.metrics()] == [1, 2]


@pytest.mark.parametrize(("tail", "steps"), [('{"step": 2, "lo', [1, 3]), ('{"step": 2}', [1, 2, 3]), ("", [1, 3])])
def test_a_line_torn_by_a_crash_does_not_swallow_the_next(tmp_path: Path, tail: str, steps: list[int]) -> None:
    run = make_run(tmp_path / "a")
    run.append_metric({"step": 1})
    with run.metrics_path.open("a") as stream:
        stream.write(tail)
    again = RunFolder.open(run.path)
    again.append_metric({"step": 3})
    assert [line["step"] for line in again.metrics()] == steps


def test_scorecards_leave_the_comparison_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    assert run.scorecards() == {}
    assert run.comparison() is None
    for name in ("base", "tuned"):
        run.scorecard_path(name).write_text(json.dumps({"model": name, "tasks": {}}))
    run.comparison_path.write_text('{"verdict": "better"}')
    assert {name: card["model"] for name, card in run.scorecards().items()} == {"base": "base", "tuned": "tuned"}
    assert run.comparison() == {"verdict": "better"}
    run.scorecard_path("tuned").write_text("{")
    with pytest.raises(RunError, match="not valid JSON"):
        run.scorecards()
