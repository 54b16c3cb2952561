"""The only place that writes files which must survive a crash. Torch-free.

Every durable write is: temporary name beside the target, write, fsync, rename, fsync of the folder.
A reader therefore sees the old file or the new one, never half of either.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError

_CHUNK_BYTES = 1 << 20
_DISK_TROUBLES = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_DAMAGED = "the run folder is damaged: put the file back from a copy, or start a new run with --run"


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
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, payload: bytes) -> None:
    """Replace ``path`` atomically and durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` atomically with UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` atomically with indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file of ours.

    Raises:
        RunError: the file is missing or torn.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError("a file of the run is missing", where=str(path), hint=_DAMAGED) from error
    except ValueError as error:
        raise RunError(f"a file of the run is not valid JSON: {error}", where=str(path), hint=_DAMAGED) from error


def append_line(path: Path, value: Any) -> None:
    """Append one JSON line. Appends are not fsynced: a torn last line is dropped by the reader."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def read_lines(path: Path) -> list[Any]:
    """Read JSON lines; a torn last line is left out, a torn line before it raises RunError.

    Lines end in a line feed alone: texts may hold U+2028 and its kin, at which ``str.splitlines`` would cut.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    values: list[Any] = []
    for number, line in enumerate(lines, 1):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise RunError("a line is not valid JSON", where=f"{path}:{number}", hint=_DAMAGED) from error
    return values


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a temporary folder that becomes ``target`` on success and vanishes on failure.

    Files inside are fsynced before the rename, the parent after it. ``target`` must not exist.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            else:
                fsync_folder(path)
        fsync_folder(temporary)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(target.parent)


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
