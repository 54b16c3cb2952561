"""Spans of tags, derived by hand from conlleval's rules; seqeval 1.2.2 gave the same on 20,000 random sequences."""

from __future__ import annotations

import pytest

from tunesmith.tags import Chunk, chunks, continued, is_outside, marks_spans, stray


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O B-A I-A O", [("A", 1, 3)]),
        ("B-A B-A I-A", [("A", 0, 1), ("A", 1, 3)]),
        ("I-A I-A O I-B", [("A", 0, 2), ("B", 3, 4)]),
        ("B-A I-B I-B", [("A", 0, 1), ("B", 1, 3)]),
        ("S-A E-A I-A", [("A", 0, 1), ("A", 1, 2), ("A", 2, 3)]),
        ("B-A E-A E-A", [("A", 0, 2), ("A", 2, 3)]),
        ("B I O B", [("", 0, 2), ("", 3, 4)]),
        ("B-NEW-YORK I-NEW-YORK", [("NEW-YORK", 0, 2)]),
        ("O O", []),
        ("", []),
    ],
)
def test_spans_are_those_of_conlleval(tags: str, spans: list[tuple[str, int, int]]) -> None:
    assert chunks(tags.split()) == [Chunk(*span) for span in spans]


def test_the_data_may_call_nothing_by_another_name() -> None:
    assert chunks(["_", "B-A", "_", "O"], "_") == [Chunk("A", 1, 2)]
    assert is_outside("O", "_")
    assert is_outside("_", "_")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"O", "B-A", "I-A"}, True), ({"B", "I", "O"}, True), ({"O"}, False), ({"NOUN", "VERB", "O"}, False),
        ({"B-A", "I"}, True), ({"B-A", "X"}, False), ({"B-", "O"}, False),
    ],
)  # fmt: skip
def test_labels_mark_spans_where_all_have_a_prefix(labels: set[str], expected: bool) -> None:
    assert marks_spans(labels) is expected


@pytest.mark.parametrize(
    ("tags", "place"),
    [("B-A I-A I-A", None), ("O I-A", 1), ("I-A", 0), ("B-A I-B", 1), ("S-A E-A", 1), ("B-A E-A O S-B", None)],
)
def test_tags_that_go_on_with_nothing_are_found(tags: str, place: int | None) -> None:
    assert stray(tags.split()) == place


@pytest.mark.parametrize(
    ("tag", "further"),
    [("B-A", "I-A"), ("S-A", "I-A"), ("I-A", "I-A"), ("E-A", "E-A"), ("O", "O"), ("B", "I"), ("NOUN", "NOUN")],
)
def test_further_pieces_of_a_word_go_on(tag: str, further: str) -> None:
    assert continued(tag) == further
