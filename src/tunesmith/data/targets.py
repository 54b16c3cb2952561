"""What a head should answer, row by row, beside a token store: numbers of labels, or a number itself. Torch-free.

Labels are numbered as they are met, since rows stream; ``labels.json`` of the prepared folder holds their names in that
order and how many training rows have each. The order of a head's outputs is made from it by the reader.

SPLIT/ targets.bin   4 bytes each: int32 numbers of labels, or float32
       target_ends.bin  int64 a row: one past its last target
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from tunesmith.data.store import TornStore
from tunesmith.errors import RunError
from tunesmith.files import NewFile, read_json, write_json

NO_LABEL = -1
"""Target of a token that has no label of its own."""
LABELS = "labels.json"
_VALUES, _ENDS = "targets.bin", "target_ends.bin"
Targets = npt.NDArray[np.int32] | npt.NDArray[np.float32]


class LabelBook:
    """Names of labels in the order they were met, and how many training rows, or words of them, have each."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.counts: dict[str, int] = {}

    def number(self, name: str) -> int:
        """Number of a label, a new one where it was never met."""
        return self.names.setdefault(name, len(self.names))

    def count(self, names: Sequence[str]) -> None:
        """Count a training row that has these labels."""
        for name in set(names):
            self.counts[name] = self.counts.get(name, 0) + 1

    def count_each(self, names: Iterable[str]) -> None:
        """Count the words of a training row, each with its label."""
        for name in names:
            self.counts[name] = self.counts.get(name, 0) + 1

    def save(self, folder: Path) -> None:
        """Write ``labels.json``."""
        write_json(folder / LABELS, {"names": list(self.names), "counts": self.counts})

    @classmethod
    def load(cls, folder: Path) -> LabelBook:
        """Inverse of ``save``. Raises TornStore where the file is missing or broken."""
        book = cls()
        try:
            values = read_json(folder / LABELS)
            book.names = {str(name): number for number, name in enumerate(values["names"])}
            book.counts = {str(name): int(count) for name, count in values["counts"].items()}
        except (RunError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise TornStore(f"{folder / LABELS} is missing or torn") from error
        return book


class TargetWriter:
    """Appends the targets of rows; a context manager.

    Args:
        folder: of the token store, which exists.
        numbers: whether targets are numbers instead of labels.
    """

    def __init__(self, folder: Path, *, numbers: bool) -> None:
        self._dtype = np.dtype("<f4" if numbers else "<i4")
        self._values = NewFile(folder / _VALUES)
        self._ends = NewFile(folder / _ENDS)
        self._end = 0

    def add(self, targets: Sequence[int] | Sequence[float]) -> None:
        """Append one row's targets."""
        self._end += len(targets)
        self._values.write(np.asarray(targets, dtype=self._dtype).tobytes())
        self._ends.write(np.asarray([self._end], dtype="<i8").tobytes())

    def __enter__(self) -> TargetWriter:
        self._values.__enter__()
        self._ends.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.__exit__(kind, error, trace)
        self._values.__exit__(kind, error, trace)


class TargetStore:
    """Targets of rows, memory-mapped and read-only.

    Args:
        folder: of the token store.
        num_rows: rows of the token store.
        numbers: whether targets are numbers instead of labels.

    Raises:
        TornStore: a file is missing or has the wrong size.
    """

    def __init__(self, folder: Path, num_rows: int, *, numbers: bool) -> None:
        dtype = np.dtype("<f4" if numbers else "<i4")
        ends_path, values_path = folder / _ENDS, folder / _VALUES
        if not ends_path.is_file() or ends_path.stat().st_size != 8 * num_rows:
            raise TornStore(f"{ends_path} is missing or has the wrong size")
        self._ends = np.fromfile(ends_path, dtype="<i8")
        total = int(self._ends[-1]) if num_rows else 0
        if not values_path.is_file() or values_path.stat().st_size != 4 * total:
            raise TornStore(f"{values_path} is missing or has the wrong size")
        self._values = np.memmap(values_path, dtype=dtype, mode="r", shape=(total,)) if total else np.empty(0, dtype)

    def row(self, index: int) -> Targets:
        """Targets of a row."""
        start = int(self._ends[index - 1]) if index else 0
        found: Targets = np.asarray(self._values[start : int(self._ends[index])])
        return found
