"""Whether the answers come from a closed set of labels, found while rows stream by. Torch-free."""

from __future__ import annotations

from collections.abc import Callable

from tunesmith.records import Chat, Labelled, Record

MAX_LABELS = 256
MIN_ROWS_PER_LABEL = 3


class LabelCounter:
    """Counts distinct answers of single-turn rows, and stops above 256: they are no labels then.

    White space around an answer does not tell it apart: answers are compared without it.

    Args:
        reference: the answer of a record.
    """

    def __init__(self, reference: Callable[[Record], str]) -> None:
        self._reference = reference
        self._counts: dict[str, int] | None = {}

    def add(self, record: Record) -> None:
        """Count a training row."""
        if self._counts is None or not is_single_turn(record):
            return
        answer = self._reference(record).strip()
        self._counts[answer] = self._counts.get(answer, 0) + 1
        if len(self._counts) > MAX_LABELS:
            self._counts = None

    def closed_set(self) -> dict[str, int] | None:
        """Label -> training rows in sorted order, or None where the answers are no closed set.

        A set is closed with 2 to 256 labels that have three rows each on average.
        """
        counts = self._counts
        if counts is None or len(counts) < 2 or sum(counts.values()) < MIN_ROWS_PER_LABEL * len(counts):
            return None
        return dict(sorted(counts.items()))


def is_single_turn(record: Record) -> bool:
    """A labelled text, or one question and its answer, with or without a system message."""
    if isinstance(record, Labelled):
        return True
    return isinstance(record, Chat) and [item.role for item in record.messages if item.role != "system"] == [
        "user",
        "assistant",
    ]
