"""Files that are whole or absent, and what a crash left of those that were not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults import FaultyDisk, PowerCut
from tunesmith.disk import use_disk
from tunesmith.errors import RunError
from tunesmith.files import (
    NewFile,
    append_line,
    copy_file,
    is_leftover,
    iter_lines,
    iter_rotten_lines,
    make_folders,
    new_folder,
    read_json,
    remove_folder,
    sweep,
    sync_appends,
    write_bytes,
    write_sealed,
)

ELSEWHERE = "00000000"


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def host(tmp_path: Path) -> str:
    """How this host is named in temporary names."""
    with new_folder(tmp_path / "x") as folder:
        return folder.name.split("-")[-1].removesuffix(".tmp")


def left(folder: Path, name: str, pid: int, host: str, ending: str = "tmp", age: float = 0.0) -> str:
    path = folder / f".{name}.{pid}-{host}.{ending}"
    path.mkdir()
    (path / "inner").write_bytes(b"x")
    os.utime(path, (time.time() - age,) * 2)
    return path.name


def test_the_owner_of_a_folder_sweeps_all_of_it(tmp_path: Path, host: str) -> None:
    mine = [left(tmp_path, "a", os.getpid(), host), left(tmp_path, "b", 1, ELSEWHERE, "gone")]
    write_bytes(tmp_path / ".hidden.tmp", b"a user's")
    write_bytes(tmp_path / "c.1-00000000.tmp", b"a user's")
    assert sweep(tmp_path) == mine
    assert sorted(item.name for item in tmp_path.iterdir()) == [".hidden.tmp", "c.1-00000000.tmp", "x"]
    assert sweep(tmp_path / "absent") == []


def test_a_shared_folder_is_swept_of_what_the_dead_left(tmp_path: Path, host: str, dead: int) -> None:
    gone = [left(tmp_path, "a", dead, host), left(tmp_path, "b", os.getpid(), host, age=90_000)]
    gone.append(left(tmp_path, "c", dead, ELSEWHERE, age=90_000))
    stays = {left(tmp_path, "d", os.getpid(), host), left(tmp_path, "e", dead, ELSEWHERE), "x"}
    stays.add(left(tmp_path, "f", os.getppid(), host))
    assert sweep(tmp_path, is_shared=True) == gone
    assert {item.name for item in tmp_path.iterdir()} == stays


def test_one_name_is_swept_alone(tmp_path: Path, host: str, dead: int) -> None:
    mine, other = left(tmp_path, "out", dead, host), left(tmp_path, "output", dead, host)
    assert sweep(tmp_path, of="out", is_shared=True) == [mine]
    assert (tmp_path / other).is_dir()
    assert is_leftover(other)
    assert not is_leftover("out")


def test_links_are_removed_and_not_followed(tmp_path: Path, host: str) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"kept")
    folder = tmp_path / left(tmp_path, "a", 1, host)
    (folder / "link").symlink_to(tmp_path / "kept")
    (tmp_path / f".b.1-{host}.gone").symlink_to(tmp_path / "kept")
    assert len(sweep(tmp_path)) == 2
    assert (tmp_path / "kept" / "file").read_bytes() == b"kept"


def test_a_new_file_is_written_in_large_pieces(tmp_path: Path) -> None:
    counting = FaultyDisk()
    pieces = [bytes([number % 251]) * 1000 for number in range(3000)]
    with use_disk(counting), NewFile(tmp_path / "a") as file:
        for piece in pieces:
            file.write(piece)
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)
    assert [line.split()[0] for line in counting.log] == ["open", "write", "write", "write"]
    with pytest.raises(FileExistsError), NewFile(tmp_path / "a"):
        pass


def test_a_new_file_that_fails_hides_no_error(tmp_path: Path) -> None:
    def fail() -> None:
        with use_disk(FaultyDisk(2, "full")), NewFile(tmp_path / "a") as file:
            file.write(b"x")
            raise KeyError("the first error")

    with pytest.raises(KeyError):
        fail()


def test_names_outlive_a_power_cut(tmp_path: Path) -> None:
    """Of folders on the way, of copies, and of files that lines were appended to."""
    (tmp_path / "source").write_bytes(b"copied")
    cut = PowerCut(tmp_path)
    with use_disk(cut):
        make_folders(tmp_path / "a" / "b")
        copy_file(tmp_path / "source", tmp_path / "a" / "b" / "copy")
        append_line(tmp_path / "a" / "b" / "lines", 1)
        sync_appends()
        append_line(tmp_path / "a" / "b" / "lines", 2)
        append_line(tmp_path / "a" / "b" / "others", 1)
    cut.lose()
    assert sorted(item.name for item in (tmp_path / "a" / "b").iterdir()) == ["copy", "lines"]
    assert (tmp_path / "a" / "b" / "copy").read_bytes() == b"copied"
    assert list(iter_lines(tmp_path / "a" / "b" / "lines")) == [1]
    sync_appends()


def test_a_removed_folder_stays_removed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"x")
    cut = PowerCut(tmp_path)
    with use_disk(cut):
        remove_folder(tmp_path / "folder")
    cut.lose()
    assert not (tmp_path / "folder").exists()
    assert len(sweep(tmp_path)) == 1  # its other name is all that may come back


def test_a_seal_is_checked_and_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "sealed.json"
    values = {"b": [1, 2.5, None, "ä\u2028"], "a": {"x": 1e-7, "1": True}}
    write_sealed(path, values)
    assert read_json(path) == values
    text = path.read_text(encoding="utf-8")
    path.write_text(
        json.dumps(dict(reversed(json.loads(text).items()))), encoding="utf-8"
    )  # another layout, the same values
    assert read_json(path) == values
    for before, after in (("2.5", "2.6"), ('"x"', '"y"'), ("true", "1"), ("null", "NaN"), ("1e-07", "1e-06")):
        assert before in text
        path.write_text(text.replace(before, after), encoding="utf-8")
        with pytest.raises(RunError) as raised:
            read_json(path)
        assert raised.value.where == str(path)
    path.write_text(text.replace('"seal"', '"sel"'), encoding="utf-8")
    assert read_json(path)["a"] == values["a"]  # as a file of before there were seals


def test_rotten_lines_keep_their_places(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"a": 1}\n\xff\n[[[\nnull\n2')
    assert [value for _, value in iter_rotten_lines(path)] == [{"a": 1}, None, None, None, 2]
    path.write_bytes(b'1\n{"tor')
    assert [value for _, value in iter_rotten_lines(path)] == [1]
    path.write_bytes(b"")
    assert [value for _, value in iter_rotten_lines(path)] == []
