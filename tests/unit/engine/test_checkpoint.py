"""Checkpoints are whole or set aside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tunesmith.engine import checkpoint as checkpoint_module
from tunesmith.engine.checkpoint import Checkpoint, CheckpointFolder
from tunesmith.errors import GuardStopped


def make(step: int) -> Checkpoint:
    return Checkpoint(step, {"a": torch.arange(6.0) + step}, {"a/exp_avg": torch.ones(6)}, {"step": step})


def flip_a_bit(folder: Path) -> None:
    path = folder / "trained.safetensors"
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)


def truncate(folder: Path) -> None:
    path = folder / "optimiser.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def drop_a_file(folder: Path) -> None:
    (folder / "state.json").unlink()


def drop_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def another_run(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "identity": "other"}))


FAULTS = [flip_a_bit, truncate, drop_a_file, drop_the_manifest, another_run]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda item: item.__name__)
def test_a_bad_checkpoint_is_set_aside_and_the_one_before_is_used(
    tmp_path: Path, fault: Callable[[Path], None]
) -> None:
    said: list[str] = []
    folder = CheckpointFolder(tmp_path, "run", say=lambda kind, text: said.append(f"{kind}: {text}"))
    folder.save(make(4))
    bad = folder.save(make(8))
    fault(bad)
    found = folder.newest()
    assert found is not None
    assert found.step == 4
    assert torch.equal(found.trained["a"], torch.arange(6.0) + 4)
    assert len(said) == 1
    assert said[0].startswith("checkpoint_set_aside: checkpoint 00000008 is set aside as 00000008.bad-0:")
    assert (tmp_path / "00000008.bad-0").is_dir()


def test_at_least_two_are_kept_and_a_protected_one_as_well(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, "run", keep=1)
    for step in (1, 2, 3, 4):
        folder.save(make(step))
    assert folder.steps() == [3, 4]
    for step in (5, 6, 7):
        folder.save(make(step), protect=frozenset({3}))
    assert 3 in folder.steps()
    assert folder.steps()[-1] == 7
    assert len(folder.steps()) <= 3


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path, "run")
    folder.save(make(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(GuardStopped) as raised:
        folder.save(make(2))
    assert "No space left on device" in raised.value.what
    assert raised.value.hint
    assert [item.name for item in tmp_path.iterdir()] == ["00000001"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "absent", "run").newest() is None
