"""Files of a source, and their rows as a stream in bounded memory. Torch-free.

    SourceSection.path ──expand──> files ──read_rows──> RawRow | Rejected

| suffix | rows |
|---|---|
| ``.jsonl`` ``.ndjson`` | one JSON object a line |
| ``.json`` | an array of objects, an object with one list of them, one object, or JSON lines |
| ``.csv`` ``.tsv`` | a header, then rows; quoted fields may hold line ends |
| ``.parquet`` | rows of the table |
| ``.txt`` | one document a file, a paragraph or a line; see ``text_rows`` |
| ``.conll`` ``.iob`` ``.bio`` | sentences of tagged words; see ``conll_rows`` |

All but parquet may be packed as ``.gz`` or ``.zst``.
"""

from __future__ import annotations

import difflib
import glob
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tunesmith.data.bad_row import shortened
from tunesmith.data.conll_rows import conll_rows
from tunesmith.data.json_rows import json_rows, jsonl_rows
from tunesmith.data.layout import TEXT, Layout
from tunesmith.data.streams import PACKED
from tunesmith.data.table_rows import csv_rows, parquet_rows, tsv_rows
from tunesmith.data.text_rows import TEXT_READERS, file_rows
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSection
from tunesmith.records import RawRow, Rejected

Reader = Callable[..., Iterator[RawRow | Rejected]]
"""Called with a path and its name; those of ``.csv`` and ``.tsv`` also with ``header``."""

_USUAL = Layout()

_SHOWN_NAMES = 8
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz")


READERS: dict[str, Reader] = {
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".parquet": parquet_rows,
    TEXT: file_rows,
    ".conll": conll_rows,
    ".iob": conll_rows,
    ".bio": conll_rows,
}
"""Suffix to reader; a ``.txt`` file may be cut otherwise."""

_KNOWN = f"known: {', '.join(READERS)}, each but .parquet also with {' or '.join(PACKED)}"


def expand(source: SourceSection, folder: Path) -> list[Path]:
    """Files that a source names, in order; each pattern's files sorted, a file named twice taken once.

    A folder means all files of known suffixes in it and below it, hidden ones left out; ``**`` in a glob any depth.

    Args:
        source: with paths relative to ``folder``, or absolute.
        folder: where the recipe lies.

    Raises:
        DataError: nothing matches, a file is missing or empty, or its suffix is not known.
    """
    patterns = [source.path] if isinstance(source.path, str) else source.path
    if not patterns:
        raise DataError("a source names no file", where="path", hint="give a file, a folder or a glob")
    found: dict[Path, None] = {}
    for pattern in patterns:
        try:
            found.update(dict.fromkeys(_matches(pattern, folder)))
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # too long, a null character, `~name` of nobody, a loop of links
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise DataError(
                f"the path cannot be looked up: {reason}",
                where=shortened(pattern),
                hint="give a file, a folder or a glob",
            ) from error
    for path in found:
        if path.stat().st_size == 0:
            raise DataError(
                "the file is empty", where=str(path), hint="remove it from the source, or write rows into it"
            )
    return list(found)


def _matches(pattern: str, folder: Path) -> list[Path]:
    path = folder / _at_home(pattern)
    if not pattern.strip():
        raise DataError("a path is empty", where="path", hint="give a file, a folder or a glob")
    if path.is_file():
        return [_known(path)]
    if path.is_dir():
        return _below(path)
    if not glob.has_magic(pattern):
        raise DataError("there is no such file", where=str(path), hint=_near(path))
    paths = sorted(item for item in _globbed(folder, _at_home(pattern)) if item.is_file())
    if not paths:
        raise DataError("the glob matches no file", where=str(path), hint=_near(path))
    return [_known(item) for item in paths]


def _globbed(folder: Path, pattern: Path) -> list[Path]:
    """What a glob matches, hidden names left out. ``**`` goes through no links: two that lead back would make it endless."""
    parts = (folder / pattern).parts
    plain = len(folder.parts) if not pattern.is_absolute() else 1
    while plain < len(parts) and not glob.has_magic(parts[plain]):
        plain += 1
    base = Path(*parts[:plain])
    rest = [
        part for part, before in zip(parts[plain:], ("", *parts[plain:]), strict=False) if not part == before == "**"
    ]
    return [item for item in base.glob("/".join(rest)) if not _is_hidden(item.relative_to(base))]


