"""Torch's side of rows that belong to parts of a sum: packs that say which part each document is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from tunesmith.data.loader import MakeBatch, make_batch
from tunesmith.data.store import TokenStore
from tunesmith.types import Batch

PARTS = "part_D"
"""Name among a batch's extras: number of each document's part."""


def part_rows(store: TokenStore) -> MakeBatch:
    """Packs of a store's rows with the part of each."""

    def make(rows: Sequence[int], progress: float, epoch: int) -> Batch:
        weights = [float(store.weights[row]) for row in rows]
        pack = make_batch([store.row(row) for row in rows], rows, progress=progress, weights=weights)
        return replace(pack, extras={PARTS: torch.tensor([int(store.parts[row]) for row in rows])})

    return make
