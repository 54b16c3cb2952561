"""Saving beside training: copies, failures that are survived, and the room that is asked for."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults import FaultyDisk
from tests.loops import make_trainer
from tunesmith.disk import Disk, use_disk
from tunesmith.engine import saver as saver_module
from tunesmith.engine.checkpoint import Checkpoint, CheckpointFolder
from tunesmith.engine.saver import Saver, lack_of_room
from tunesmith.errors import GuardStopped


class Gate(Disk):
    """Holds every write until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()

    def write(self, stream: Any, payload: Any) -> None:
        self.reached.set()
        assert self.opened.wait(30)
        super().write(stream, payload)


def make(tmp_path: Path, **settings: Any) -> tuple[Saver, list[str]]:
    said: list[str] = []
    saver = Saver(CheckpointFolder(tmp_path, "run"), say=lambda kind, text: said.append(f"{kind}: {text}"), **settings)
    return saver, said


def checkpoint(step: int, value: torch.Tensor) -> Checkpoint:
    return Checkpoint(step, {"a": value}, {}, {"step": step})


def test_what_is_saved_is_what_was_there_when_it_was_asked_for(tmp_path: Path) -> None:
    saver, _ = make(tmp_path)
    weights = torch.arange(6.0)
    gate = Gate()
    with use_disk(gate):
        saver.save(checkpoint(1, weights))
        assert gate.reached.wait(30)
        weights += 100  # training goes on
        saver.poll()
        assert saver.saved_step is None
        gate.opened.set()
        saver.wait()
    assert saver.saved_step == 1
    saved = saver.folder.load(1)
    assert saved is not None
    assert torch.equal(saved.trained["a"], torch.arange(6.0))
    saver.save(checkpoint(2, weights))
    saver.wait()
    again = saver.folder.load(2)
    assert again is not None
    assert torch.equal(again.trained["a"], torch.arange(6.0) + 100)


def _save_and_wait(saver: Saver, step: int) -> None:
    saver.save(checkpoint(step, torch.ones(4)))
    saver.wait()


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_is_survived_and_tried_again(tmp_path: Path, background: bool) -> None:
    saver, said = make(tmp_path, background=background)
    saver.save(checkpoint(1, torch.ones(4)))
    saver.wait()
    for step in (2, 3):
        with use_disk(FaultyDisk(1, "full")):
            saver.save(checkpoint(step, torch.ones(4)))
            saver.wait()
    assert saver.folder.steps() == [1]
    saver.save(checkpoint(4, torch.ones(4)))
    saver.wait()
    assert saver.folder.steps() == [1, 4]
    assert [line.partition(":")[0] for line in said] == [
        "checkpoint_failed",
        "checkpoint_failed",
        "checkpoint_saved_again",
    ]
    assert said[0] == (
        "checkpoint_failed: the checkpoint of step 2 could not be written: No space left on device; "
        "training goes on, the next interval tries again"
    )
    with use_disk(FaultyDisk(1, "full")):
        for step in (5, 6):
            saver.save(checkpoint(step, torch.ones(4)))
            saver.wait()
        with pytest.raises(GuardStopped) as raised:
            _save_and_wait(saver, 7)
    assert "that was the third failure in a row" in raised.value.what
    assert "step 7" in raised.value.what
    assert saver.folder.steps() == [1, 4]


def test_a_fault_of_ours_is_not_taken_for_the_disks(tmp_path: Path) -> None:
    saver, _ = make(tmp_path)
    saver.save(Checkpoint(1, {"a": torch.ones(1)}, {}, {"value": float("nan")}))
    with pytest.raises(ValueError, match="JSON"):
        saver.wait()


def test_room_is_asked_for_before_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs(tmp_path)
    free = found.f_bavail * found.f_frsize
    assert lack_of_room(tmp_path, 1000) is None
    close = lack_of_room(tmp_path, int((free + 1000) / 1.2))
    assert close is None or close.endswith(" bytes are free")
    said = lack_of_room(tmp_path, int(free / 1.1))
    assert said is not None
    assert said.endswith("MB are free")
    assert lack_of_room(tmp_path, int(free / 1.3)) is None

    class NoInodes:
        f_bavail, f_frsize, f_files, f_favail = 1 << 30, 4096, 1000, 3

    monkeypatch.setattr(saver_module.os, "statvfs", lambda path: NoInodes)
    assert lack_of_room(tmp_path, 1000) == "6 files are needed, the file system has room for 3"
    saver, events = make(tmp_path)
    saver.save(checkpoint(1, torch.ones(4)))
    assert "6 files are needed" in events[0]
    assert saver.folder.steps() == []


def test_a_disk_that_fills_in_training_and_frees_again_changes_nothing(tmp_path: Path) -> None:
    whole, whole_facts = make_trainer(tmp_path / "whole", checkpoint_every=2)
    whole.run()
    said: list[str] = []
    trainer, recorder = make_trainer(
        tmp_path / "tight", checkpoint_every=2, say=lambda kind, text: said.append(f"{kind}: {text}")
    )
    disk = FaultyDisk(0, "full")

    def fill(facts: Any) -> None:
        disk.at = 1 if facts.step in (3, 4, 5, 6) else 0

    recorder_after = recorder.after_step
    recorder.after_step = lambda facts: (fill(facts), recorder_after(facts))[1]  # type: ignore[method-assign]
    trainer.saver.background = False
    with use_disk(disk):
        trainer.run()
    assert [line.split(":")[0] for line in said] == ["checkpoint_failed", "checkpoint_failed", "checkpoint_saved_again"]
    assert trainer.checkpoints.steps() == [10, 12]
    for name, tensor in whole.adapter.state().items():
        assert torch.equal(tensor, trainer.adapter.state()[name]), name
    assert [facts.loss for facts in recorder.facts] == [facts.loss for facts in whole_facts.facts]
