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
]
"""Stable names of row faults, as they stand in the ledger and in rejected.jsonl."""

REASONS: tuple[str, ...] = get_args(Reason)


class BadRow(Exception):
    """A row that cannot be used; the reader of rows turns it into ``records.Rejected`` and goes on.

    Attributes:
        reason: one of ``REASONS``.
        detail: a sentence for the user, with the turn or column it is about.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail
