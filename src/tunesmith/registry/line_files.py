"""Files of JSON lines that several threads add to and that a disk may refuse for a while. Torch-free."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError
from tunesmith.files import (
    append_line,
    copy_file,
    disk_trouble,
    iter_rotten_lines,
    mend_tail,
    sync_appends,
    write_bytes,
)
from tunesmith.registry.shapes import DAMAGED, is_line


class LineFiles:
    """Appends lines whole and in order, from any thread.

    Args:
        check: called before each change; raises where this process may not write.
        lock: held while a file is changed.
    """

    def __init__(self, check: Callable[[], None], lock: threading.RLock) -> None:
        self._check = check
        self._lock = lock
        self._mended: set[Path] = set()
        self._waiting: dict[Path, list[dict[str, Any]]] = {}
        self._is_patient = False

    def append(self, path: Path, line: Mapping[str, Any]) -> None:
        """Add a line.

        Raises:
            OSError: the disk does not take it, and nobody asked to be ``patient``.
        """
        with self._lock:
            self._check()
            self._waiting.setdefault(path, []).append(dict(line))
            try:
                self._drain(path)
            except OSError as error:
                if not self._is_patient or disk_trouble(error) is None:
                    del self._waiting[path]
                    raise

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Within the context a disk that takes no lines is waited for: they are kept in memory and written later.

        Raises:
            OSError: it still takes none at the end.
        """
        self._is_patient = True
        try:
            yield
        finally:
            self._is_patient = False
        with self._lock:
            for path in list(self._waiting):
                self._drain(path)

    def settle(self) -> None:
        """Write all lines that wait, and make them durable. Raises OSError where the disk takes none."""
        with self._lock:
            self._check()
            for path in list(self._waiting):
                self._drain(path)
        sync_appends()

    def keep(self, paths: Sequence[Path], wanted: Callable[[dict[str, Any]], bool]) -> int:
        """Rewrite files with the wanted lines; lines that still wait are dropped. Returns how many written ones were."""
        with self._lock:
            self._check()
            self._waiting.clear()
            return sum(_keep(path, wanted) for path in paths)

    def mend(self, paths: Sequence[Path]) -> list[str]:
        """Leave out what is no line; a file that had such is kept as it was beside it, as ``NAME.bad-N``.

        A torn last line is none of these: every crash may leave one.

        Returns:
            A sentence for each file that was mended.
        """
        with self._lock:
            self._check()
            return [sentence for path in paths if (sentence := _mend(path)) is not None]

    def _drain(self, path: Path) -> None:
        """Write the lines that wait for ``path``, in order."""
        waiting = self._waiting.get(path, [])
        while waiting:
            # Taken out first: a signal that raises in between may lose a line of work that is done again, never double it.
            line = waiting.pop(0)
            try:
                # A line torn by a crash or a full disk would swallow the next one: it is closed or cut first.
                if path not in self._mended:
                    mend_tail(path)
                    self._mended.add(path)
                append_line(path, line)
            except BaseException as error:
                self._mended.discard(path)
                if isinstance(error, OSError):
                    waiting.insert(0, line)
                raise
        self._waiting.pop(path, None)


def _mend(path: Path) -> str | None:
    if not path.exists():
        return None
    num_lines = num_good = 0
    for _, value in iter_rotten_lines(path):
        num_lines, num_good = num_lines + 1, num_good + is_line(value)
    if num_good == num_lines:
        return None
    number = 0
    while (aside := path.with_name(f"{path.name}.bad-{number}")).exists():
        number += 1
    copy_file(path, aside)
    _write(path, [line for line, value in iter_rotten_lines(path) if is_line(value)])
    bad = num_lines - num_good
    lines = "line is" if bad == 1 else "lines are"
    return f"{bad} of the {num_lines:,} lines of {path.name}: the {lines} damaged and left out; as it was, it is kept as {aside.name}"


def _write(path: Path, lines: Sequence[bytes]) -> None:
    write_bytes(path, b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines))


def _keep(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> int:
    """Rewrite a file of JSON lines with the wanted ones; returns how many were dropped."""
    if not path.exists():
        return 0
    kept, num_lines = [], 0
    for line, value in iter_rotten_lines(path):
        if not is_line(value):
            raise RunError("a line of the run is torn", where=str(path), hint=DAMAGED)
        num_lines += 1
        if wanted(value):
            kept.append(line)
    _write(path, kept)
    return num_lines - len(kept)
