"""Torch's side of rows for heads: packs whose scored positions are rows, with what the head should answer.

In a batch ``scored_S`` is the last token of each row, or under ``tag`` every token that is asked for a tag; ``targets_S`` its
class or 0, ``weights_S`` 0 where no training row has that label. Among the extras ``value_S`` holds numbers, ``classes_S``
one or zero for each label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tunesmith.data.loader import make_batch
from tunesmith.data.prepared import Prepared, Split
from tunesmith.data.store import TokenStore
from tunesmith.data.targets import NO_LABEL, LabelBook, TargetStore
from tunesmith.types import Batch

VALUES, CLASSES = "value_S", "classes_S"
"""Names among a batch's extras: numbers ``[S]``, and one or zero for each label ``[S, K]``."""
Kind = Literal["classify", "multi_label", "regress", "tag"]


class HeadData:
    """One split's rows with their targets as a head's outputs are ordered.

    Args:
        store: tokens of the split.
        task: what the head answers.
        labels: in the order of the head's outputs.
        book: names of the labels as they were numbered.
    """

    def __init__(self, store: TokenStore, task: Kind, labels: Sequence[str], book: LabelBook) -> None:
        self.store = store
        self.task = task
        self.labels = tuple(labels)
        self._targets = TargetStore(Path(store.folder), store.num_rows, numbers=task == "regress")
        place = {label: number for number, label in enumerate(labels)}
        self._class_of = np.asarray([place.get(name, -1) for name in book.names], dtype=np.int64)

    def ids(self, row: int) -> np.ndarray[Any, Any]:
        """Token ids of a row."""
        return self.store.row(row)[0]

    def classes(self, row: int) -> np.ndarray[Any, Any]:
        """Classes of a row's targets, -1 for labels that the head does not have; under ``tag`` of the tokens that are asked."""
        numbers = self._targets.row(row)
        if self.task == "tag":
            numbers = numbers[numbers != NO_LABEL]
        return self._class_of[numbers] if len(self._class_of) else np.empty(0, dtype=np.int64)

    def num_scored(self, row: int) -> int:
        """Tokens of a row that are asked for a tag; 1 where the row is asked as a whole."""
        return int((self._targets.row(row) != NO_LABEL).sum()) if self.task == "tag" else 1

    def value(self, row: int) -> float:
        """The number of a row."""
        return float(self._targets.row(row)[0])

    def batch(self, rows: Sequence[int], progress: float = 0.0, epoch: int = 0) -> Batch:
        """A pack of rows."""
        ids = [self.ids(row) for row in rows]
        pack = make_batch([(one, np.zeros(len(one), dtype=np.bool_)) for one in ids], rows, progress=progress)
        if self.task == "tag":
            return self._tagged(pack, rows)
        count = len(rows)
        classes = [self.classes(row) for row in rows]
        targets, extras = np.zeros(count, np.int64), {}
        weights = np.asarray([self.store.weights[row] for row in rows], dtype=np.float32)
        if self.task == "regress":
            values = np.asarray([self.value(row) for row in rows], dtype=np.float32)
            extras[VALUES] = torch.from_numpy(values)
        elif self.task == "multi_label":
            hot = np.zeros((count, len(self.labels)), dtype=np.float32)
            for place, found in enumerate(classes):
                hot[place, found[found >= 0]] = 1.0
            extras[CLASSES] = torch.from_numpy(hot)
        else:
            first = np.asarray([found[0] for found in classes], dtype=np.int64)
            targets, weights = np.maximum(first, 0), weights * (first >= 0)
        return replace(
            pack,
            scored_S=pack.starts_D1[1:].long() - 1,
            targets_S=torch.from_numpy(targets),
            weights_S=torch.from_numpy(weights),
            document_S=torch.arange(count),
            extras=extras,
        )

    def _tagged(self, pack: Batch, rows: Sequence[int]) -> Batch:
        """The pack with each asked token as a scored position."""
        starts = pack.starts_D1[:-1].tolist()
        places = [np.flatnonzero(self._targets.row(row) != NO_LABEL) for row in rows]
        counts = [len(found) for found in places]
        classes = np.concatenate([self.classes(row) for row in rows])
        weights = np.repeat(np.asarray([self.store.weights[row] for row in rows], dtype=np.float32), counts)
        scored = np.concatenate([start + found for start, found in zip(starts, places, strict=True)]).astype(np.int64)
        return replace(
            pack,
            scored_S=torch.from_numpy(scored),
            targets_S=torch.from_numpy(np.maximum(classes, 0)),
            weights_S=torch.from_numpy((weights * (classes >= 0)).astype(np.float32)),
            document_S=torch.from_numpy(np.repeat(np.arange(len(rows)), counts)),
        )


def head_data(data: Prepared, split: Split, task: Kind, labels: Sequence[str]) -> HeadData | None:
    """The rows of a split; None where it has none.

    Raises:
        TornStore: its targets are missing or torn.
    """
    store = {"train": data.train, "validation": data.validation, "test": data.test}[split]
    return None if store is None else HeadData(store, task, labels, LabelBook.load(data.folder))
