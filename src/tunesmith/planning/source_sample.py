"""Rows of a source for an estimate: from all over its files, or where it has a limit from the rows that are read. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from tunesmith.data.layout import Layout
from tunesmith.data.reading import SourceFiles
from tunesmith.data.sources import read_rows
from tunesmith.data.streams import PACKED
from tunesmith.planning.row_sample import COUNTED_BYTES, FileSample, sample_file, sample_of

SAMPLE_ROWS = 2000
MIN_ROWS = 8
_SAMPLE_FILES = 24
_MOST_FIRST_ROWS = 20_000


@dataclass
class SourceSample:
    """Samples of the files of one source.

    Attributes:
        files: of each file its name, its sample, and the share of all rendering that it is given.
        scale: how many times the rows of these files stand for the source's.
        notes: how the rows were taken, where not evenly.
    """

    files: list[tuple[str, FileSample, float]] = field(default_factory=list)
    scale: float = 1.0
    notes: list[str] = field(default_factory=list)


def sample_source(
    source: SourceFiles, sizes: Mapping[Path, int], all_bytes: int, generator: np.random.Generator
) -> SourceSample:
    """Take rows of a source.

    Args:
        source: what to sample.
        sizes: bytes of each file.
        all_bytes: of all sources: a source's part of it is its part of the sample.
        generator: chooses rows.

    Raises:
        DataError: a file cannot be read.
    """
    share = sum(sizes[path] for path, _ in source.files) / all_bytes
    limit = source.section.limit
    found = _everywhere(source, sizes, share, generator) if limit is None else _first(source, limit, share, generator)
    found.notes += [sample.note for _, sample, _ in found.files if sample.note]
    num_files = len(found.files)
    is_read_on = limit is None or sum(sample.num_rows for _, sample, _ in found.files) < limit
    if num_files < len(source.files) and is_read_on:
        sampled = sum(sizes[path] for path, shown in source.files if shown in {name for name, _, _ in found.files})
        found.scale = share * all_bytes / max(1, sampled)
        found.notes.append(f"{source.name}: {num_files} of {len(source.files)} files were sampled")
    return found


def _everywhere(
    source: SourceFiles, sizes: Mapping[Path, int], share: float, generator: np.random.Generator
) -> SourceSample:
    files = list(source.files)
    if len(files) > _SAMPLE_FILES:
        chosen = np.sort(generator.choice(len(files), size=_SAMPLE_FILES, replace=False))
        files = [files[index] for index in chosen]
    num_bytes = sum(sizes[path] for path, _ in files)
    found = SourceSample()
    for path, shown in files:
        part = share * sizes[path] / num_bytes
        wanted = max(MIN_ROWS, round(SAMPLE_ROWS * part))
        found.files.append((shown, sample_file(path, shown, wanted, generator, Layout.of(source.section)), part))
    return found


def _first(source: SourceFiles, limit: int, share: float, generator: np.random.Generator) -> SourceSample:
    """Rows of the first files, in the order in which they are read, until the limit."""
    found = SourceSample()
    left = float(limit)
    wanted = max(MIN_ROWS, round(SAMPLE_ROWS * share))
    for path, shown in source.files[:_SAMPLE_FILES]:
        if left < 1:
            break
        sample = _first_rows(path, shown, int(left), wanted, generator, Layout.of(source.section))
        found.files.append((shown, sample, share * min(1.0, sample.num_rows / limit)))
        left -= sample.num_rows
    return found


def _first_rows(
    path: Path, shown: str, limit: int, wanted: int, generator: np.random.Generator, layout: Layout
) -> FileSample:
    """A sample of the first ``limit`` rows of a file; of all its rows where those are too many to be read here."""
    is_small = path.stat().st_size <= COUNTED_BYTES and not path.name.lower().endswith(PACKED)
    if limit <= SAMPLE_ROWS or (limit <= _MOST_FIRST_ROWS and is_small):
        return sample_of(list(islice(read_rows(path, shown, layout), limit)), wanted, generator)
    sample = sample_file(path, shown, wanted, generator, layout)
    if sample.num_rows <= limit:
        return sample
    note = f"{shown}: the estimate rests on rows from all of it, and its first {limit:,} are read (limit)"
    return replace(sample, num_rows=limit, row_spread=0.0, note=f"{sample.note}; {note}" if sample.note else note)
