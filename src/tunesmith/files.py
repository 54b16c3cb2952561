"""Durable files: whole or absent, whatever happens in between. Torch-free.

Every durable write is: temporary name beside the target, write, fsync, rename, fsync of the folder.
A reader therefore sees the old file or the new one, never half of either. A folder that must go is renamed first.
Temporary names are hidden (``.NAME.PID-HOST.tmp``, ``.NAME.PID-HOST.gone``); ``sweep`` removes what a crash left of them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from tunesmith.disk import disk
from tunesmith.errors import RunError
from tunesmith.json_values import loads_ours

MOST_BYTES = 512 << 20
"""Of a file of lines of a run: a million steps of metrics take 300 MB."""
MOST_LINE_BYTES, MOST_JSON_BYTES = 16 << 20, 4 << 20
"""Of one line, and of a JSON file of a run: values take up to 30 times as much in memory."""

_CHUNK_BYTES = 1 << 20
_SEAL = "seal"
_DISK_TROUBLES = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-(?P<host>[0-9a-f]{8})\.(tmp|gone)")
_STALE_SECONDS = 24 * 3600
_DAMAGED = "the run folder is damaged: put the file back from a copy, or start a new run with --run"
_appended: set[Path] = set()
_appended_lock = threading.Lock()


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values have equal text. Raises ValueError on NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fsync_folder(folder: Path) -> None:
    """Make renames and new names in ``folder`` durable."""
    _fsync(folder)


def make_folders(folder: Path) -> None:
    """Make ``folder`` and those above it that are missing, durably."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    with suppress(FileExistsError):
        disk().make_folder(folder)
    fsync_folder(folder.parent)


def write_bytes(path: Path, payload: bytes) -> None:
    """Replace ``path`` atomically and durably."""
    make_folders(path.parent)
    temporary = _hidden(path, "tmp")
    try:
        with disk().open(temporary, "wb") as stream:
            disk().write(stream, payload)
            disk().fsync(temporary, stream.fileno())
        disk().rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            disk().unlink(temporary)
        raise
    fsync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` atomically with UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` atomically with indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """The same for an object whose rot must be found: under ``seal`` it has the sha256 of what else it says."""
    write_json(path, {**value, _SEAL: _seal_of(value)})


def read_json(path: Path, most: int = MOST_JSON_BYTES) -> Any:
    """Parse a JSON file of ours; the seal of a sealed one is checked and taken off.

    Raises:
        RunError: the file is missing, torn, no regular file, larger than ``most``, or not what was sealed.
    """
    try:
        value = loads_ours(_payload(path, most).decode("utf-8"))
    except ValueError as error:
        raise RunError(f"a file of the run is not valid JSON: {error}", where=str(path), hint=_DAMAGED) from error
    if isinstance(value, dict) and _SEAL in value and value.pop(_SEAL) != _seal_of(value):
        raise RunError(
            f"{path.name} does not say what was written: its seal does not fit", where=str(path), hint=_DAMAGED
        )
    return value


def _seal_of(value: Mapping[str, Any]) -> str:
    """Sha256 over the values as JSON gives them back: in any order of keys and any layout."""
    try:
        text = canonical_json(json.loads(json.dumps(value)))
    except (ValueError, RecursionError):  # read from a file that rotted: NaN, or too deep
        return ""
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def _opened(path: Path, most: int) -> BinaryIO:
    """A file of a run, which may come from anybody, opened for reading."""
    try:
        if not path.is_file() and path.exists():
            raise RunError(f"{path.name} of the run is not a regular file", where=str(path), hint=_DAMAGED)
        stream = path.open("rb")
    except FileNotFoundError as error:
        raise RunError("a file of the run is missing", where=str(path), hint=_DAMAGED) from error
    if os.fstat(stream.fileno()).st_size > most:
        stream.close()
        what = f"{path.name} of the run is larger than {most >> 20} MiB, the most that is read"
        raise RunError(what, where=str(path), hint=_DAMAGED)
    return stream


def _payload(path: Path, most: int) -> bytes:
    with _opened(path, most) as stream:
        return stream.read(most)


def raw_lines(path: Path) -> Iterator[bytes]:
    """Lines of a file of a run, each with its line feed alone: U+2028 and its kin end none. RunError where one is too long."""
    with _opened(path, MOST_BYTES) as stream:
        while line := stream.readline(MOST_LINE_BYTES + 1):
            if len(line) > MOST_LINE_BYTES:
                what = f"a line of {path.name} is longer than {MOST_LINE_BYTES >> 20} MiB, the most that is read"
                raise RunError(what, where=str(path), hint=_DAMAGED)
            yield line


