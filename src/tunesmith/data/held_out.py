"""Which split a row belongs to, and whether its input is already held out. Torch-free.

Held-out sources are read first; of their rows only an 8-byte hash of the input is kept. Rows of the training sources
are then split by hash of their input, or of their group. Where a group decides, two rows with one input may fall on
two sides: the inputs of held-out groups are then collected in a pass of their own.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

from tunesmith.data.bad_row import BadRow
from tunesmith.data.prepared import Split
from tunesmith.data.reading import ReadRow, SourceFiles, read
from tunesmith.data.splitting import input_key, split_of
from tunesmith.errors import DataError
from tunesmith.recipe.data import DataSection, SplitSection
from tunesmith.records import Origin, RawRow, Rejected

HeldOutSplit = Literal["test", "validation"]


class InputHashes:
    """Hashes of inputs, 8 bytes each: filled first, then asked."""

    def __init__(self) -> None:
        self._new = array("Q")
        self._sorted: npt.NDArray[np.uint64] = np.empty(0, dtype=np.uint64)

    def __len__(self) -> int:
        return len(self._new) + len(self._sorted)

    def add(self, key: str) -> None:
        """Remember an input."""
        self._new.append(hash_of(key))

    def __contains__(self, key: str) -> bool:
        if self._new:
            added = np.frombuffer(self._new, dtype=np.uint64)
            self._sorted = np.union1d(self._sorted, added)
            self._new = array("Q")
        value = np.uint64(hash_of(key))
        place = int(np.searchsorted(self._sorted, value))
        return place < len(self._sorted) and bool(self._sorted[place] == value)


def hash_of(key: str) -> int:
    """First 64 bits of an input's hash; two of a hundred million inputs agree by chance once in 3,700 data sets."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Splitter:
    """Assigns rows to splits and finds inputs that are held out already.

    Args:
        data: the recipe's section.

    Raises:
        DataError: the held-out fractions leave nothing to train on.
    """

    def __init__(self, data: DataSection) -> None:
        self._test = data.test if isinstance(data.test, SplitSection) else None
        self._validation = data.validation if isinstance(data.validation, SplitSection) else None
        self._hashes: dict[HeldOutSplit, InputHashes] = {"test": InputHashes(), "validation": InputHashes()}
        shares = [item.fraction for item in (self._test, self._validation) if item]
        if sum(shares) >= 1.0:
            raise DataError(
                f"the held-out fractions add up to {sum(shares):g} and leave nothing to train on",
                where="recipe [data.validation, data.test]",
                hint="together they must stay below 1; 0.05 and 0.1 are the defaults",
            )

    @property
    def by_group(self) -> bool:
        """Whether a group decides a split, so that ``collect`` must run before ``place``."""
        return any(self._group_column(split) is not None for split in self._hashes)

    def check_columns(self, first: RawRow) -> None:
        """Hold the first row of a training file against the columns that splits are grouped by.

        Raises:
            DataError: one is missing.
        """
        for split in self._hashes:
            column = self._group_column(split)
            if column is not None and column not in first.values:
                columns = ", ".join(f"`{name}`" for name in first.values)
                raise DataError(
                    f"data.{split} is grouped by `{column}`, and there is no such column",
                    where=str(first.origin),
                    hint=f"the columns are {columns}",
                )

    def remember(self, key: str, split: HeldOutSplit) -> None:
        """Note the input of a row of a held-out source."""
        self._hashes[split].add(key)

    def collect(self, rows: Iterable[ReadRow | Rejected]) -> None:
        """Note the inputs of training-source rows that a held-out group keeps."""
        for item in rows:
            if isinstance(item, Rejected):
                continue
            key = input_key(item.row.record)
            split = self._assign_whole(item, key)
            if split is not None and split != "train" and self._group_column(split) is not None:
                self._hashes[split].add(key)

    def assign(self, item: ReadRow, key: str) -> Split:
        """Split of a row of the training sources with this input: test first, then validation.

        Raises:
            BadRow: the row lacks the column it is grouped by.
        """
        test_key, validation_key = self._key(item, key, "test"), self._key(item, key, "validation")
        test = self._test.fraction if self._test else 0.0
        validation = self._validation.fraction if self._validation else 0.0
        if test_key == validation_key:
            return split_of(test_key, validation, test)
        if split_of(test_key, 0.0, test) == "test":
            return "test"
        # Hashed independently of the first choice, so the share is taken of what that choice left.
        return split_of(validation_key, validation / (1.0 - test), 0.0)

    def group_of(self, item: ReadRow) -> str | None:
        """Value of the column that the test split, else the validation split, is grouped by."""
        column = self._group_column("test") or self._group_column("validation")
        return None if column is None else _group(item, column)

    def duplicate_of(self, key: str, split: Split) -> HeldOutSplit | None:
        """The held-out split that has this input already, for a row that would go to ``split``."""
        if split != "test" and key in self._hashes["test"]:
            return "test"
        # A row that a fraction put into test keeps its place before a validation group, not before a validation source.
        reaches = split == "train" or (split == "test" and self._validation is None)
        return "validation" if reaches and key in self._hashes["validation"] else None

    def find(self, key: str, split: HeldOutSplit, sources: Iterable[SourceFiles]) -> Origin | None:
        """Read the sources again for the first held-out row with this input: only its hash was kept."""
        for source in sources:
            if source.role not in (split, "train"):
                continue
            for item in read(source):
                if isinstance(item, Rejected) or input_key(item.row.record) != key:
                    continue
                if source.role == split or self._assign_whole(item, key) == split:
                    return item.row.origin
        return None

    def _assign_whole(self, item: ReadRow, key: str) -> Split | None:
        """The same as ``assign``, or None for a row that lacks its group and is rejected for it."""
        try:
            return self.assign(item, key)
        except BadRow:
            return None

    def _group_column(self, split: Split) -> str | None:
        section = self._test if split == "test" else self._validation if split == "validation" else None
        return section.group_by if section is not None and section.fraction > 0 else None

    def _key(self, item: ReadRow, key: str, split: HeldOutSplit) -> str:
        column = self._group_column(split)
        return key if column is None else _group(item, column)


def _group(item: ReadRow, column: str) -> str:
    value = item.raw.values.get(column)
    if value is None or value == "":
        columns = ", ".join(f"`{name}`" for name in item.raw.values)
        raise BadRow("missing_column", f"the split needs a value in column `{column}`; the row has {columns}")
    return str(value)
