"""Checkpoints that rot: found, set aside, and the one before is used. Every byte of every file of a checkpoint."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reliability.conftest import SEED, Tell
from tests.reliability.rot import cuts, flipped, flips, other_texts, sectors, write
from tunesmith.engine.checkpoint import MANIFEST, NAMES, Checkpoint, CheckpointFolder

FILES = (*NAMES, MANIFEST)
IDENTITY = "0123456789abcdef" * 4


def make(step: int) -> Checkpoint:
    weights = {"adapter/a": torch.arange(24.0) + step, "adapter/b": torch.ones(3, dtype=torch.bfloat16) * step}
    moments = {"a/exp_avg": torch.full((24,), 0.5 * step), "a/step": torch.tensor(float(step))}
    return Checkpoint(step, weights, moments, {"step": step, "tokens": 10 * step, "hooks": [{}], "loss": 1 / step})


@dataclass
class Shelf:
    """Three checkpoints; the newest rots and is put back."""

    path: Path
    said: list[str] = field(default_factory=list)
    tried: int = 0
    unnoticed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        folder = self.folder()
        for step in (1, 2, 3):
            folder.save(make(step))
        shutil.copytree(self.path, self.path.with_name("kept"))

    @property
    def newest(self) -> Path:
        return self.path / "00000003"

    def folder(self) -> CheckpointFolder:
        self.said.clear()
        return CheckpointFolder(self.path, IDENTITY, keep=3, say=lambda kind, text: self.said.append(text))

    def try_one(self, name: str) -> None:
        """Load what rotted, count, and put it back; rot that changes nothing that is used may go unnoticed."""
        self.tried += 1
        found = self.folder().newest()
        if found is None or found.step != 2 or not same(found, make(2)) or not self._is_aside():
            self.unnoticed.append(f"{name}: {None if found is None else found.step}, {self.said}")
        shutil.rmtree(self.path)
        shutil.copytree(self.path.with_name("kept"), self.path)

    def _is_aside(self) -> bool:
        return len(self.said) == 1 and (self.path / "00000003.bad-0").exists() and not self.newest.exists()

    def harmless(self) -> bool:
        """Whether what rotted is used, and is what was saved."""
        found = self.folder().look(3)
        return isinstance(found, Checkpoint) and same(found, make(3))


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return one.step == other.step and one.state == other.state and all(
        mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
        for mine, theirs in ((one.trained, other.trained), (one.optimiser, other.optimiser))
    )  # fmt: skip


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "checkpoints")


def tell_all(shelf: Shelf, name: str, tell: Tell) -> None:
    tell(f"rot, {name}", shelf.tried, shelf.tried - len(shelf.unnoticed), "found")
    assert shelf.unnoticed == []
    assert shelf.tried > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_bit_of_any_byte_a_sector_an_end(shelf: Shelf, name: str, tell: Tell) -> None:
    payload = (shelf.newest / name).read_bytes()
    choice = random.Random(SEED)
    for what, change in (*flips(payload, 1, choice), *sectors(payload, 64), *cuts(payload, 40), *other_texts()):
        rotten = change(payload)
        if rotten != payload:
            write(shelf.newest / name, rotten)
            shelf.try_one(f"{what} of {name}")
    tell_all(shelf, name, tell)


@pytest.mark.parametrize("bits", [1, pytest.param(8, marks=pytest.mark.long)])
def test_any_bit_of_the_manifest(shelf: Shelf, bits: int, tell: Tell) -> None:
    """Its own hash is nowhere: what goes unnoticed must change nothing, such as a space that became another."""
    path = shelf.newest / MANIFEST
    payload, harmless = path.read_bytes(), 0
    changes = [*sectors(payload, 64), *cuts(payload, len(payload) if bits == 8 else 40), *other_texts()]
    for first in range(bits):
        changes += [(f"byte {at}", flipped(at, (first + SEED + at * (bits == 1)) % 8)) for at in range(len(payload))]
    for what, change in changes:
        rotten = change(payload)
        if rotten == payload:
            continue
        write(path, rotten)
        if shelf.harmless():
            harmless += 1
            write(path, payload)
        else:
            shelf.try_one(f"{what} of the manifest")
    assert harmless < 0.05 * shelf.tried
    tell_all(shelf, f"{MANIFEST} ({harmless} without any effect)", tell)


def whole_files(shelf: Shelf) -> Iterator[tuple[str, Callable[[], object]]]:
    """Files that are missing, swapped, of another step or run, or no files."""
    new, before = shelf.newest, shelf.path / "00000002"
    for name in FILES:
        yield f"{name} missing", (new / name).unlink
        yield f"{name} of the step before", lambda name=name: shutil.copy(before / name, new / name)
        yield f"{name} a folder", lambda name=name: ((new / name).unlink(), (new / name).mkdir())
        yield f"{name} a link", lambda name=name: _link(new / name, before / name)
        for other in FILES:
            if other > name:
                yield f"{name} and {other} swapped", lambda name=name, other=other: _swap(new / name, new / other)
    yield "the step before, whole", lambda: (shutil.rmtree(new), shutil.copytree(before, new))
    yield "empty", lambda: (shutil.rmtree(new), new.mkdir())
    yield "another run's", lambda: CheckpointFolder(shelf.path, "another", keep=3).save(make(3))
    yield "another format", lambda: _edit(new / MANIFEST, b'"format": 1', b'"format": 2')
    yield "a file more in the manifest", lambda: _edit(new / MANIFEST, b'"files": {', b'"files": {"x": {}, ')
    yield "no number of bytes", lambda: _edit(new / MANIFEST, b'"bytes"', b'"bites"')


def _link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def _swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def _edit(path: Path, before: bytes, after: bytes) -> None:
    payload = path.read_bytes()
    assert before in payload
    path.write_bytes(payload.replace(before, after, 1))


def test_files_that_are_missing_swapped_or_anothers(shelf: Shelf, tell: Tell) -> None:
    for what, act in whole_files(shelf):
        act()
        shelf.try_one(what)
    tell_all(shelf, "whole files", tell)


def test_several_rotten_ones_are_all_set_aside(shelf: Shelf) -> None:
    for name in ("00000003", "00000002"):
        write(shelf.path / name / "state.json", b"{}")
    found = shelf.folder().newest()
    assert found is not None
    assert same(found, make(1))
    assert len(shelf.said) == 2


def test_what_was_set_aside_before_stays(shelf: Shelf) -> None:
    """Rot after rot of the same step: each has a name of its own."""
    for number in range(3):
        write(shelf.newest / MANIFEST, b"")
        assert shelf.folder().newest() is not None
        assert (shelf.path / f"00000003.bad-{number}").is_dir()
        shelf.folder().save(make(3))
    assert shelf.folder().steps() == [1, 2, 3]


def test_a_broken_reader_says_so(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are those that were written, and cannot be read: as rotten as any."""

    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("tunesmith.engine.checkpoint.load_file", fail)
    assert isinstance(shelf.folder().look(3), str)
