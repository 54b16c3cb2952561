"""One process at a time works on a run folder: a lock that the system takes back when its owner dies. Torch-free.

``lease.json`` names the owner, who holds an advisory lock on it and touches it every few seconds. Whoever finds it locked knows
that the owner lives; where a lock cannot be seen (another machine, a file system without locks) the age of the last touch decides.
The file stays when its owner is killed: the next one learns from it whom it follows.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError
from tunesmith.files import make_folders

try:
    import fcntl
except ImportError:  # a system without POSIX locks: the heartbeat alone decides
    _HAS_LOCKS = False
else:
    _HAS_LOCKS = True

NAME = "lease.json"
BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
PATIENCE_SECONDS = 5.0
"""How long a file that somebody holds, who has not written a name into it, is looked at again."""
LEAST_TRIES = 10
"""Tries that a start has, however long each takes: on a slow disk one is longer than all patience."""
SETTLE_SECONDS = 0.5
"""Where there are no locks: how long a starter waits before it reads whether the name in the file is still its own."""
_MOST_BYTES = 4096
_LATEST = 1e11
_HOST = re.compile(r"[\w.:-]{1,255}")
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class LeaseLost(RunError):
    """The run folder was removed, or another process took it over: nothing more may be written into it."""


@dataclass(frozen=True)
class Owner:
    """Who works on a run: process, host, since when (seconds since 1970), and under which kernel, where it says so."""

    pid: int
    host: str
    since: float
    kernel: str = ""

    def __str__(self) -> str:
        """Name the process as a person would look for it."""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid}{self._elsewhere}, since {when}"

    @property
    def how_to_stop(self) -> str:
        """The command that asks it to save and leave."""
        return f"`kill {self.pid}`{self._elsewhere}"

    @property
    def is_near(self) -> bool:
        """Whether it runs (or ran) under this kernel, containers included: its lock would be seen from here."""
        kernel = _kernel()
        return self.kernel == kernel if self.kernel and kernel else self.host == _host()

    @property
    def _elsewhere(self) -> str:
        return "" if self.host == _host() else f" on {self.host}"


class Lease:
    """A lease that is held.

    Attributes:
        owner: this process.
        predecessor: who held it before and never gave it back; None where it was free.
    """

    def __init__(self, folder: Path, descriptor: int, owner: Owner, predecessor: Owner | None) -> None:
        self.folder = folder
        self.owner = owner
        self.predecessor = predecessor
        self._descriptor = descriptor
        self._folder_descriptor = os.open(folder, os.O_RDONLY)  # kept open, so that no other folder gets its number
        self._lost = ""
        self._changing = threading.RLock()
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True, name="lease")
        self._beating.start()

    def check(self) -> None:
        """Make sure that the folder is still this process's; a lease file that was merely removed is written again.

        Raises:
            LeaseLost: the folder was removed, or another process took it over.
        """
        with self._changing:
            if not self._lost and self._descriptor >= 0 and not self._is_in_place():
                self._lost = self._put_back()
        if self._lost:
            raise LeaseLost(
                self._lost,
                where=str(self.folder),
                hint="nothing more is written there; start again with --run elsewhere",
            )

    def _is_in_place(self) -> bool:
        return _is_at(self._descriptor, self.folder / NAME)

    def _put_back(self) -> str:
        """Take the lease anew; returns why that is not possible, or nothing."""
        if not _is_at(self._folder_descriptor, self.folder):
            return "the run folder was removed while this process worked on it"
        try:
            descriptor = _open(self.folder, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return f"another process took the run over: {named(self.folder) or 'its name is not known'}"
        except OSError:
            return ""  # the next check tries again
        try:
            _lock(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return "another process took the run over at this moment"
        os.close(self._descriptor)
        self._descriptor = descriptor
        with suppress(OSError):
            _write(descriptor, self.owner)
        return ""

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with self._changing, suppress(OSError, LeaseLost):
                self.check()
                os.utime(self._descriptor)

    def forget(self) -> None:
        """In a process forked from the owner: let go of the lock, which must not outlive the owner."""
        os.close(self._descriptor)
        os.close(self._folder_descriptor)
        self._descriptor = -1

    def give_back(self) -> bool:
        """Remove the file, if it is still this lease's, and free the lock. Returns whether it was."""
        self._ended.set()
        self._beating.join()
        is_mine = not self._lost and self._is_in_place()
        if is_mine:
            with suppress(OSError):
                (self.folder / NAME).unlink()
        os.close(self._descriptor)
        os.close(self._folder_descriptor)
        return is_mine


_held: list[Lease] = []


def _forget_all() -> None:
    while _held:
        _held.pop().forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


