"""Rows longer than the context: refused, dropped, cut into windows or truncated, by name and counted. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.length_bound import num_characters
from tunesmith.data.notes import count_of
from tunesmith.data.packing import windows
from tunesmith.data.store import WHOLE
from tunesmith.data.template_budget import MAX_CHARACTERS
from tunesmith.errors import DataError
from tunesmith.recipe.data import OverlongPolicy
from tunesmith.records import Record, Row, Text

_SHOWN = 3
_POLICIES = (
    "set data.overlong: `drop` leaves such rows out, `truncate` keeps their first tokens, "
    "`split` cuts plain documents into windows; or raise model.context where the model allows it"
)


@dataclass(frozen=True)
class Piece:
    """What is stored of a row: all of it, its beginning, or window number ``window``."""

    ids: Sequence[int]
    trained: Sequence[bool]
    roles: bytes
    window: int = WHOLE


class Overlong:
    """Applies the policy row by row and remembers what must be said.

    Args:
        policy: the recipe's ``data.overlong``; None is ``error`` for conversations and ``split`` for plain documents.
        context: most tokens of a row.
        first_trains: whether the first token of a row may be trained, as it may under a head.
    """

    def __init__(self, policy: OverlongPolicy | None, context: int, *, first_trains: bool = False) -> None:
        self._policy = policy
        self._first = 0 if first_trains else 1
        self._context = context
        self._refused: list[tuple[Row, str]] = []
        self._longest = 0
        self.num_refused = 0
        self.num_split = 0
        self.num_windows = 0
        self.num_truncated = 0

    def fit(self, row: Row, ids: Sequence[int], trained: Sequence[bool], roles: bytes) -> list[Piece]:
        """Pieces of the row that fit the context; none where the policy leaves it out.

        Raises:
            DataError: the policy is ``split`` and the row is not a plain document.
        """
        if len(ids) <= self._context:
            return [Piece(ids, trained, roles)]
        policy = self._policy or default_policy(row.record)
        if policy == "split":
            return self._split(row, ids, trained, roles)
        if policy == "truncate":
            # A first token that has to be predicted has nothing before it: trained or not, it gives no target.
            if not any(trained[self._first : self._context]):
                return []
            self.num_truncated += 1
            return [Piece(ids[: self._context], trained[: self._context], roles[: self._context])]
        if policy == "error":
            self._refuse(row, len(ids), f"{len(ids):,} tokens")
        return []

    def leaves_out(self, row: Row, num_tokens: int) -> bool:
        """Whether the policy leaves out a row of at least ``num_tokens`` tokens, more than the context, unrendered.

        A plain document that is split or truncated is rendered; so is a conversation to be truncated, unless it is longer
        than a template may write.

        Raises:
            DataError: the policy is ``split`` and the row is not a plain document.
        """
        policy = self._policy or default_policy(row.record)
        at_least = f"more than {num_tokens - 1:,} tokens"
        if policy == "error":
            self._refuse(row, num_tokens, at_least)
        elif policy == "split" and not isinstance(row.record, Text):
            raise _cannot_split(row, at_least, self._context)
        elif policy != "drop":
            return not isinstance(row.record, Text) and num_characters(row.record) > MAX_CHARACTERS
        return True

    def _refuse(self, row: Row, num_tokens: int, shown: str) -> None:
        self.num_refused += 1
        self._longest = max(self._longest, num_tokens)
        if len(self._refused) < _SHOWN:
            self._refused.append((row, shown))

    def _split(self, row: Row, ids: Sequence[int], trained: Sequence[bool], roles: bytes) -> list[Piece]:
        if not isinstance(row.record, Text):
            raise _cannot_split(row, f"{len(ids):,} tokens", self._context)
        cuts = windows(len(ids), self._context)
        self.num_split += 1
        self.num_windows += len(cuts)
        return [
            Piece(ids[start:end], trained[start:end], roles[start:end], number)
            for number, (start, end) in enumerate(cuts)
        ]

    def check(self) -> None:
        """Raise DataError where rows were refused: names the first, their lengths, the context and the policies."""
        if not self.num_refused:
            return
        first, _ = self._refused[0]
        named = ", ".join(f"{row.origin} ({length})" for row, length in self._refused)
        more = self.num_refused - len(self._refused)
        raise DataError(
            f"{count_of(self.num_refused, 'row is', 'rows are')} longer than the context of {self._context:,} tokens: "
            f"{named}{f' and {more:,} more, the longest {self._longest:,} tokens' if more else ''}",
            where=str(first.origin),
            hint=_POLICIES,
        )

    def notes(self) -> list[str]:
        """What was cut, as sentences."""
        said = []
        if self.num_split:
            said.append(
                f"{count_of(self.num_split, 'document', 'documents')} longer than {self._context:,} tokens became "
                f"{self.num_windows:,} windows without loss of text"
            )
        if self.num_truncated:
            said.append(
                f"{count_of(self.num_truncated, 'row was', 'rows were')} truncated to the first {self._context:,} tokens "
                "(data.overlong: truncate)"
            )
        return said


def _cannot_split(row: Row, length: str, context: int) -> DataError:
    return DataError(
        f"a conversation of {length} is longer than the context of {context:,}, "
        "and `split` cuts plain documents only: a later window of a conversation would lack its question",
        where=str(row.origin),
        hint="set data.overlong to drop, truncate or error",
    )


def default_policy(record: Record) -> OverlongPolicy:
    """What an unset ``data.overlong`` means for a record."""
    return "split" if isinstance(record, Text) else "error"
