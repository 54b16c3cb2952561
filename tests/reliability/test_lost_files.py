"""What is gone from a run folder is told: checkpoints that were there, and lines that checkpoints stand for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.runs_alike import events
from tests.reliability.stories import make_desk, one_thread_saves
from tunesmith import disk as disks
from tunesmith.cli.main import run as run_cli
from tunesmith.disk import Disk
from tunesmith.registry.run_folder import RunFolder


class Place:
    """A recipe of five steps with a checkpoint after each, and runs of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        values = make_desk(folder, max_steps=5)
        values["evaluation"]["tasks"] = []
        (folder / "recipe.json").write_text(json.dumps(values))

    def train(self, name: str, *more: str) -> int:
        return run_cli(["train", str(self.folder / "recipe.json"), "--run", str(self.folder / name), *more])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("lost")
    with one_thread_saves(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(folder / "cache"))
        yield Place(folder)


def cut_at(step: int) -> Callable[[RunFolder, dict[str, Any]], None]:
    append = RunFolder.append_metric

    def killed(run: RunFolder, line: dict[str, Any]) -> None:
        if line["step"] == step:
            raise KeyboardInterrupt
        append(run, line)

    return killed


def to_a_link(checkpoints: Path) -> None:
    for folder in list(checkpoints.iterdir()):
        folder.rename(checkpoints.parent / f"away-{folder.name}")
        folder.symlink_to(checkpoints.parent / f"away-{folder.name}")


def old_status(checkpoints: Path) -> None:
    """A status that does not speak of checkpoints."""
    shutil.rmtree(checkpoints)
    (checkpoints.parent / "status.json").write_text('{"status": "stopped", "step": 3}')


@pytest.mark.parametrize("lose", [shutil.rmtree, to_a_link, old_status])
def test_checkpoints_that_are_gone_stop_with_4_and_restart_starts_again(
    place: Place, capsys: pytest.CaptureFixture[str], lose: Callable[[Path], None]
) -> None:
    name = f"gone-{lose.__name__}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append_metric", cut_at(4))
        assert place.train(name) == 130
    run = place.folder / name
    lose(run / "checkpoints")
    kept = (run / "metrics.jsonl").read_bytes()
    for _ in range(2):
        capsys.readouterr()
        assert place.train(name) == 4
        said = capsys.readouterr().err
        assert "the checkpoints of this run are gone: it was saved at step 3, and there is none" in said
        assert "hint: " in said
        assert "--restart" in said
        assert (run / "metrics.jsonl").read_bytes() == kept
    if lose is to_a_link:
        shutil.rmtree(run / "checkpoints")
    assert place.train(name, "--restart") == 0
    assert "training starts from the first step again" in events(run, "restarted")[0]
    assert json.loads((run / "status.json").read_text())["saved_step"] == 5


def test_a_run_that_was_never_saved_begins_again_and_says_so(place: Place) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append_metric", cut_at(3))
        assert place.train("unsaved", "training.checkpoint_every=5") == 130
    run = place.folder / "unsaved"
    assert not list((run / "checkpoints").glob("0*"))
    assert place.train("unsaved", "training.checkpoint_every=5") == 0
    assert "no checkpoint was saved before" in events(run, "begun_again")[0]


class NoLines(Disk):
    """Takes everything but lines of metrics, from the second on."""

    def __init__(self) -> None:
        self.lines = 0

    def open(self, path: Path, mode: str) -> Any:
        if path.name == "metrics.jsonl" and mode == "ab":
            self.lines += 1
            if self.lines > 2:
                raise OSError(27, "File too large", str(path))
        return super().open(path, mode)


def test_no_checkpoint_is_saved_while_lines_before_it_wait(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disks, "_current", NoLines())
        assert place.train("limited") == 4
    run = place.folder / "limited"
    assert "the checkpoint of step 2 could not be written: File too large" in " ".join(events(run, "checkpoint_failed"))
    assert [folder.name for folder in sorted((run / "checkpoints").iterdir())][-1] == "00000001"
    assert place.train("limited") == 0
    assert events(run, "lines_lost") == []
    told = [
        json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if "learning_rate" in line
    ]
    assert told == [1, 2, 3, 4, 5]


def test_lines_that_vanish_while_it_trains_are_told_at_the_end(place: Place) -> None:
    append = RunFolder.append_metric

    def removed(run: RunFolder, line: dict[str, Any]) -> None:
        if line["step"] == 4 and "learning_rate" in line:
            run.metrics_path.unlink()
        append(run, line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append_metric", removed)
        assert place.train("vanished") == 0
    said = events(place.folder / "vanished", "lines_lost")
    assert len(said) == 1
    assert "no line of 3 of the steps up to 5, the first of which is 1" in said[0]
