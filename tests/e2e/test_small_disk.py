"""A real file system that is too small, has no room for files, or is read-only: training survives what it can."""

from __future__ import annotations

import errno
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.desk import Call, Write, torn
from tests.faults import FaultyDisk
from tunesmith.disk import use_disk
from tunesmith.registry import run_folder

Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount a tmpfs with options; skips where that is not allowed."""
    places: list[Path] = []

    def _mount(options: str) -> Path:
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"mounting a tmpfs is not allowed here: {done.stderr.strip()}")
        places.append(place)
        return place

    yield _mount
    for place in places:
        subprocess.run(["umount", "-l", str(place)], check=False)


def _events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def _losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def _at_step(patch: pytest.MonkeyPatch, acts: dict[int, Callable[[], object]]) -> None:
    """Act right after the metrics line of a step."""
    append = run_folder.RunFolder.append_metric

    def append_and_act(self: run_folder.RunFolder, line: dict[str, Any]) -> None:
        append(self, line)
        if "loss" in line and line["step"] in acts:
            acts.pop(line["step"])()

    patch.setattr(run_folder.RunFolder, "append_metric", append_and_act)


def _fill(place: Path) -> None:
    """Leave no byte free."""
    with (place / "filler").open("wb", buffering=0) as stream:
        size = 1 << 20
        while size:
            try:
                stream.write(b"x" * size)
            except OSError:
                size //= 2


def test_a_disk_that_fills_and_frees_again_costs_checkpoints_and_nothing_else(
    call: Call, write: Write, mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(training__max_steps=8, training__checkpoint_every=2, training__guards={"max_failed_saves": 9})
    assert call("train", recipe, "--run", "whole").code == 0
    place = mount("size=24m")
    run = place / "run"
    with monkeypatch.context() as patch:
        _at_step(patch, {3: lambda: _fill(place), 7: (place / "filler").unlink})
        assert call("train", recipe, "--run", run).code == 0
    failed = [event["message"] for event in _events(run) if event["kind"] == "checkpoint_failed"]
    assert len(failed) == 2
    assert "step 4 could not be written:" in failed[0]
    assert "training goes on" in failed[0]
    assert any(event["kind"] == "checkpoint_saved_again" for event in _events(run))
    assert _losses(run) == _losses(Path("whole"))
    one, other = (folder / "adapter" / "adapter_model.safetensors" for folder in (run, Path("whole")))
    assert one.read_bytes() == other.read_bytes()
    assert torn(place) == []


def test_a_disk_that_stays_full_stops_the_run_which_goes_on_later(
    call: Call, write: Write, mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(training__max_steps=12, training__checkpoint_every=2)
    assert call("train", recipe, "--run", "whole").code == 0
    place = mount("size=24m")
    run = place / "run"
    with monkeypatch.context() as patch:
        _at_step(patch, {3: lambda: _fill(place)})
        said = call("train", recipe, "--run", run).refuses(4, "could not be written", "third failure in a row")
    assert "are free" in said.err or "No space left" in said.err
    (place / "filler").unlink()
    assert call("train", recipe, "--run", run).code == 0
    assert _losses(run) == _losses(Path("whole"))
    assert "resumed from the checkpoint of step 2" in "".join(event["message"] for event in _events(run))


def test_no_room_for_files_is_said_before_a_save(
    call: Call, write: Write, mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = mount("size=64m,nr_inodes=100")
    run = place / "run"

    def use_up() -> None:
        for number in range(200):
            try:
                (place / f"f{number}").touch()
            except OSError:
                return

    def free() -> None:
        for path in place.glob("f*"):
            path.unlink()

    recipe = write(training__max_steps=8, training__checkpoint_every=2)
    with monkeypatch.context() as patch:
        _at_step(patch, {3: use_up, 5: free})
        assert call("train", recipe, "--run", run).code == 0
    failed = [event["message"] for event in _events(run) if event["kind"] == "checkpoint_failed"]
    assert len(failed) == 1
    assert "6 files are needed, the file system has room for 0" in failed[0]


def test_a_disk_that_becomes_read_only_stops_with_a_word(
    call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel does after an error of the device; a mount in use cannot be made read-only by hand."""
    recipe = write(training__max_steps=10, training__checkpoint_every=2)
    run = Path("runs/desk")
    disk = FaultyDisk(0, "full", number=errno.EROFS)
    with monkeypatch.context() as patch, use_disk(disk):
        _at_step(patch, {3: lambda: setattr(disk, "at", 1)})
        call("train", recipe).refuses(4, "could not be written", "Read-only file system", "third failure in a row")
    assert call("train", recipe).code == 0
    assert len(_losses(run)) == 10


def test_a_new_run_on_a_full_disk_is_refused_before_anything_starts(call: Call, write: Write, mount: Mount) -> None:
    place = mount("size=1m")
    _fill(place)
    call("train", write(), "--run", place / "run").refuses(2, "the run folder cannot be written", "free some space")
    assert not (place / "run").exists()
