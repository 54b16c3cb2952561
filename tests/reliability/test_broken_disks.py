"""The disks that break are what they say: small scripts whose outcome is known beforehand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import Crash, FaultyDisk, PowerCut
from tunesmith.disk import disk, use_disk
from tunesmith.files import append_line, iter_lines, mend_tail, new_folder, sync_appends, write_bytes


def write(path: Path, payload: bytes, *, sync: bool, mode: str = "wb") -> None:
    with disk().open(path, mode) as stream:
        disk().write(stream, payload)
        if sync:
            disk().fsync(path, stream.fileno())


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    disk().fsync(folder, descriptor)
    os.close(descriptor)


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything below a folder; None for a folder."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None for path in root.rglob("*")
    }


def cut(root: Path, script: Callable[[Path], None], *, names_survive: bool = False) -> dict[str, bytes | None]:
    """What is there after a script and a power cut."""
    broken = PowerCut(root, names_survive=names_survive)
    with use_disk(broken):
        script(root)
    broken.lose()
    return tree(root)


def unsynced(root: Path) -> None:
    write(root / "new", b"new", sync=False)
    write(root / "old", b"longer than before", sync=False)


def bytes_alone(root: Path) -> None:
    write(root / "new", b"new", sync=True)
    write(root / "old", b"changed", sync=True)


def name_alone(root: Path) -> None:
    write(root / "new", b"new", sync=False)
    sync_folder(root)


def synced(root: Path) -> None:
    bytes_alone(root)
    sync_folder(root)


def appended(root: Path) -> None:
    write(root / "old", b" and kept", sync=True, mode="ab")
    write(root / "old", b" and lost", sync=False, mode="ab")


def renamed(root: Path) -> None:
    disk().rename(root / "old", root / "other")


def replaced(root: Path) -> None:
    write(root / "temporary", b"replaced", sync=True)
    disk().rename(root / "temporary", root / "old")


def removed(root: Path) -> None:
    disk().unlink(root / "old")
    disk().unlink(root / "folder" / "inner")
    disk().remove_folder(root / "folder")


def shortened(root: Path) -> None:
    disk().truncate(root / "old", 1)


def a_folder_moved(root: Path) -> None:
    disk().make_folder(root / "temporary")
    write(root / "temporary" / "file", b"whole", sync=True)
    sync_folder(root / "temporary")
    disk().rename(root / "temporary", root / "target")


def around_the_layer(root: Path) -> None:
    (root / "new").write_bytes(b"written by others")
    (root / "old").write_bytes(b"written over by others")
    sync_folder(root)


OLD: dict[str, bytes | None] = {"old": b"old", "folder": None, "folder/inner": b"inner"}
ONLY_OLD = {"old": b"old"}
FOLDER: dict[str, bytes | None] = {"folder": None, "folder/inner": b"inner"}
SCRIPTS: list[tuple[Callable[[Path], None], dict[str, bytes | None], dict[str, bytes | None]]] = [
    (unsynced, OLD, OLD | {"new": b""}),
    (bytes_alone, OLD | {"old": b"changed"}, OLD | {"old": b"changed", "new": b"new"}),
    (name_alone, OLD | {"new": b""}, OLD | {"new": b""}),
    (synced, OLD | {"old": b"changed", "new": b"new"}, OLD | {"old": b"changed", "new": b"new"}),
    (appended, OLD | {"old": b"old and kept"}, OLD | {"old": b"old and kept"}),
    (renamed, OLD, FOLDER | {"other": b"old"}),
    (replaced, OLD, OLD | {"old": b"replaced"}),
    (removed, OLD, {}),
    (shortened, OLD, OLD),
    (a_folder_moved, OLD, OLD | {"target": None, "target/file": b"whole"}),
    (around_the_layer, OLD | {"new": b""}, OLD | {"new": b""}),
]


@pytest.mark.parametrize(("script", "lost", "kept"), SCRIPTS, ids=lambda item: getattr(item, "__name__", ""))
def test_a_power_cut_loses_what_was_not_made_durable(
    tmp_path: Path,
    script: Callable[[Path], None],
    lost: dict[str, bytes | None],
    kept: dict[str, bytes | None],
) -> None:
    for names_survive, expected in ((False, lost), (True, kept)):
        root = tmp_path / str(names_survive)
        (root / "folder").mkdir(parents=True)
        (root / "old").write_bytes(b"old")
        (root / "folder" / "inner").write_bytes(b"inner")
        assert cut(root, script, names_survive=names_survive) == expected


def test_what_is_not_on_the_disk_is_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"here")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(outside)
    assert cut(root, lambda _: write(outside, b"changed", sync=False)) == {"link": b"changed"}
    assert outside.read_bytes() == b"changed"


HOWS = ("crash", "torn", "after")
Break = Callable[[Path, int, str], FaultyDisk]
DISKS: dict[str, Break] = {
    "process": lambda root, at, how: FaultyDisk(at, how),
    "power": lambda root, at, how: PowerCut(root, at=at, how=how),
    "power, names survive": lambda root, at, how: PowerCut(root, at=at, how=how, names_survive=True),
}


def outcomes(root: Path, make: Break, how: str, script: Callable[[Path], None]) -> list[dict[str, bytes | None]]:
    """What a crash at every operation of a script leaves, without what is hidden."""
    found = []
    for at in range(1, 1000):
        place = root / f"{at}"
        place.mkdir(parents=True)
        write_bytes(place / "file", b"old")
        broken = make(place, at, how)
        try:
            with use_disk(broken):
                script(place)
        except Crash:
            found.append({name: held for name, held in tree(place).items() if not name.startswith(".")})
        else:
            assert broken.count == at - 1
            return found
    raise AssertionError("the script never ends")


@pytest.mark.parametrize("make", DISKS.values(), ids=DISKS)
@pytest.mark.parametrize("how", HOWS)
def test_a_written_file_is_the_old_or_the_new_one(tmp_path: Path, make: Break, how: str) -> None:
    found = outcomes(tmp_path, make, how, lambda root: write_bytes(root / "file", b"new"))
    assert len(found) == 5  # open, write, fsync, rename, fsync of the folder
    assert all(item in ({"file": b"old"}, {"file": b"new"}) for item in found)
    assert found[0] == {"file": b"old"}
    if how == "after":
        assert found[-1] == {"file": b"new"}


def fill(root: Path) -> None:
    with new_folder(root / "folder") as folder:
        write(folder / "a", b"first", sync=False)
        write(folder / "b", b"second", sync=False)


@pytest.mark.parametrize("make", DISKS.values(), ids=DISKS)
@pytest.mark.parametrize("how", HOWS)
def test_a_new_folder_is_whole_or_absent(tmp_path: Path, make: Break, how: str) -> None:
    found = outcomes(tmp_path, make, how, fill)
    absent: dict[str, bytes | None] = {"file": b"old"}
    whole = absent | {"folder": None, "folder/a": b"first", "folder/b": b"second"}
    assert len(found) == 10
    assert all(item in (absent, whole) for item in found)
    assert found[0] == absent
    if how == "after":
        assert found[-1] == whole


@pytest.mark.parametrize("make", DISKS.values(), ids=DISKS)
@pytest.mark.parametrize("how", HOWS)
def test_appended_lines_are_whole_or_mended(tmp_path: Path, make: Break, how: str) -> None:
    def script(root: Path) -> None:
        for number in (1, 2):
            append_line(root / "lines", number)
        sync_appends()
        append_line(root / "lines", 3)

    for number, left in enumerate(outcomes(tmp_path, make, how, script), 1):
        path = tmp_path / f"{number}" / "lines"
        mend_tail(path)
        assert list(iter_lines(path)) in ([], [1], [1, 2], [1, 2, 3]), left
        append_line(path, 4)
        assert list(iter_lines(path))[-1] == 4
    sync_appends()
