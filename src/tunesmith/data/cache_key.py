"""Where prepared data is cached, and the key it is found by. Torch-free.

The key covers source bytes, the renderer (tokenizer, template, options, date, rendering version), the data section,
the context and ``STORE_VERSION``. Hashing a source can be skipped for a file whose path, size and modification time
are those of an earlier hash; the shortcuts lie in ``sources.json`` in the cache root.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tunesmith.data.reading import SourceFiles
from tunesmith.data.store import STORE_VERSION
from tunesmith.errors import DataError
from tunesmith.files import sha256_of, write_json
from tunesmith.recipe.fingerprint import fingerprint
from tunesmith.recipe.root import Recipe

INDEX_NAME = "sources.json"
_INDEX_LIMIT = 4096
_SETTLED_NS = 2_000_000_000
"""A file changed this recently may change again within the same time stamp: its hash is not remembered."""


class HasFingerprint(Protocol):
    """What a key needs of a renderer."""

    def fingerprint(self) -> str:
        """Changes whenever the same record would be rendered to other tokens."""
        ...


def cache_root() -> Path:
    """Folder of the token cache: TUNESMITH_CACHE, else XDG_CACHE_HOME/tunesmith, else ~/.cache/tunesmith."""
    if own := os.environ.get("TUNESMITH_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "tunesmith"


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn errors of the file system below the cache root into a DataError with the way out."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"the token cache cannot be written: {error.strerror or error}",
            where=str(root),
            hint="free some space, or set TUNESMITH_CACHE to a folder on a disk that can be written",
        ) from error


def cache_key(
    recipe: Recipe, renderer: HasFingerprint, context: int, sources: Sequence[SourceFiles], hashes: dict[Path, str]
) -> str:
    """Hex sha256 over all that decides the stored tokens.

    Args:
        recipe: its ``data`` section counts.
        renderer: its fingerprint counts.
        context: most tokens of a row.
        sources: from ``reading.resolve``.
        hashes: sha256 of each file of ``sources``.
    """
    files = [[source.role, source.index, shown, hashes[path]] for source in sources for path, shown in source.files]
    return fingerprint(
        {
            "store_version": STORE_VERSION,
            "renderer": renderer.fingerprint(),
            "data": recipe.data.model_dump(mode="json"),
            "context": context,
            "files": files,
        }
    )


Stamp = tuple[int, int]


def stamp(path: Path) -> Stamp:
    """Size in bytes and modification time in ns. Raises DataError where the file cannot be read."""
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return status.st_size, status.st_mtime_ns


class SourceHashes:
    """sha256 of source files, with shortcuts kept in the cache root.

    Args:
        root: the cache root.
        notify: told when the shortcuts are torn or cannot be kept; neither stops anything.
    """

    def __init__(self, root: Path, notify: Callable[[str], None]) -> None:
        self._path = root / INDEX_NAME
        self._notify = notify
        index = self._load()
        if index is None:
            notify(f"{self._path} is torn and will be written anew; data files are hashed again")
        self._index = index or {}
        self._fresh: dict[str, list[Any]] = {}

    def of(self, path: Path, *, verify: bool = False) -> str:
        """Hex sha256 of a file. ``verify`` reads the file whatever the shortcut says.

        Raises:
            DataError: the file cannot be read.
        """
        if not verify and (known := self.shortcut(path)) is not None:
            return known
        before = stamp(path)
        try:
            digest = sha256_of(path)
        except OSError as error:
            raise _unreadable(path, error) from error
        if before == stamp(path) and time.time_ns() - before[1] > _SETTLED_NS:
            self._fresh[_key(path)] = [*before, digest]
        return digest

    def shortcut(self, path: Path) -> str | None:
        """The remembered hash of a file with this path, size and modification time."""
        entry = self._index.get(_key(path))
        return str(entry[2]) if entry is not None and tuple(entry[:2]) == stamp(path) else None

    def save(self) -> None:
        """Keep what was hashed since; the newest 4,096 files are remembered."""
        if not self._fresh:
            return
        merged = {**(self._load() or {}), **self._fresh}
        try:
            write_json(self._path, dict(list(merged.items())[-_INDEX_LIMIT:]))
        except OSError as error:
            self._notify(f"hashes of the data files are not remembered: {error.strerror or error} ({self._path})")

    def _load(self) -> dict[str, list[Any]] | None:
        """The shortcuts on disk; None where the file is torn."""
        try:
            index = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            return None
        whole = isinstance(index, dict) and all(isinstance(item, list) and len(item) == 3 for item in index.values())
        return index if whole else None


def _key(path: Path) -> str:
    return str(path.resolve())


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"the file cannot be read: {error.strerror or error}",
        where=str(path),
        hint="it was there a moment ago: see that its disk is mounted and that you may read it",
    )