def append_line(path: Path, value: Any) -> None:
    """Append one JSON line. ``sync_appends`` makes it durable: a torn last line is dropped by the reader."""
    payload = (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    with disk().open(path, "ab") as stream:
        is_new = stream.tell() == 0
        disk().write(stream, payload)
    with _appended_lock:
        _appended.update([path, path.parent] if is_new else [path])


def sync_appends() -> None:
    """Make every line appended so far durable: what a checkpoint stands for must not be younger than it."""
    with _appended_lock:
        paths = sorted(_appended)
        _appended.clear()
    for path in paths:
        if path.exists():
            _fsync(path)


def mend_tail(path: Path) -> None:
    """End a file of JSON lines with a newline, without the torn last line that a crash may have left."""
    if not path.exists():
        return
    payload = path.read_bytes()
    if not payload or payload.endswith(b"\n"):
        return
    start = payload.rfind(b"\n") + 1
    try:
        loads_ours(payload[start:].decode("utf-8"))
    except ValueError:
        disk().truncate(path, start)
        return
    with disk().open(path, "ab") as stream:
        disk().write(stream, b"\n")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes into a new file, whose name is as durable as its folder."""
    with source.open("rb") as reading, disk().open(target, "wb") as writing:
        while chunk := reading.read(_CHUNK_BYTES):
            disk().write(writing, chunk)
        disk().fsync(target, writing.fileno())


class NewFile:
    """A new file written in many small pieces, which reach the disk in large ones. A context manager.

    The folder it lies in is made durable as a whole. Raises FileExistsError where there is one.
    """

    def __init__(self, path: Path) -> None:
        self._stream = disk().open(path, "xb")
        self._waiting = bytearray()

    def write(self, payload: bytes) -> None:
        """Add bytes at the end."""
        self._waiting += payload
        if len(self._waiting) >= _CHUNK_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            disk().write(self._stream, memoryview(self._waiting))
            self._waiting = bytearray()

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stream:
            if kind is None:
                self._flush()


def iter_lines(path: Path) -> Iterator[Any]:
    """Values of JSON lines, one at a time; a torn last line is left out, a torn line before it raises RunError."""
    torn = 0
    for number, line in enumerate(raw_lines(path) if path.exists() else (), 1):
        if torn:
            raise RunError("a line is not valid JSON", where=f"{path}:{torn}", hint=_DAMAGED)
        try:
            value = loads_ours(line.decode("utf-8", errors="replace"))
        except ValueError:
            torn = number
            continue
        yield value


def iter_rotten_lines(path: Path) -> Iterator[tuple[bytes, Any]]:
    """Lines of a file that may be damaged, and their JSON values: None of what is none. A torn last line is left out."""
    for line in raw_lines(path):
        try:
            value = loads_ours(line.decode("utf-8"))
        except ValueError:
            if not line.endswith(b"\n"):
                return
            value = None
        yield line, value


@contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a temporary folder that becomes ``target`` on success and vanishes on failure.

    Files inside are fsynced before the rename, the parent after it.

    Args:
        target: must not exist, unless ``replace``.
        replace: an existing target is kept until the new one is whole, and then removed.
    """
    make_folders(target.parent)
    temporary = _hidden(target, "tmp")
    _remove(temporary)
    disk().make_folder(temporary)
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            _fsync(path)
        _fsync(temporary)
        old = _put_aside(target) if replace and target.exists() else None
        disk().rename(temporary, target)
    except BaseException:
        with suppress(OSError):
            _remove(temporary)
        raise
    fsync_folder(target.parent)
    if old is not None:
        _remove(old)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a crash leaves it whole or gone: it is renamed first, durably. A missing one is fine."""
    if folder.exists():
        aside = _put_aside(folder)
        fsync_folder(folder.parent)
        _remove(aside)


def sweep(folder: Path, *, of: str | None = None, is_shared: bool = False) -> list[str]:
    """Remove what a crash left of temporary files and folders in ``folder``.

    Args:
        folder: may be missing.
        of: only what was to become this name.
        is_shared: other processes may be writing there. What they left when they died is removed, as far as that can be
            seen from this host, and what is a day old; else everything is, and only the folder's owner may ask.

    Returns:
        Names of what was removed.
    """
    removed = []
    for item in sorted(folder.iterdir()) if folder.is_dir() else ():
        found = _LEFTOVER.fullmatch(item.name)
        if found is None or of not in (None, found["name"]) or (is_shared and not _is_abandoned(item, found)):
            continue
        try:
            _remove(item)
        except OSError:
            if not is_shared:
                raise
            continue  # another process was quicker, or it is another user's
        removed.append(item.name)
    return removed


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is one that ``sweep`` removes."""
    return _LEFTOVER.fullmatch(name) is not None


def _is_abandoned(item: Path, found: re.Match[str]) -> bool:
    if found["host"] == _host() and not _lives(int(found["pid"])):
        return True
    with suppress(FileNotFoundError):
        return time.time() - item.lstat().st_mtime > _STALE_SECONDS
    return False


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _put_aside(folder: Path) -> Path:
    aside = _hidden(folder, "gone")
    _remove(aside)
    disk().rename(folder, aside)
    return aside


def _remove(path: Path) -> None:
    """Remove a file or a whole folder; symbolic links are removed, never followed. A missing one is fine."""
    if path.is_symlink() or path.is_file():
        disk().unlink(path)
    elif path.is_dir():
        for item in sorted(path.iterdir()):
            _remove(item)
        disk().remove_folder(path)


def _hidden(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{_host()}.{ending}")


@cache
def _host() -> str:
    return hashlib.blake2b(platform.node().encode("utf-8"), digest_size=4).hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        disk().fsync(path, descriptor)
    finally:
        os.close(descriptor)


def disk_trouble(error: BaseException) -> OSError | None:
    """The OSError behind an error that means a full or read-only disk or a limit on files, else None.

    safetensors raises an error of its own for a full disk, which names the number in its text alone.
    """
    if not isinstance(error, OSError):
        found = _OS_ERROR.search(str(error)) if type(error).__name__ == "SafetensorError" else None
        if found is None:
            return None
        error = OSError(int(found[1]), os.strerror(int(found[1])))
    return error if error.errno in _DISK_TROUBLES else None
