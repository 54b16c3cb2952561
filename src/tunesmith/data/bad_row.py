"""The signal that one row cannot be used. Torch-free."""

from __future__ import annotations

from typing import Literal, get_args

Reason = Literal[
    "broken_json",
    "wrong_encoding",
    "missing_column",
    "wrong_type",
    "empty_text",
    "empty_answer",
    "role_order",
    "no_answer",
    "template_failed",
    "overlong",
    "duplicate_of_test",
    "duplicate_of_validation",
    "nothing_trained",
    "wrong_weight",
    "unknown_label",
    "wrong_tags",
]
"""Stable names of row faults, as they stand in the ledger and in rejected.jsonl."""

REASONS: tuple[str, ...] = get_args(Reason)
_LONGEST = 400


class BadRow(Exception):
    """A row that cannot be used; the reader of rows turns it into ``records.Rejected`` and goes on.

    Attributes:
        reason: one of ``REASONS``.
        detail: a sentence for the user, with the turn or column it is about.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        detail = shortened(detail)
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


def shortened(detail: str) -> str:
    """A sentence about a row, cut where the row's own words make it long: it is written once for every such row."""
    return detail if len(detail) <= _LONGEST else f"{detail[:_LONGEST]}…"
