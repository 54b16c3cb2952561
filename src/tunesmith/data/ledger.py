"""What became of every row: rows in = trained + held out + rejected. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

POLICY_REASONS = frozenset({"overlong", "duplicate_of_test", "duplicate_of_validation"})
"""Rows left out because the recipe says so; every other reason is a fault of the row."""


@dataclass
class SourceCount:
    """What became of the rows of one source.

    Attributes:
        role: ``train``, ``validation`` or ``test``: the key of the recipe that names the source.
        path: as the recipe has it.
        formats: format of each file -> number of files.
    """

    role: str
    path: str
    formats: dict[str, int] = field(default_factory=dict)
    rows_in: int = 0
    trained: int = 0
    held_out: int = 0
    rejected: int = 0


@dataclass
class Lengths:
    """Tokens of the stored training rows; median and p95 are lengths that occur (nearest rank)."""

    min: int = 0
    median: int = 0
    p95: int = 0
    max: int = 0


@dataclass
class Ledger:
    """The account of a prepared data set.

    Attributes:
        rows_in: rows read, of all sources; for each it is known what became of it.
        trained: source rows that train; a document cut into windows is one row.
        held_out: source rows for validation and test.
        rejected: reason -> rows.
        tokens: tokens of the training rows.
        trained_tokens: those of them that are targets of the loss.
        validation_rows: source rows of the validation split.
        test_rows: source rows of the test split.
        windows: stored training rows; more than ``trained`` where documents were cut.
        notes: every sentence that must be said about the data.
        per_source: the same account by source.
        lengths: of the training rows.
        tokens_by_role: role -> ``{"tokens", "trained"}`` of the training rows, see ``token_roles``; the sums are ``tokens``
            and ``trained_tokens``.
    """

    rows_in: int = 0
    trained: int = 0
    held_out: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    trained_tokens: int = 0
    validation_rows: int = 0
    test_rows: int = 0
    windows: int = 0
    notes: list[str] = field(default_factory=list)
    per_source: list[SourceCount] = field(default_factory=list)
    lengths: Lengths = field(default_factory=Lengths)
    tokens_by_role: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def balanced(self) -> bool:
        """Whether every row read is accounted for, in total and in each source."""
        whole = self.rows_in == self.trained + self.held_out + sum(self.rejected.values())
        parts = all(item.rows_in == item.trained + item.held_out + item.rejected for item in self.per_source)
        return whole and parts and self.held_out == self.validation_rows + self.test_rows

    @property
    def balanced_tokens(self) -> bool:
        """Whether every token of the training rows, and every trained one, is accounted to a role."""
        roles = self.tokens_by_role.values()
        tokens, trained = (sum(role[key] for role in roles) for key in ("tokens", "trained"))
        return tokens == self.tokens and trained == self.trained_tokens

    @property
    def faults(self) -> int:
        """Rejected rows that are faulty, not left out by a policy."""
        return sum(count for reason, count in self.rejected.items() if reason not in POLICY_REASONS)

    @property
    def share_trained(self) -> float:
        """Share of the training tokens that are targets of the loss, 0 to 1."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    def reject(self, reason: str, source: SourceCount) -> None:
        """Count a row of ``source`` as rejected."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
        source.rejected += 1

    def to_json(self) -> dict[str, Any]:
        """Plain values, most frequent reason first."""
        plain = asdict(self)
        plain["rejected"] = dict(sorted(self.rejected.items(), key=lambda item: (-item[1], item[0])))
        plain["share_trained"] = self.share_trained
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Ledger:
        """Inverse of ``to_json``."""
        known = {item.name for item in fields(cls)}
        values = {key: value for key, value in plain.items() if key in known}
        values["per_source"] = [SourceCount(**item) for item in plain["per_source"]]
        values["lengths"] = Lengths(**plain["lengths"])
        return cls(**values)


def summarise(lengths: npt.NDArray[np.int64]) -> Lengths:
    """Minimum, median, 95th percentile and maximum of row lengths in tokens; zeros for no rows."""
    if not len(lengths):
        return Lengths()
    points = np.percentile(lengths, [0, 50, 95, 100], method="inverted_cdf")
    return Lengths(*(int(point) for point in points))
