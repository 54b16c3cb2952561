"""Checkpoints are whole or set aside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.faults import FaultyDisk
from tunesmith.disk import use_disk
from tunesmith.engine import tensor_file
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


def swap_files(folder: Path) -> None:
    one, other = folder / "trained.safetensors", folder / "optimiser.safetensors"
    one.rename(folder / "x")
    other.rename(one)
    (folder / "x").rename(other)


def another_step(folder: Path) -> None:
    for path in folder.parent.joinpath("00000004").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def a_link(folder: Path) -> None:
    path = folder / "state.json"
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")


def nested_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000)


def names_outside(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../../outside"] = manifest["files"].pop("state.json")
    path.write_text(json.dumps(manifest))


def drop_a_file(folder: Path) -> None:
    (folder / "state.json").unlink()


def drop_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def another_run(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "identity": "other"}))


FAULTS = [
    flip_a_bit, truncate, drop_a_file, drop_the_manifest, another_run, swap_files, another_step, a_link, nested_manifest,
    names_outside,
]  # fmt: skip


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


@pytest.mark.parametrize("how", ["fail", "short"])
def test_a_full_disk_at_any_operation_leaves_nothing_behind(tmp_path: Path, how: str) -> None:
    counting = FaultyDisk()
    counted = CheckpointFolder(tmp_path / "count", "run")
    counted.save(make(1))
    with use_disk(counting):
        counted.save(make(2))
    assert counting.count > 15
    for at in range(1, counting.count + 1):
        folder = CheckpointFolder(tmp_path / f"{at}", "run")
        folder.save(make(1))
        with use_disk(FaultyDisk(at, how)), pytest.raises(OSError, match="No space left"):
            folder.save(make(2))
        kept = folder.newest()
        assert kept is not None, counting.log[at - 1]
        renamed = "rename" in counting.log[at - 1] or at == counting.count
        assert kept.step == 1 or renamed, counting.log[at - 1]
        assert [item.name for item in folder.path.iterdir() if item.name.startswith(".")] == []


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "absent", "run").newest() is None


def test_none_good_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, "run")
    for step in (1, 2):
        flip_a_bit(folder.save(make(step)))
    for _ in range(2):  # the second call finds them set aside already
        with pytest.raises(GuardStopped) as raised:
            folder.newest()
        assert raised.value.exit_code == 4
        assert "00000001.bad-0, 00000002.bad-0 were set aside" in raised.value.what
        assert "--restart" in raised.value.hint


def test_the_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    """Every type that a checkpoint can hold, empty and scalar tensors, and a name beyond ASCII."""
    tensors = {}
    for index, dtype in enumerate(tensor_file.TYPES):
        tensors[f"z{index}/é"] = torch.arange(6).reshape(2, 3).to(dtype)
        tensors[f"a{index}"] = torch.ones(()).to(dtype)
        tensors[f"e{index}"] = torch.zeros(0, 3).to(dtype)
    tensors["view"] = torch.arange(12.0).reshape(3, 4).t()
    written = tensor_file.write_tensors(tmp_path / "x", tensors)
    payload = (tmp_path / "x").read_bytes()
    assert payload == save({name: tensor.contiguous() for name, tensor in tensors.items()})
    assert (written.bytes, written.sha256) == (len(payload), hashlib.sha256(payload).hexdigest())
