"""Disks that break: fail, write half, or die at the n-th operation, and lose what was never made durable."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.disk import Disk


class Crash(BaseException):
    """The process is gone: not an Exception, so that nothing recovers from it."""


class FaultyDisk(Disk):
    """Counts operations and breaks at one.

    Args:
        at: number of the operation that breaks, from 1; 0 never.
        how: ``fail`` raises an OSError there once; ``full`` from there on; ``short`` writes half and then fails (other
            operations fail); ``crash`` dies before it, ``torn`` after half a write, ``after`` once it is done. A dead disk
            takes nothing more.
        number: errno of a failure.
        only: operations that count, by path; None for all.
    """

    def __init__(
        self, at: int = 0, how: str = "crash", number: int = 28, only: Callable[[Path], bool] | None = None
    ) -> None:
        self.at, self.how, self.number, self.only = at, how, number, only
        self.count = 0
        self.dead = False
        self.log: list[str] = []

    def die(self) -> None:
        """End here: the process is gone, what it wrote stays in the page cache."""
        self.dead = True
        raise Crash(self.log[-1])

    def _around(self, kind: str, path: Path, act: Callable[[], Any], half: Callable[[], Any] = lambda: None) -> Any:
        if self.dead:
            raise Crash("the disk is dead")
        if self.only is not None and not self.only(path):
            return act()
        self.count += 1
        self.log.append(f"{kind} {path}")
        broken = self.count == self.at or (self.how == "full" and 0 < self.at <= self.count)
        if not broken or (self.how == "full" and kind not in ("write", "open", "make_folder")):
            return act()
        if self.how in ("fail", "full"):
            raise OSError(self.number, os.strerror(self.number), str(path))
        if self.how == "short":
            half()
            raise OSError(self.number, os.strerror(self.number), str(path))
        if self.how == "torn":
            half()
        if self.how == "after" and (done := act()) is not None:
            done.close()
        self.die()
        return None

    def open(self, path: Path, mode: str) -> BinaryIO:
        stream: BinaryIO = self._around("open", path, lambda: Disk.open(self, path, mode))
        return stream

    def write(self, stream: BinaryIO, payload: bytes | memoryview) -> None:
        half = memoryview(payload).cast("B")[: len(payload) // 2]
        self._around(
            "write",
            Path(stream.name),
            lambda: Disk.write(self, stream, payload),
            lambda: Disk.write(self, stream, half),
        )

    def fsync(self, path: Path, descriptor: int) -> None:
        self._around("fsync", path, lambda: self._make_durable(path))

    def _make_durable(self, path: Path) -> None:
        """Nothing to do: the page cache outlives a process; ``PowerCut`` models what does not."""

    def rename(self, source: Path, target: Path) -> None:
        self._around("rename", target, lambda: Disk.rename(self, source, target))

    def unlink(self, path: Path) -> None:
        self._around("unlink", path, lambda: Disk.unlink(self, path))

    def truncate(self, path: Path, num_bytes: int) -> None:
        self._around("truncate", path, lambda: Disk.truncate(self, path, num_bytes))

    def make_folder(self, path: Path) -> None:
        self._around("make_folder", path, lambda: Disk.make_folder(self, path))

    def remove_folder(self, path: Path) -> None:
        self._around("remove_folder", path, lambda: Disk.remove_folder(self, path))


@dataclass
class _Durable:
    """What a file or folder holds on the platters; its descriptor keeps the number of the inode from being used again."""

    descriptor: int
    payload: bytes = b""
    names: dict[str, int] = field(default_factory=dict)


class PowerCut(FaultyDisk):
    """Loses at the crash whatever was never fsynced: bytes of files and names in folders, whoever wrote them.

    The harshest disk that POSIX allows. With ``names_survive`` only bytes are lost: a file system that writes names out
    early. Links are taken for durable.

    Args:
        root: the disk: all that lies below it at the start is durable. The folder itself stays.
        names_survive: see above.
        faults: ``at``, ``how`` (``crash``, ``torn``, ``after``) and ``only``, as for ``FaultyDisk``.
    """

    def __init__(self, root: Path, *, names_survive: bool = False, **faults: Any) -> None:
        super().__init__(**faults)
        self.root = root
        self.names_survive = names_survive
        self._known: dict[int, _Durable] = {}
        for folder, _, names in os.walk(root, topdown=False):
            for name in names:
                self._make_durable(Path(folder, name))
            self._make_durable(Path(folder))

    def die(self) -> None:
        self.dead = True
        self.lose()
        raise Crash(self.log[-1])

    def lose(self) -> None:
        """Take back what is not durable, and forget."""
        folders: set[str] = set()
        files: dict[str, bytes] = {}
        self._gather(self.root, self._inode(self.root), "", folders, files)
        for folder, below, names in os.walk(self.root, topdown=False):
            for path in (Path(folder, name) for name in names):
                if not path.is_symlink() and path.relative_to(self.root).as_posix() not in files:
                    path.unlink()
            for path in (Path(folder, name) for name in below):
                if not path.is_symlink() and path.relative_to(self.root).as_posix() not in folders:
                    shutil.rmtree(path)
        for name in sorted(folders):
            (self.root / name).mkdir(exist_ok=True)
        for name, payload in files.items():
            path = self.root / name
            if not path.is_file() or path.read_bytes() != payload:
                path.write_bytes(payload)
        for known in self._known.values():
            os.close(known.descriptor)
        self._known = {}

    def _gather(self, path: Path, inode: int, name: str, folders: set[str], files: dict[str, bytes]) -> None:
        """What will be there, by names relative to the root; ``path`` is read where names survive."""
        known = self._known[inode]
        if not stat.S_ISDIR(os.fstat(known.descriptor).st_mode):
            files[name] = known.payload
            return
        if name:
            folders.add(name)
        names = {item.name: self._inode(item) for item in _entries(path)} if self.names_survive else known.names
        for below, number in names.items():
            self._gather(path / below, number, f"{name}/{below}" if name else below, folders, files)

    def _inode(self, path: Path) -> int:
        """Number of the file; one that was never seen holds nothing durable."""
        number = path.stat().st_ino
        if number not in self._known:
            self._known[number] = _Durable(os.open(path, os.O_RDONLY))
        return number

    def _make_durable(self, path: Path) -> None:
        if path.is_symlink() or not path.resolve().is_relative_to(self.root.resolve()):
            return
        known = self._known[self._inode(path)]
        if path.is_dir():
            known.names = {item.name: self._inode(item) for item in _entries(path)}
        else:
            known.payload = path.read_bytes()


def _entries(folder: Path) -> list[Path]:
    return [item for item in folder.iterdir() if not item.is_symlink()]
