"""Packs and windows hold everything once and keep their bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.packing import pack, windows

LENGTHS = st.lists(st.integers(0, 60), max_size=40)


def plain_first_fit(lengths: list[int], atom_tokens: int, most: int) -> list[list[int]]:
    """First-fit decreasing as the textbook has it: every pack is tried from the first."""
    packs: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        for members in packs:
            if len(members) < most and sum(lengths[other] for other in members) + lengths[position] <= atom_tokens:
                members.append(position)
                break
        else:
            packs.append([position])
    return packs


@given(LENGTHS, st.integers(1, 80), st.none() | st.integers(1, 6))
def test_pack_keeps_each_document_once_and_its_bounds(lengths: list[int], atom_tokens: int, most: int | None) -> None:
    packs = pack(lengths, atom_tokens, most)
    assert sorted(position for members in packs for position in members) == list(range(len(lengths)))
    for members in packs:
        assert members
        assert len(members) <= (most or len(lengths))
        assert (
            sum(lengths[position] for position in members) <= atom_tokens
            or len([m for m in members if lengths[m]]) == 1
        )


@given(LENGTHS, st.integers(1, 80), st.none() | st.integers(1, 6))
def test_pack_is_first_fit_decreasing(lengths: list[int], atom_tokens: int, most: int | None) -> None:
    assert pack(lengths, atom_tokens, most) == plain_first_fit(lengths, atom_tokens, most or len(lengths))


def test_pack_of_a_worked_example() -> None:
    # Decreasing: 8 | 7 | 5 joins none of (8, 7) at 10 | 3 joins 7 | 2 joins 8 | 2 joins 5.
    assert pack([5, 2, 8, 3, 7, 2], 10) == [[2, 1], [4, 3], [0, 5]]


def test_a_document_above_the_bound_stands_alone() -> None:
    assert pack([3, 50, 4], 10) == [[1], [2, 0]]


def test_pack_of_nothing() -> None:
    assert pack([], 10) == []


@pytest.mark.parametrize(("lengths", "tokens", "most"), [([1], 0, None), ([1], 5, 0), ([-1], 5, None)])
def test_pack_refuses_bounds_that_hold_nothing(lengths: list[int], tokens: int, most: int | None) -> None:
    with pytest.raises(ValueError):
        pack(lengths, tokens, most)


@given(st.integers(0, 5000), st.integers(1, 300))
def test_windows_cover_all_tokens_in_the_fewest_even_pieces(num_tokens: int, context: int) -> None:
    cuts = windows(num_tokens, context)
    covered = [token for start, end in cuts for token in range(start, end)]
    assert covered == list(range(num_tokens))
    assert len(cuts) == (num_tokens + context - 1) // context
    sizes = [end - start for start, end in cuts]
    assert all(1 <= size <= context for size in sizes)
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    if num_tokens > 1 and context >= 3:
        assert min(sizes) >= 2


def test_windows_of_a_worked_example() -> None:
    assert windows(10, 4) == [(0, 4), (4, 7), (7, 10)]
    assert windows(1025, 1024) == [(0, 513), (513, 1025)]
    assert windows(0, 4) == []


def test_windows_refuse_no_context() -> None:
    with pytest.raises(ValueError):
        windows(5, 0)
