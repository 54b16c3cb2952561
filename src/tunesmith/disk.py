"""The few operations that change a disk. Whatever must survive a crash is written through ``disk()``. Torch-free.

Tests put another ``Disk`` in its place, which fails, cuts short or kills at the n-th operation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class Disk:
    """The real disk. Each method is one operation; streams are unbuffered, so a write is done when it returns."""

    def open(self, path: Path, mode: str) -> BinaryIO:
        """Open for writing: ``wb`` anew, ``xb`` anew where there is none, ``ab`` at the end. A link is never followed.

        Raises:
            OSError: also where the name is a symbolic link, which may lead out of the folder that is written to.
        """
        return open(path, mode, buffering=0, opener=_open_itself)  # type: ignore[return-value]

    def write(self, stream: BinaryIO, payload: bytes | memoryview) -> None:
        """Write all of ``payload``."""
        rest = memoryview(payload).cast("B")
        while rest:
            rest = rest[stream.write(rest) :]

    def fsync(self, path: Path, descriptor: int) -> None:
        """Make a file's bytes, or a folder's names, durable."""
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or folder another name; an existing file (or empty folder) of that name is replaced."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def truncate(self, path: Path, num_bytes: int) -> None:
        """Cut a file. Raises OSError where the name is a symbolic link."""
        descriptor = _open_itself(str(path), os.O_WRONLY)
        try:
            os.ftruncate(descriptor, num_bytes)
        finally:
            os.close(descriptor)

    def make_folder(self, path: Path) -> None:
        """Make one folder. Raises FileExistsError where it is."""
        path.mkdir()

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()


def _open_itself(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o666)


_current = Disk()


def disk() -> Disk:
    """The disk that is written to."""
    return _current


@contextmanager
def use_disk(other: Disk) -> Iterator[None]:
    """Within the context, in all threads, ``other`` is written to."""
    global _current  # noqa: PLW0603 - background threads must see it too, which a context variable would hide
    before, _current = _current, other
    try:
        yield
    finally:
        _current = before
