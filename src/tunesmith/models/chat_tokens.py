"""Whether the tokens of a chat template were ever trained: those that never were share one direction. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.models import names
from tunesmith.models.facts import ModelFacts
from tunesmith.models.weight_rows import read_rows
from tunesmith.models.weights import read_tensors

_SAME = 0.95
"""Cosine above which two rows are called one: untrained rows of the embedded model reach 0.99, trained ones 0.4."""


def untrained(
    folder: Path, facts: ModelFacts, used: Collection[int], ends: Collection[int], special: Collection[int]
) -> dict[int, list[int]]:
    """Tokens that the model cannot tell from others, with those others.

    Every token is read, so its row of the embedding counts; only what ends an answer is written, so there the head's row
    counts too. Only the rows in question are read from the weight files.

    Args:
        folder: of the model.
        facts: its sizes.
        used: tokens that a chat template writes.
        ends: those of them that end an answer.
        special: the tokenizer's special tokens, trained or not.
    """
    stored = [name for name, item in read_tensors(folder).items() if len(item.shape) == 2]
    embedding = next((name for name in stored if names.is_embedding(name)), None)
    head = None if facts.tied else next((name for name in stored if names.is_head(name)), None)
    found: dict[int, list[int]] = {}
    for matrix, tokens in ((embedding, used), (head, set(used) & set(ends))):
        if matrix is None or not tokens:
            continue
        ids = sorted({*tokens, *special})
        rows = dict(zip(ids, read_rows(folder, matrix, ids), strict=True))
        for token in tokens:
            same = twins(rows, token, special)
            if same:
                found.setdefault(token, same)
    return dict(sorted(found.items()))


def twins(rows: Mapping[int, NDArray[np.float32]], token: int, others: Collection[int]) -> list[int]:
    """Tokens among ``others`` whose row points where ``token``'s does; rows of zeros point alike."""
    mine = _direction(rows[token])
    near = {other: float(mine @ _direction(rows[other])) for other in sorted(set(others) - {token})}
    return [other for other, cosine in near.items() if cosine > _SAME or not (rows[token].any() or rows[other].any())]


def _direction(row: NDArray[np.float32]) -> NDArray[np.float32]:
    length = float(np.linalg.norm(row))
    return row / np.float32(length) if length else row
