"""Targets of rows while a data set is prepared: renderer's words to numbers beside the token stores. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tunesmith.data.head_rendering import HeadRenderer
from tunesmith.data.prepared import Split
from tunesmith.data.targets import LabelBook, TargetWriter
from tunesmith.errors import DataError
from tunesmith.records import Record

_SHOWN = 5


class HeadTargets:
    """Writes the targets of one preparation.

    Args:
        renderer: tells a record's labels or its number.
        folder: of the prepared data.
        stack: closes what is opened.
    """

    def __init__(self, renderer: HeadRenderer, folder: Path, stack: ExitStack) -> None:
        self._renderer = renderer
        self._folder = folder
        self._stack = stack
        self._writers: dict[Split, TargetWriter] = {}
        self.book = LabelBook()

    def add(self, split: Split, record: Record, ids: Sequence[int], cut: Sequence[int]) -> list[int]:
        """Write the targets of a row whose token store exists; returns the ids to store in place of ``cut``.

        Args:
            split: of the row.
            record: the row's.
            ids: all ids of the row.
            cut: those that the context has room for.
        """
        if split not in self._writers:
            writer = TargetWriter(self._folder / split, numbers=self._renderer.numbers)
            self._writers[split] = self._stack.enter_context(writer)
        if self._renderer.numbers:
            self._writers[split].add([self._renderer.number(record)])
        else:
            names = self._renderer.names(record)
            self._writers[split].add([self.book.number(name) for name in names])
            if split == "train":
                self.book.count(names)
        return self._renderer.closed(list(ids), list(cut))

    def close(self, where: str) -> dict[str, int] | None:
        """Write the names of the labels; returns the training rows of each, None where targets are numbers.

        Raises:
            DataError: the training rows have fewer than two labels between them, or lack one that the recipe names.
        """
        self.book.save(self._folder)
        if self._renderer.numbers:
            return None
        counts = dict(sorted(self.book.counts.items()))
        wanted = getattr(self._renderer.section, "labels", None) or ()
        if absent := [label for label in wanted if label not in counts]:
            shown = ", ".join(repr(label) for label in absent[:_SHOWN])
            raise DataError(
                f"no training row has the label {shown}, which `objective.labels` names",
                where=where,
                hint=f"labels of the training rows: {_listed(counts)}; take absent ones out of `labels`, or add rows",
            )
        if len(counts) < 2:
            raise DataError(
                f"the training rows have a single label, {next(iter(counts), '')!r}: there is nothing to tell apart",
                where=where,
                hint="name the column of the labels (`columns: {label: NAME}`), or add rows of other labels",
            )
        return counts


def _listed(counts: dict[str, int]) -> str:
    more = f" and {len(counts) - _SHOWN:,} more" if len(counts) > _SHOWN else ""
    return ", ".join(list(counts)[:_SHOWN]) + more
