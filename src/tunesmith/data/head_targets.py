"""Targets of rows while a data set is prepared: renderer's words to numbers beside the token stores. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tunesmith.data.head_rendering import HeadRenderer
from tunesmith.data.notes import count_of
from tunesmith.data.overlong import Piece
from tunesmith.data.prepared import Split
from tunesmith.data.tag_rendering import TagRenderer
from tunesmith.data.targets import NO_LABEL, LabelBook, TargetWriter
from tunesmith.data.words import NO_TOKEN
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
        self._words: dict[Split, int] = {}
        self._cut: dict[Split, int] = {}
        self._cut_rows: dict[Split, int] = {}

    def add(
        self, split: Split, record: Record, ids: Sequence[int], piece: Piece
    ) -> tuple[Sequence[int], Sequence[bool]]:
        """Write the targets of a row whose token store exists; returns the ids and trained flags to store.

        Args:
            split: of the row.
            record: the row's.
            ids: all ids of the row.
            piece: what the context has room for.
        """
        if split not in self._writers:
            writer = TargetWriter(self._folder / split, numbers=self._renderer.numbers)
            self._writers[split] = self._stack.enter_context(writer)
        if isinstance(self._renderer, TagRenderer):
            return self._add_words(self._renderer, split, record, piece.ids)
        if self._renderer.numbers:
            self._writers[split].add([self._renderer.number(record)])
        else:
            names = self._renderer.names(record)
            self._writers[split].add([self.book.number(name) for name in names])
            if split == "train":
                self.book.count(names)
        return self._renderer.closed(list(ids), list(piece.ids)), piece.trained

    def _add_words(
        self, renderer: TagRenderer, split: Split, record: Record, cut: Sequence[int]
    ) -> tuple[Sequence[int], Sequence[bool]]:
        """Write a target for each stored token, and count the words that the context has no room for."""
        placed = renderer.placed(record)
        kept = renderer.kept(placed.ids, len(cut))
        names = [placed.asked.get(token) if token < kept else None for token in range(len(cut))]
        self._writers[split].add([NO_LABEL if name is None else self.book.number(name) for name in names])
        lost = sum(token != NO_TOKEN and token >= kept for token in placed.reads)
        self._words[split] = self._words.get(split, 0) + len(placed.reads)
        if lost:
            self._cut[split] = self._cut.get(split, 0) + lost
            self._cut_rows[split] = self._cut_rows.get(split, 0) + 1
        if split == "train":
            words = zip(placed.reads, renderer.names(record), strict=True)
            self.book.count_each(name for token, name in words if token != NO_TOKEN and token < kept)
        return renderer.closed(placed.ids, list(cut)), [name is not None for name in names]

    def notes(self) -> list[str]:
        """What must be said of words: how many there are, and how many were cut off."""
        said = []
        for split, words in self._words.items():
            text = f"{count_of(words, f'word has a tag in {split}', f'words have a tag in {split}')}"
            if lost := self._cut.get(split, 0):
                rows = count_of(self._cut_rows[split], "row", "rows")
                text += (
                    f"; {lost:,} of them, in {rows}, stand behind the context and are cut off (data.overlong: truncate)"
                )
                text += ": they are not trained" if split == "train" else ": they count as outside"
            said.append(text)
        return said

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
