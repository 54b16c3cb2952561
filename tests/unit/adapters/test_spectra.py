"""Spectra and overlaps against dense matrices, and cases that can be told without computing."""

from __future__ import annotations

import math

import pytest
import torch

from tunesmith.adapters.spectra import overlap, spectrum
from tunesmith.adapters.updates import Update


def pair(seed=0, rank=3, shape=(12, 20)):
    generator = torch.Generator().manual_seed(seed)
    return Update(torch.randn(rank, shape[1], generator=generator), torch.randn(shape[0], rank, generator=generator))


def diagonal(*values, shape=(12, 20), shift=0):
    """An update with these singular values along the axes from ``shift`` on."""
    A, B = torch.zeros(len(values), shape[1]), torch.zeros(shape[0], len(values))
    for place, value in enumerate(values):
        A[place, shift + place], B[shift + place, place] = 1.0, value
    return Update(A, B)


def test_known_values():
    found = spectrum(diagonal(2.0, 1.0, 1.0), base_norm=10.0)
    assert found.norm == pytest.approx(math.sqrt(6))
    assert found.relative == pytest.approx(math.sqrt(6) / 10)
    assert found.values == pytest.approx((2.0, 1.0, 1.0))
    assert found.effective_rank == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))
    assert found.shares[1] == pytest.approx(4 / 6)
    assert found.shares[2] == pytest.approx(5 / 6)
    assert found.shares[4] == pytest.approx(1.0)


@pytest.mark.parametrize("form", ["factors", "whole"])
def test_like_the_dense_matrix(form):
    update = pair(rank=5)
    dense = update.dense()
    found = spectrum(update if form == "factors" else Update(whole=dense), 3.0)
    values = torch.linalg.svdvals(dense.double())
    assert found.values[:5] == pytest.approx(values[:5].tolist(), rel=1e-5)
    assert found.shares[2] == pytest.approx(float(values[:2].square().sum() / values.square().sum()), rel=1e-5)
    share = values[:5] / values[:5].sum()
    assert found.effective_rank == pytest.approx(float(torch.exp(-(share * share.log()).sum())), rel=1e-3)
    assert (found.rank, found.shape) == ((5 if form == "factors" else None), (12, 20))


def test_equal_scaled_and_foreign_updates():
    one = diagonal(3.0, 2.0)
    same = overlap(one, diagonal(6.0, 4.0))
    assert (same.cosine, same.reads, same.writes, same.angle) == pytest.approx((1.0, 1.0, 1.0, 0.0), abs=1e-5)
    against = overlap(one, diagonal(-3.0, -2.0))
    assert against.cosine == pytest.approx(-1.0)
    assert against.reads == pytest.approx(1.0)
    apart = overlap(one, diagonal(3.0, 2.0, shift=2))
    assert (apart.cosine, apart.reads, apart.writes, apart.angle) == pytest.approx((0.0, 0.0, 0.0, 90.0))
    half = overlap(one, diagonal(3.0, 2.0, shift=1))
    assert half.reads == pytest.approx(0.5)
    assert half.chance == (2 / 20, 2 / 12)


def test_overlap_is_that_of_the_dense_matrices():
    one, other = pair(0, rank=3), pair(1, rank=5)
    first, second = one.dense().double(), other.dense().double()
    found = overlap(one, other)
    assert found.directions == 3
    assert found.cosine == pytest.approx(float((first * second).sum() / first.norm() / second.norm()), rel=1e-5)
    V, W = torch.linalg.svd(first)[2][:3], torch.linalg.svd(second)[2][:3]
    assert found.reads == pytest.approx(float((V @ W.T).square().sum()) / 3, rel=1e-5)
    U, S = torch.linalg.svd(first)[0][:, :3], torch.linalg.svd(second)[0][:, :3]
    assert found.writes == pytest.approx(float((U.T @ S).square().sum()) / 3, rel=1e-5)
    assert found.angle == pytest.approx(math.degrees(math.acos(float(torch.linalg.svdvals(V @ W.T)[0]))), rel=1e-4)


def test_random_directions_have_in_common_what_chance_says():
    """The mean over 40 draws of an overlap of k = 8 in 100 dimensions is k / 100, give or take."""
    found = [overlap(pair(2 * n, 8, (100, 100)), pair(2 * n + 1, 8, (100, 100))).reads for n in range(40)]
    assert sum(found) / 40 == pytest.approx(0.08, abs=0.006)


def test_an_update_of_nothing():
    nothing = Update(torch.ones(2, 20), torch.zeros(12, 2))
    found = spectrum(nothing, 1.0)
    assert (found.norm, found.effective_rank, found.shares[8]) == (0.0, 0.0, 0.0)
    assert overlap(nothing, pair()) is None
