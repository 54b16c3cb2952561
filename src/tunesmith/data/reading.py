"""Sources of a recipe as a stream of rows: files are found, formats detected, faults turned into rejects. Torch-free.

recipe.data ──resolve──> SourceFiles ──read──> ReadRow | Rejected, one in memory at a time
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tunesmith.data.bad_row import BadRow
from tunesmith.data.formats import FORMATS, check_columns, detect
from tunesmith.data.layout import Layout
from tunesmith.data.row_codec import row_id
from tunesmith.data.row_weights import row_weight
from tunesmith.data.sources import expand, read_rows, suffix_of
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSection, SplitSection
from tunesmith.recipe.root import Recipe
from tunesmith.records import RawRow, Rejected, Row

Role = Literal["test", "validation", "train"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Keys of ``recipe.data`` that may name sources, in the order in which they are read: held-out rows first."""

Started = Callable[[str, RawRow], None]

DETECTION_ROWS = 16
"""Rows of a file that its format is detected from."""


@dataclass(frozen=True)
class SourceFiles:
    """One source of a recipe with its files.

    Attributes:
        role: the key of ``recipe.data`` that names it.
        index: its number in that list, from 0.
        section: as the recipe has it.
        files: path, and the same as it is shown: relative to the recipe where it lies below it.
    """

    role: Role
    index: int
    section: SourceSection
    files: tuple[tuple[Path, str], ...]

    @property
    def name(self) -> str:
        """The path as the recipe has it."""
        path = self.section.path
        return path if isinstance(path, str) else ", ".join(path)


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row, and the raw row it was made from."""

    row: Row
    raw: RawRow


def resolve(recipe: Recipe) -> list[SourceFiles]:
    """Find the files of all sources, held-out ones first.

    Raises:
        DataError: a source matches nothing, two sources share a file, or ``row`` or ``header`` is set for a file
            that has no such thing.
    """
    found: list[SourceFiles] = []
    seen: dict[Path, str] = {}
    for role in ROLES:
        for index, section in enumerate(sections(recipe, role)):
            # Two names of one file within a source, such as a link beside it, are read once: under the first.
            paths: dict[Path, Path] = {}
            for path in expand(section, recipe.folder):
                paths.setdefault(path.resolve(), path)
            files = tuple((path, _shown(path, recipe.folder)) for path in paths.values())
            place = f"data.{role}.{index}"
            _check_layout(recipe, section, files, place)
            for path, shown in files:
                other = seen.setdefault(path.resolve(), place)
                if other != place:
                    raise DataError(
                        f"{shown} is read twice: by {other} and by {place}",
                        where=f"recipe {recipe.name} [{place}]",
                        hint="name each file in one source; `weight` shows its rows more often, a fraction holds rows out",
                    )
            found.append(SourceFiles(role, index, section, files))
    return found


def _check_layout(recipe: Recipe, section: SourceSection, files: tuple[tuple[Path, str], ...], place: str) -> None:
    """Refuse ``row`` and ``header`` where they would mean nothing."""
    layout = Layout.of(section)
    for path, shown in files:
        if (found := layout.misplaced(suffix_of(path))) is not None:
            key, purpose = found
            raise DataError(
                f"{purpose}, and {shown} is none",
                where=f"recipe {recipe.name} [{place}.{key}]",
                hint=f"remove `{key}`, or put the files that need it into a source of their own",
            )


def sections(recipe: Recipe, role: Role) -> list[SourceSection]:
    """Sources that the recipe names under ``data.ROLE``; none where it gives a fraction."""
    given = recipe.data.train if role == "train" else getattr(recipe.data, role)
    return [] if isinstance(given, SplitSection) else list(given)


def read(source: SourceFiles, started: Started = lambda name, first: None) -> Iterator[ReadRow | Rejected]:
    """Stream the rows of a source, at most ``section.limit`` of them.

    Args:
        source: what to read.
        started: told the format and the first whole row of each file before that row is yielded.

    Raises:
        DataError: a file cannot be read, or its columns do not make the format.
    """
    left = source.section.limit
    for path, shown in source.files:
        for item in _read_file(source, path, shown, started):
            yield item
            if left is not None:
                left -= 1
                if left == 0:
                    return


def _read_file(source: SourceFiles, path: Path, shown: str, started: Started) -> Iterator[ReadRow | Rejected]:
    section = source.section
    name = ""
    waiting: list[RawRow] = []
    needed = DETECTION_ROWS if section.format == "auto" else 1

    def begin() -> str:
        found = detect(waiting, shown, section.columns) if section.format == "auto" else section.format
        check_columns(waiting[0], found, section)
        started(found, waiting[0])
        return found

    for item in read_rows(path, shown, Layout.of(section)):
        if isinstance(item, Rejected):
            yield item
        elif name:
            yield _make(item, name, source)
        else:
            waiting.append(item)
            if len(waiting) == needed:
                name = begin()
                yield from (_make(raw, name, source) for raw in waiting)
    if waiting and not name:
        name = begin()
        yield from (_make(raw, name, source) for raw in waiting)


def _make(raw: RawRow, name: str, source: SourceFiles) -> ReadRow | Rejected:
    try:
        record = FORMATS[name](raw, source.section)
        weight = row_weight(raw.values, source.section.columns)
    except BadRow as fault:
        return Rejected(raw.origin, fault.reason, fault.detail, raw.values)
    return ReadRow(Row(row_id(raw.origin, record), raw.origin, source.index, record, weight=weight), raw)


def _shown(path: Path, folder: Path) -> str:
    """The path relative to the recipe where it lies below it, so that a moved project keeps its row ids."""
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return str(path)