def _at_home(pattern: str) -> Path:
    return Path(pattern).expanduser() if pattern.startswith(("~/", "~\\")) else Path(pattern)


def _below(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder))]
    known = sorted(path for path in files if _reader(path) is not None)
    if not known:
        raise DataError(
            "the folder holds no file of a known kind",
            where=str(folder),
            hint=f"{_kinds(files) or _content(folder)}; {_KNOWN}",
        )
    return known


def _kinds(files: list[Path]) -> str:
    """How many files of which suffix there are, most first."""
    counts = Counter(suffix_of(path) or "no suffix" for path in files).most_common(_SHOWN_NAMES)
    return f"it holds files with {', '.join(f'{suffix} ({number:,})' for suffix, number in counts)}" if counts else ""


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _known(path: Path) -> Path:
    if _reader(path) is not None:
        return path
    suffix = suffix_of(path)
    if suffix == ".xml":
        raise DataError("XML is not supported", where=str(path), hint=f"turn it into .jsonl first; {_KNOWN}")
    if suffix in _ARCHIVES:
        raise DataError("an archive is not read", where=str(path), hint=f"unpack it and name what was in it; {_KNOWN}")
    if suffix == ".parquet":
        raise DataError(
            "a parquet file is not packed again", where=str(path), hint="unpack it; parquet compresses its columns"
        )
    raise DataError(
        f"files with the suffix {suffix!r} are not read" if suffix else "a file without a suffix is not read",
        where=str(path),
        hint=_KNOWN,
    )


def suffix_of(path: Path) -> str:
    """Suffix in lower case, that of packing left out."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix


def _reader(path: Path) -> Reader | None:
    suffix = suffix_of(path)
    if suffix == ".parquet" and path.suffix.lower() != ".parquet":
        return None
    return READERS.get(suffix)


def _near(path: Path) -> str:
    """What there is instead of a missing file or an unmatched glob."""
    parent = path.parent
    while not parent.is_dir() or re.search(r"[*?\[]", parent.name):
        if parent == parent.parent:
            break
        parent = parent.parent
    names = [name.rstrip("/") for name in _names(parent)]
    wanted = path.relative_to(parent).parts[0] if path.is_relative_to(parent) and path != parent else path.name
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(f'`{name}`' for name in close)}? {_content(parent)}"
    return _content(parent)


def _names(folder: Path) -> list[str]:
    """Names in a folder that are not hidden, folders with a slash; none where it cannot be listed."""
    try:
        return sorted(
            item.name + ("/" if item.is_dir() else "") for item in folder.iterdir() if not item.name.startswith(".")
        )
    except OSError:
        return []


def _content(folder: Path) -> str:
    names = _names(folder)
    if not names:
        return f"there is nothing in {folder}"
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"{folder} holds: {', '.join(names[:_SHOWN_NAMES])}{more}"


def _laid_out(path: Path, layout: Layout) -> Reader:
    if is_text(path):
        return conll_rows if layout.row == "conll" else TEXT_READERS[layout.row]
    reader = _reader(path)
    assert reader is not None
    return reader if layout.header else partial(reader, header=False)


def is_text(path: Path) -> bool:
    """Whether the file is plain text, packed or not."""
    return suffix_of(path) == TEXT


def is_conll(path: Path, layout: Layout) -> bool:
    """Whether the file's rows are sentences of tagged words."""
    return _laid_out(path, layout) is conll_rows


def read_rows(path: Path, shown: str, layout: Layout = _USUAL) -> Iterator[RawRow | Rejected]:
    """Stream the rows of one file; faulty rows come as Rejected in their place.

    Args:
        path: the file; its suffix chooses the reader.
        shown: its name in origins and messages.
        layout: how the source has its files cut into rows.

    Raises:
        DataError: the file is missing, torn, unreadable or without any row, or broken so that its rows cannot be told
            apart.
    """
    reader = _laid_out(_known(path), layout)
    num_rows = 0
    try:
        for item in reader(path, shown):
            num_rows += 1
            yield item
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=shown, hint=_near(path)) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"the file cannot be read: {error}",
            where=shown,
            hint="check that it is whole, packed as its suffix says, and yours to read",
        ) from error
    if num_rows == 0:
        raise DataError("the file holds no rows", where=shown, hint="remove it from the source, or write rows into it")
