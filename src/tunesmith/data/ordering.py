"""The order of an epoch: a permutation that is a function of (seed, epoch). Torch-free.

Random numbers are the raw 64-bit words of Philox4x64-10 (Salmon et al. 2011) with key words (seed mod 2^64, epoch) and
a counter that starts at (0, 0, 0, purpose): purpose 0 shuffles, purpose 1 (with epoch 0) ranks rows for weights. Raw
words are fixed by the algorithm, numpy's ``permutation`` is not: an order stays the same across versions.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

_SHUFFLE = 0
_RANK = 1
_WORD = 2**64


def epoch_order(
    num_rows: int, seed: int, epoch: int, weights: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.int64]:
    """Row indices of an epoch in training order.

    Args:
        num_rows: rows there are.
        seed: of the recipe.
        epoch: from 0.
        weights: per row, how often it is seen in an epoch; None is once. Rows of weight w = p / q are seen p times in
            any q successive epochs, and rows of one weight are shared out evenly over them: of n rows of weight 1/2
            every other is seen in an epoch (n / 2, rounded), the others in the next.

    Returns:
        indices, each as often as the epoch sees it.

    Raises:
        ValueError: a weight that is not positive, or not one for each row.
    """
    if weights is None:
        rows = np.arange(num_rows, dtype=np.int64)
    else:
        rows = np.repeat(
            np.arange(num_rows, dtype=np.int64), _counts(num_rows, seed, epoch, np.asarray(weights, dtype=np.float64))
        )
    return rows[_permutation(len(rows), seed, epoch, _SHUFFLE)]


def _counts(num_rows: int, seed: int, epoch: int, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    if weights.shape != (num_rows,):
        raise ValueError(f"{num_rows} rows have weights of shape {weights.shape}")
    if not np.all(np.isfinite(weights) & (weights > 0)):
        raise ValueError("weights are positive and finite")
    counts = np.empty(num_rows, dtype=np.int64)
    order = _permutation(num_rows, seed, 0, _RANK)
    for weight in np.unique(weights):
        members = order[weights[order] == weight]
        exact = Fraction(repr(float(weight)))
        counts[members] = _seen(len(members), exact * (epoch + 1)) - _seen(len(members), exact * epoch)
    return counts


def _seen(num_members: int, passes: Fraction) -> npt.NDArray[np.int64]:
    """How often each rank has been seen after a number of passes, in exact arithmetic.

    Rank r has phase (2 r + 1) / (2 n) and is seen floor(passes + phase) times.
    """
    whole, part = divmod(passes, 1)
    first = -((1 - 2 * num_members * (1 - part)) // 2)  # smallest r with part + phase >= 1
    seen = np.full(num_members, int(whole), dtype=np.int64)
    seen[max(0, int(first)) :] += 1
    return seen


def _permutation(length: int, seed: int, epoch: int, purpose: int) -> npt.NDArray[np.int64]:
    """Positions sorted by random words; equal words keep their order."""
    key = np.array([seed % _WORD, epoch], dtype=np.uint64)
    counter = np.array([0, 0, 0, purpose], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(length)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)
