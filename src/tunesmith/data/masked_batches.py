"""Packs for masked language modelling: some tokens of each row are hidden, and the model is asked for them.

What is hidden is a function of (seed, epoch, row id): the same whatever the packs, ranks and what was drawn before. Scoring hides
by the row's own tokens, so that the same text is asked the same each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tunesmith.data.loader import make_batch
from tunesmith.data.store import TokenStore
from tunesmith.types import Batch

Ids = npt.NDArray[Any]
_SHOWN_AS_MASK, _SHOWN_AT_RANDOM = 0.8, 0.1


@dataclass(frozen=True)
class Masking:
    """How tokens are hidden.

    Attributes:
        mask_id: the token shown in place of a hidden one.
        share: of the tokens of a row, at least one.
        plain: whether a hidden token is always shown as the mask; else 80 % are, 10 % as a random token, 10 % as they are.
        special_ids: tokens that are neither hidden nor shown at random.
        num_tokens: of the vocabulary.
    """

    mask_id: int
    share: float
    plain: bool
    special_ids: frozenset[int]
    num_tokens: int

    def hide(self, ids: Ids, key: str) -> tuple[Ids, Ids]:
        """The ids as they are shown, and the places that are asked for, in order; none in a row of special tokens alone.

        Args:
            ids: token ids of a row.
            key: decides what is drawn.
        """
        open_places = np.flatnonzero(~np.isin(ids, list(self.special_ids)))
        shown = np.array(ids, dtype=np.uint32)
        if len(open_places) == 0:
            return shown, open_places
        generator = _generator(key)
        count = max(1, round(self.share * len(open_places)))
        places = np.sort(generator.permutation(open_places)[:count])
        fate = np.zeros(count) if self.plain else generator.random(count)
        shown[places[fate < _SHOWN_AS_MASK]] = self.mask_id
        at_random = places[(fate >= _SHOWN_AS_MASK) & (fate < _SHOWN_AS_MASK + _SHOWN_AT_RANDOM)]
        shown[at_random] = generator.choice(_ordinary(self.num_tokens, self.special_ids), len(at_random))
        return shown, places

    def batch(
        self,
        rows: Sequence[Ids],
        keys: Sequence[str],
        numbers: Sequence[int],
        weights: Sequence[float],
        progress: float,
    ) -> Batch:
        """A pack whose scored positions are the hidden places, and whose targets are what stood there.

        Args:
            rows: token ids of each document.
            keys: decide what is drawn for each.
            numbers: index of each document's row.
            weights: what each token of a document counts.
            progress: share of training done, 0 to 1.
        """
        hidden = [self.hide(ids, key) for ids, key in zip(rows, keys, strict=True)]
        nothing = [(shown, np.zeros(len(shown), dtype=np.bool_)) for shown, _ in hidden]
        pack = make_batch(nothing, numbers, progress=progress)
        places = [places for _, places in hidden]
        counts = [len(item) for item in places]
        starts = np.repeat(pack.starts_D1[:-1].numpy(), counts)
        targets = np.concatenate([ids[item] for ids, item in zip(rows, places, strict=True)])
        return replace(
            pack,
            scored_S=torch.from_numpy((starts + np.concatenate(places)).astype(np.int64)),
            targets_S=torch.from_numpy(targets.astype(np.int64)),
            weights_S=torch.from_numpy(np.repeat(np.asarray(weights, dtype=np.float32), counts)),
            document_S=torch.from_numpy(np.repeat(np.arange(len(rows)), counts)),
        )


def masked_rows(store: TokenStore, masking: Masking, seed: int) -> Callable[[Sequence[int], float, int], Batch]:
    """What makes packs of a store's rows, hidden anew in every epoch."""

    def make(rows: Sequence[int], progress: float, epoch: int) -> Batch:
        keys = [f"{seed}\n{epoch}\n{store.row_id(row)}" for row in rows]
        weights = [float(store.weights[row]) for row in rows]
        return masking.batch([store.row(row)[0] for row in rows], keys, rows, weights, progress)

    return make


def masked_documents(masking: Masking) -> Callable[[Sequence[tuple[Ids, Ids]], Sequence[int]], Batch]:
    """What makes packs of documents to be scored, hidden by their own tokens."""

    def make(documents: Sequence[tuple[Ids, Ids]], numbers: Sequence[int]) -> Batch:
        rows = [ids for ids, _ in documents]
        keys = [hashlib.sha256(np.asarray(ids, dtype="<u4").tobytes()).hexdigest() for ids in rows]
        return masking.batch(rows, keys, numbers, [1.0] * len(rows), 0.0)

    return make


def _generator(key: str) -> np.random.Generator:
    digest = hashlib.sha256(f"masking\n{key}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def _ordinary(num_tokens: int, special_ids: Collection[int]) -> Ids:
    return np.setdiff1d(np.arange(num_tokens), np.fromiter(special_ids, dtype=np.int64, count=len(special_ids)))
