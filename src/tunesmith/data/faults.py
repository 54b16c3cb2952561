"""How many faulty rows are too many, and the words that say so. Torch-free."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from tunesmith.data.ledger import POLICY_REASONS, Ledger
from tunesmith.data.notes import count_of
from tunesmith.errors import DataError
from tunesmith.records import Rejected

_SHOWN = 3
_DETAIL_CHARACTERS = 160


class FaultExamples:
    """The first rejected row of each reason."""

    def __init__(self) -> None:
        self._first: dict[str, Rejected] = {}

    def add(self, rejected: Rejected) -> None:
        """Remember the row if it is the first with its reason."""
        self._first.setdefault(rejected.reason, rejected)

    def check(self, ledger: Ledger, max_rejected: float, rejected_path: Path) -> None:
        """Refuse data with too many faults.

        Args:
            ledger: counts of all rows.
            max_rejected: tolerated share of ``rows_in``, 0 to 1.
            rejected_path: where the rejected rows can be read after the refusal.

        Raises:
            DataError: faults exceed the share, or every row was rejected; shows the three most frequent reasons.
        """
        total = sum(ledger.rejected.values())
        faults = ledger.faults
        all_rejected = total > 0 and total == ledger.rows_in
        # 0.29 * 100 is 28.999…: the share is taken as the decimal number that was written.
        if not all_rejected and faults <= Fraction(str(max_rejected)) * ledger.rows_in:
            return
        reasons = self._frequent(ledger, policies=all_rejected)
        first = self._first[reasons[0]]
        if all_rejected:
            what = f"all {total:,} rows were rejected"
        else:
            what = (
                f"{faults:,} of {ledger.rows_in:,} rows are faulty ({100 * faults / ledger.rows_in:.3g} %), "
                f"more than the {100 * max_rejected:.3g} % of data.max_rejected"
            )
        lines = [
            f"  {reason}, {count_of(ledger.rejected[reason], 'row', 'rows')}: {self._example(reason)}"
            for reason in reasons
        ]
        raise DataError(
            "\n".join([f"{what}:", *lines]),
            where=str(first.origin),
            hint=f"mend the rows listed in {rejected_path}"
            + ("" if all_rejected else ", or raise data.max_rejected to train without them"),
        )

    def _frequent(self, ledger: Ledger, *, policies: bool) -> list[str]:
        reasons = [reason for reason in ledger.rejected if policies or reason not in POLICY_REASONS]
        return sorted(reasons, key=lambda reason: (-ledger.rejected[reason], reason))[:_SHOWN]

    def _example(self, reason: str) -> str:
        row = self._first[reason]
        detail = row.detail if len(row.detail) <= _DETAIL_CHARACTERS else row.detail[:_DETAIL_CHARACTERS] + "…"
        return f"{row.origin}: {detail}"
