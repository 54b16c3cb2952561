"""Torch's side of the data: rows of a token store to packs, steps of packs as a stream.

    epoch order ──cut──> steps of ``batch_size`` rows ──pack──> atoms of at most ``atom_tokens`` tokens

Step k is a pure function of (recipe, k): the only state is k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tunesmith.data.ordering import epoch_order
from tunesmith.data.packing import pack
from tunesmith.data.store import TokenStore
from tunesmith.types import Batch, Step


def make_batch(
    documents: Sequence[tuple[np.ndarray, np.ndarray]],
    rows: Sequence[int],
    *,
    progress: float = 0.0,
    weights: Sequence[float] | np.ndarray | None = None,
) -> Batch:
    """Lay documents side by side.

    Args:
        documents: token ids and trained flags of each, equally long; the first token of a document is never a target.
        rows: index of each document's row.
        progress: share of training done, 0 to 1.
        weights: what each document's tokens count in the loss; None is 1.
    """
    lengths = tuple(len(ids) for ids, _ in documents)
    starts = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=starts[1:])
    ids_T = np.concatenate([ids for ids, _ in documents]).astype(np.int64)
    positions_T = np.concatenate([np.arange(length) for length in lengths])
    targets = [
        start + 1 + np.flatnonzero(trained[1:]) for start, (_, trained) in zip(starts[:-1], documents, strict=True)
    ]
    counts = [len(item) for item in targets]
    target_at_S = np.concatenate(targets)
    weights_D = np.ones(len(lengths), dtype=np.float32) if weights is None else np.asarray(weights, dtype=np.float32)
    return Batch(
        input_ids_T=torch.from_numpy(ids_T),
        positions_T=torch.from_numpy(positions_T.astype(np.int64)),
        starts_D1=torch.from_numpy(starts),
        lengths=lengths,
        scored_S=torch.from_numpy(target_at_S - 1),
        targets_S=torch.from_numpy(ids_T[target_at_S]),
        weights_S=torch.from_numpy(np.repeat(weights_D, counts)),
        document_S=torch.from_numpy(np.repeat(np.arange(len(lengths)), counts)),
        rows=tuple(int(row) for row in rows),
        progress=progress,
    )


def batches_in_order(store: TokenStore, atom_tokens: int, rows: Sequence[int] | None = None) -> Iterator[Batch]:
    """Every row once, like lengths together, for scoring. ``batch.rows`` tells which rows a pack holds."""
    chosen = np.arange(store.num_rows) if rows is None else np.asarray(rows, dtype=np.int64)
    by_length = chosen[np.argsort(store.lengths[chosen], kind="stable")]
    current: list[int] = []
    tokens = 0
    for row in by_length:
        length = int(store.lengths[row])
        if current and tokens + length > atom_tokens:
            yield make_batch([store.row(index) for index in current], current)
            current, tokens = [], 0
        current.append(int(row))
        tokens += length
    if current:
        yield make_batch([store.row(index) for index in current], current)


@dataclass(frozen=True)
class StreamOptions:
    """What decides the steps. ``micro_batch_size`` and ``atom_tokens`` change the cutting, never the steps.

    ``virtual_tokens`` are what an adapter puts in front of each document when the model runs: packs leave room for them.
    """

    batch_size: int
    total_steps: int
    atom_tokens: int
    seed: int
    micro_batch_size: int | None = None
    source_weights: tuple[float, ...] = (1.0,)
    virtual_tokens: int = 0


MakeBatch = Callable[[Sequence[int], float, int], Batch]
"""Rows of a store, share of training done and epoch to a pack."""


class PackedStream:
    """The training stream of a token store; see the module's docstring.

    Args:
        store: of the training rows.
        options: what decides the steps.
        make: lays rows side by side; None takes tokens and trained flags as they are stored.
    """

    def __init__(self, store: TokenStore, options: StreamOptions, make: MakeBatch | None = None) -> None:
        self.store = store
        self._make = make or self._plain
        self.options = options
        self.next_step = 0
        weights = np.asarray(options.source_weights, dtype=np.float64)
        self._row_weights = None if np.all(weights == 1.0) else weights[np.asarray(store.sources)]
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self._epoch_start_step = 0

    def rows_of(self, step: int) -> np.ndarray:
        """Row indices of step ``step``; steps never span two epochs, the last of an epoch may be smaller."""
        if self._epoch < 0 or step < self._epoch_start_step:
            self._enter(0, 0)
        while step >= self._epoch_start_step + self._steps_in_epoch():
            self._enter(self._epoch + 1, self._epoch_start_step + self._steps_in_epoch())
        start = (step - self._epoch_start_step) * self.options.batch_size
        return self._order[start : start + self.options.batch_size]

    def epoch_of(self, step: int) -> int:
        """Epoch that step ``step`` lies in, from 0."""
        self.rows_of(step)
        return self._epoch

    def __iter__(self) -> Iterator[Step]:
        """Yield the steps from the current state to the end of the budget."""
        while self.next_step < self.options.total_steps:
            step = self.atoms(self.next_step)
            self.next_step += 1
            yield step

    def atoms(self, step: int) -> list[Batch]:
        """The packs of one step, largest first."""
        rows = self.rows_of(step)
        lengths = [int(self.store.lengths[row]) + self.options.virtual_tokens for row in rows]
        progress, epoch = step / max(1, self.options.total_steps), self.epoch_of(step)
        return [
            self._make([int(rows[index]) for index in members], progress, epoch)
            for members in pack(lengths, self.options.atom_tokens, self.options.micro_batch_size)
        ]

    def heaviest(self) -> Batch | None:
        """The longest rows of the store in one pack as large as any of a step can be; the longest row comes first."""
        most = min(self.options.batch_size, self.options.micro_batch_size or self.options.batch_size)
        lengths = np.asarray(self.store.lengths) + self.options.virtual_tokens
        longest = np.argsort(-lengths, kind="stable")[:most]
        fits = np.cumsum(lengths[longest]) <= self.options.atom_tokens
        rows = longest[: max(1, int(fits.sum()))]
        return self._make([int(row) for row in rows], 0.0, 0) if len(rows) else None

    def _plain(self, rows: Sequence[int], progress: float, epoch: int) -> Batch:
        weights = [float(self.store.weights[row]) for row in rows]
        return make_batch([self.store.row(row) for row in rows], rows, progress=progress, weights=weights)

    def state_dict(self) -> dict[str, Any]:
        """The position: all else follows from the recipe."""
        return {"next_step": self.next_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the saved step."""
        self.next_step = int(state["next_step"])

    def _enter(self, epoch: int, start_step: int) -> None:
        self._epoch, self._epoch_start_step = epoch, start_step
        self._order = epoch_order(self.store.num_rows, self.options.seed, epoch, self._row_weights)

    def _steps_in_epoch(self) -> int:
        return max(1, -(-len(self._order) // self.options.batch_size))
