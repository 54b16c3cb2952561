"""One process at a time works on a run folder: a lock that the system takes back when its owner dies. Torch-free.

``lease.json`` names the owner; the owner holds an advisory lock on it and touches it every few seconds. Where a lock
cannot be seen (another host, a file system without locks) the age of the last touch decides.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError
from tunesmith.files import make_folders

try:
    import fcntl
except ImportError:  # a system without POSIX locks: the heartbeat alone decides
    fcntl = None  # type: ignore[assignment]

NAME = "lease.json"
BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
_MOST_BYTES = 4096


@dataclass(frozen=True)
class Owner:
    """Who works on a run: process and host, and since when (seconds since 1970)."""

    pid: int
    host: str
    since: float

    def __str__(self) -> str:
        """Name the process as a person would look for it."""
        here = "" if self.host == socket.gethostname() else f" on {self.host}"
        return f"process {self.pid}{here}, since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))}"


@contextmanager
def lease(folder: Path) -> Iterator[None]:
    """Hold the lease of a run folder, which is made where it is missing and removed again if it stays empty.

    Raises:
        RunError: another process holds it, or the folder cannot be written.
    """
    made = [item for item in (folder, *folder.parents) if not item.exists()]
    try:
        make_folders(folder)
        descriptor = _take(folder)
    except OSError as error:
        _remove_empty(made)
        raise RunError(
            f"the run folder cannot be written: {error.strerror or error}",
            where=str(folder),
            hint="free some space, or name a folder on another disk with --run",
        ) from error
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(descriptor, ended), daemon=True, name="lease")
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        with suppress(OSError):
            (folder / NAME).unlink()
        os.close(descriptor)
        _remove_empty(made)


def owner(folder: Path) -> Owner | None:
    """The living process that works on a run; None where there is none, or it died."""
    path = folder / NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = _read(descriptor)
        if found is None:
            return None
        fresh = time.time() - os.fstat(descriptor).st_mtime < STALE_SECONDS
        if fcntl is None or found.host != socket.gethostname():
            return found if fresh else None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return found
        except OSError:
            return found if fresh else None
        return None
    finally:
        os.close(descriptor)


def _take(folder: Path) -> int:
    """Lock the file and write who we are; the lock must be on the file that has the name, not on one just removed."""
    path = folder / NAME
    while True:
        holder = owner(folder)
        if holder is not None:
            raise _held(folder, holder)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            _lock(descriptor)
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                _write(descriptor)
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(descriptor)
            time.sleep(0.05)  # its owner has not written its name yet
            continue
        except BaseException:
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)
            raise
        os.close(descriptor)


def _held(folder: Path, holder: Owner) -> RunError:
    return RunError(
        f"another process works on this run: {holder}",
        where=str(folder),
        hint=f"wait for it, stop it with `kill {holder.pid}` (it saves a checkpoint), or name another folder with --run",
    )


def _lock(descriptor: int) -> None:
    if fcntl is not None:
        with suppress(NotImplementedError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _write(descriptor: int) -> None:
    payload = json.dumps(asdict(Owner(os.getpid(), socket.gethostname(), time.time()))).encode("utf-8")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, payload, 0)


def _read(descriptor: int) -> Owner | None:
    try:
        values: Any = json.loads(os.pread(descriptor, _MOST_BYTES, 0))
        return Owner(int(values["pid"]), str(values["host"]), float(values["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _beat(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):
            os.utime(descriptor)


def _remove_empty(made: list[Path]) -> None:
    for folder in made:
        with suppress(OSError):
            folder.rmdir()
