"""What a row counts in the training loss, read from a column of its own. Torch-free.

`columns: {weight: COLUMN}` names it; no column is taken for a weight unasked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.bad_row import BadRow
from tunesmith.data.columns import shown_columns
from tunesmith.errors import DataError

FIELD = "weight"
"""Key of ``columns``; a field of every format."""
LARGEST = 1e6
_SHOWN_CHARACTERS = 40


def row_weight(values: Mapping[str, Any], columns: Mapping[str, str]) -> float:
    """Weight of a row; 1 where the source names no column for it. Text of a table is read as a number.

    Args:
        values: the row.
        columns: as the source has them.

    Raises:
        BadRow: ``missing_column``, or ``wrong_weight`` for what is no number from 0 to ``LARGEST``.
    """
    name = columns.get(FIELD)
    if name is None:
        return 1.0
    if name not in values:
        raise BadRow("missing_column", f"no column `{name}`; the columns are: {shown_columns(values)}")
    value = values[name]
    try:
        weight = None if isinstance(value, bool) or not isinstance(value, int | float | str) else float(value)
    except (ValueError, OverflowError):
        weight = None
    if weight is None or not 0.0 <= weight <= LARGEST:
        shown = repr(value)
        shown = shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}…"
        raise BadRow(
            "wrong_weight", f"the weight in `{name}` is {shown}: a number from 0 to {LARGEST:,.0f} is expected"
        )
    return weight


def content_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """The columns without the weight's: those that make the record."""
    return {field: column for field, column in columns.items() if field != FIELD}


class WeightTally:
    """Weights of the training rows, for the account."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.num_zero = 0
        self.total = 0.0
        self.least = LARGEST
        self.most = 0.0

    def add(self, weight: float) -> None:
        """Count a row."""
        self.num_rows += 1
        self.num_zero += weight == 0.0
        self.total += weight
        self.least, self.most = min(self.least, weight), max(self.most, weight)

    def check(self, where: str) -> None:
        """Refuse rows that teach nothing.

        Raises:
            DataError: every row weighs 0.
        """
        if self.num_rows and self.total == 0.0:
            raise DataError(
                f"all {self.num_rows:,} training rows weigh 0: nothing would be learnt",
                where=where,
                hint="look at the column that `columns.weight` names, or remove that key",
            )

    def notes(self) -> list[str]:
        """The sentence about weights that are not all 1."""
        if not self.num_rows or (self.least == self.most == 1.0):
            return []
        zero = f"; {self.num_zero:,} of them weigh 0, which are computed and teach nothing" if self.num_zero else ""
        return [
            f"training rows weigh {self.least:g} to {self.most:g} in the loss, {self.total / self.num_rows:g} on average "
            f"(columns.weight){zero}; validation and test are not weighted"
        ]