@contextmanager
def lease(folder: Path) -> Iterator[Lease]:
    """Hold the lease of a run folder, which is made where it is missing and removed again if it stays empty.

    Raises:
        RunError: another process holds it, or the folder cannot be written.
    """
    made = [item for item in (folder, *folder.parents) if not item.exists()]
    try:
        held = _take(folder)
    except OSError as error:
        _remove_empty(made)
        raise RunError(
            f"the run folder cannot be written: {error.strerror or error}",
            where=str(folder),
            hint="free some space, or name a folder on another disk with --run",
        ) from error
    _held.append(held)
    try:
        yield held
    finally:
        if held in _held:  # not in a forked process, whose parent goes on
            _held.remove(held)
            if held.give_back():
                _remove_empty(made)


def refuse_if_held(folder: Path) -> None:
    """Refuse a folder that another process works on: quick, and before anything expensive.

    Raises:
        RunError: names the process and how to stop it.
    """
    holder = owner(folder)
    if holder is not None:
        raise _refusal(folder, str(holder), f"stop it with {holder.how_to_stop} (it saves a checkpoint), ")


def owner(folder: Path) -> Owner | None:
    """The living process that works on a run; None where there is none, or it died."""
    try:
        descriptor = _open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        found = _read(descriptor)
        if found is None:
            return None
        locked = _is_locked(descriptor)
        if locked is None or (not locked and not found.is_near):
            locked = time.time() - os.fstat(descriptor).st_mtime < STALE_SECONDS
        return found if locked else None
    finally:
        os.close(descriptor)


def named(folder: Path) -> Owner | None:
    """Whom the lease file of a run names, living or dead."""
    try:
        descriptor = _open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        return _read(descriptor)
    finally:
        os.close(descriptor)


def _take(folder: Path) -> Lease:
    """Lock the file and write who we are; the lock must be on the file that has the name, not on one just removed."""
    limit = time.monotonic() + PATIENCE_SECONDS
    for tries in count(1):
        is_last = tries >= LEAST_TRIES and time.monotonic() > limit
        refuse_if_held(folder)
        try:
            make_folders(folder)
            descriptor = _open(folder, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # its owner gave up and took the empty folder back
            if is_last:
                raise
            continue
        try:
            held = _claim(folder, descriptor)
        except BlockingIOError:  # its owner has not written its name yet, or somebody looks whether it is locked
            held = None
            time.sleep(0.02)
        except BaseException:
            os.close(descriptor)
            raise
        if held is not None:
            return held
        os.close(descriptor)
        if is_last:
            break
    raise _refusal(folder, "it has not written who it is", "")


def _claim(folder: Path, descriptor: int) -> Lease | None:
    """Lock the open file and write who we are; None where it lost its name, or where others write and there are no locks."""
    has_locks = _lock(descriptor)
    if not _is_at(descriptor, folder / NAME):
        return None
    before, me = _read(descriptor), Owner(os.getpid(), _host(), time.time(), _kernel())
    try:
        _write(descriptor, me)
        return Lease(folder, descriptor, me, before) if has_locks or _has_settled(descriptor, me) else None
    except BaseException:
        with suppress(OSError):
            (folder / NAME).unlink()
        raise


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file or folder is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
    except OSError:  # a disk that does not answer is not a sign of another owner
        return True


def _open(folder: Path, flags: int) -> int:
    """Open the file itself: no link is followed, and nothing waits for the other end of a pipe."""
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(folder / NAME, flags | careful | getattr(os, "O_CLOEXEC", 0), 0o644)


def _refusal(folder: Path, who: str, how: str) -> RunError:
    return RunError(
        f"another process works on this run: {who}",
        where=str(folder),
        hint=f"wait for it, {how}or name another folder with --run",
    )


def _lock(descriptor: int) -> bool:
    """Lock for this process alone; False where the file system has no locks. Raises BlockingIOError where another has it."""
    if not _HAS_LOCKS:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _is_locked(descriptor: int) -> bool | None:
    """Whether some process holds the lock; None where that cannot be seen."""
    if not _HAS_LOCKS:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def _has_settled(descriptor: int, me: Owner) -> bool:
    """Without locks the last of several starters has its name in the file, and wins."""
    time.sleep(SETTLE_SECONDS)
    return _read(descriptor) == me


def _write(descriptor: int, me: Owner) -> None:
    payload = json.dumps(asdict(me)).encode("utf-8")
    os.pwrite(descriptor, payload, 0)
    os.ftruncate(descriptor, len(payload))


def _read(descriptor: int) -> Owner | None:
    """The name in the file, which anybody may have written: only what can be shown and acted upon is taken."""
    try:
        values: Any = json.loads(os.pread(descriptor, _MOST_BYTES, 0))
        found = Owner(int(values["pid"]), str(values["host"]), float(values["since"]), str(values.get("kernel", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    is_sane = found.pid > 0 and 0 <= found.since < _LATEST and _HOST.fullmatch(found.host)
    return found if is_sane else None


def _host() -> str:
    return re.sub(r"[^\w.:-]", "-", socket.gethostname())[:255] or "unknown"


def _kernel() -> str:
    """What this boot of this machine is called, in all its containers; empty where the system does not say."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _remove_empty(made: list[Path]) -> None:
    for folder in made:
        with suppress(OSError):
            folder.rmdir()
