"""Disks that break: fail, write half, or die at the n-th operation, and lose what was never made durable."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
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
        """End here."""
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
        if self.how == "after":
            act()
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
        self._around(
            "fsync", path, lambda: None
        )  # the page cache outlives a process; ``PowerCut`` models what does not

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


class PowerCut(FaultyDisk):
    """Loses at the crash whatever was never fsynced: bytes of files, and names in folders.

    The harshest disk that POSIX allows. With ``names_survive`` only bytes are lost: a file system that writes names out early.

    Args:
        attic: a folder on the same file system for what may have to come back.
        at, how, only: as for ``FaultyDisk``.
        names_survive: see above.
    """

    def __init__(self, attic: Path, *, names_survive: bool = False, **faults: Any) -> None:
        super().__init__(**faults)
        attic.mkdir(parents=True, exist_ok=True)
        self.attic = attic
        self.names_survive = names_survive
        self._durable_bytes: dict[int, int] = {}
        self._undo: list[tuple[Path, Callable[[], None]]] = []
        self._kept = 0

    def die(self) -> None:
        self.dead = True
        self.lose()
        raise Crash(self.log[-1])

    def lose(self) -> None:
        """Take back what is not durable."""
        if not self.names_survive:
            for _, undo in reversed(self._undo):
                undo()
        for path in self._roots():
            for item in path.rglob("*"):
                if item.is_file() and (durable := self._durable_bytes.get(item.stat().st_ino)) is not None:
                    os.truncate(item, min(durable, item.stat().st_size))

    def _roots(self) -> set[Path]:
        return {self.attic.parent}

    def _keep(self, path: Path) -> Path:
        """Another name for a file that is about to lose its own."""
        self._kept += 1
        kept = self.attic / str(self._kept)
        os.link(path, kept)
        return kept

    def open(self, path: Path, mode: str) -> BinaryIO:
        new = not path.exists()
        stream = super().open(path, mode)
        inode = os.fstat(stream.fileno()).st_ino
        if new:
            self._durable_bytes[inode] = 0
            self._undo.append((path.parent, lambda: path.unlink(missing_ok=True)))
        elif mode != "ab":
            self._durable_bytes[inode] = 0
        else:
            self._durable_bytes.setdefault(inode, path.stat().st_size)
        return stream

    def fsync(self, path: Path, descriptor: int) -> None:
        super().fsync(path, descriptor)
        if path.is_dir():
            self._undo = [(folder, undo) for folder, undo in self._undo if folder != path]
        else:
            found = os.fstat(descriptor)
            self._durable_bytes[found.st_ino] = found.st_size

    def rename(self, source: Path, target: Path) -> None:
        replaced = self._keep(target) if target.is_file() else None
        super().rename(source, target)

        def undo() -> None:
            if target.exists():
                target.replace(source)
            if replaced is not None:
                shutil.copy2(replaced, target)

        self._undo.append((target.parent, undo))

    def unlink(self, path: Path) -> None:
        kept = self._keep(path) if path.is_file() else None
        super().unlink(path)

        def undo() -> None:
            if kept is not None and path.parent.is_dir() and not path.exists():
                os.link(kept, path)

        self._undo.append((path.parent, undo))

    def make_folder(self, path: Path) -> None:
        super().make_folder(path)
        self._undo.append((path.parent, lambda: shutil.rmtree(path, ignore_errors=True)))

    def remove_folder(self, path: Path) -> None:
        super().remove_folder(path)
        self._undo.append((path.parent, lambda: path.mkdir(exist_ok=True)))
