"""Token rows on disk, read by memory mapping: a data set larger than memory trains. Torch-free.

tokens.bin    uint32, the ids of all rows one after another
trained.bin   uint8 per token, 1 where the token is a target of the loss
rows.bin      one fixed record per row: where its tokens start, its length, its identity, origin, weight and part
store.json    counts and the names of the source files
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.errors import RunError
from tunesmith.files import MOST_BYTES, NewFile, make_folders, read_json, write_json
from tunesmith.records import Origin, Row

STORE_VERSION = 7
"""Part of the cache key: raise it whenever stored bytes, formats, splits or the account would come out differently."""

WHOLE = -1
"""Window number of a row that was not cut."""

_TOKENS, _TRAINED, _ROWS, _META = "tokens.bin", "trained.bin", "rows.bin", "store.json"
_ROW = struct.Struct("<qqQiiiih2xIfi")
_ROW_DTYPE = np.dtype(
    {
        "names": ["start", "line", "id", "length", "trained", "file", "window", "source", "row", "weight", "part"],
        "formats": ["<i8", "<i8", "<u8", "<i4", "<i4", "<i4", "<i4", "<i2", "<u4", "<f4", "<i4"],
        "offsets": [0, 8, 16, 24, 28, 32, 36, 40, 44, 48, 52],
        "itemsize": _ROW.size,
    }
)


class TornStore(Exception):
    """A store's files are missing or have the wrong size."""


class StoreWriter:
    """Appends rows to a new store; memory does not grow with the rows. A context manager.

    Args:
        folder: created; must not hold a store.
        first_trains: whether the first token of a row may be trained, as it may under a head.
    """

    def __init__(self, folder: Path, *, first_trains: bool = False) -> None:
        make_folders(folder)
        self._first_trains = first_trains
        self._folder = folder
        # Each is closed even where another cannot be opened, or the flush of another fails on a full disk.
        with ExitStack() as streams:
            self._tokens = streams.enter_context(NewFile(folder / _TOKENS))
            self._trained = streams.enter_context(NewFile(folder / _TRAINED))
            self._rows = streams.enter_context(NewFile(folder / _ROWS))
            self._streams = streams.pop_all()
        self._files: dict[str, int] = {}
        self.num_rows = 0
        self.num_tokens = 0
        self.num_trained = 0

    def add(self, row: Row, ids: Sequence[int], trained: Sequence[bool], window: int = WHOLE, part: int = 0) -> None:
        """Append one row of tokens.

        The first token has nothing before it that could predict it: without ``first_trains`` it is not stored as trained.

        Args:
            row: identity, origin and weight; ``row.id`` is 16 hex digits.
            ids: token ids.
            trained: for each token, whether it is a target.
            window: number of the window from 0 where ``ids`` are a part of the row, else ``WHOLE``.
            part: number of the objective's part that the row belongs to.
        """
        tokens = np.asarray(ids, dtype="<u4")
        mask = np.array(trained, dtype=np.uint8)
        if tokens.shape != mask.shape:
            raise ValueError(f"{len(tokens)} ids beside {len(mask)} mask values")
        if len(mask) and not self._first_trains:
            mask[0] = 0
        num_trained = int(mask.sum())
        file = self._files.setdefault(row.origin.file, len(self._files))
        place = row.origin
        lengths = (len(tokens), num_trained)
        record = _ROW.pack(
            self.num_tokens, place.line, int(row.id, 16), *lengths, file, window, row.source, place.row or 0, row.weight,
            part,
        )  # fmt: skip
        self._tokens.write(tokens.tobytes())
        self._trained.write(mask.tobytes())
        self._rows.write(record)
        self.num_rows += 1
        self.num_tokens += len(tokens)
        self.num_trained += num_trained

    def close(self) -> None:
        """Flush and write the counts; the store can be opened after this."""
        self._streams.close()
        write_json(
            self._folder / _META,
            {
                "version": STORE_VERSION,
                "rows": self.num_rows,
                "tokens": self.num_tokens,
                "trained": self.num_trained,
                "files": list(self._files),
            },
        )

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._streams.__exit__(kind, error, trace)


class TokenStore:
    """Rows of tokens, memory-mapped and read-only.

    Attributes:
        num_rows: stored rows; a document cut into windows has one row for each.
        num_tokens: all tokens.
        num_trained: tokens that are targets of the loss.
        lengths: tokens of each row, int64 [rows].
        trained_lengths: targets of each row, int64 [rows].
        sources: index of the recipe's source of each row, int16 [rows].
        weights: what each row counts in the loss, float32 [rows].
        parts: number of the objective's part that each row belongs to, int32 [rows].

    Raises:
        TornStore: a file is missing or has the wrong size.
    """

    def __init__(self, folder: Path) -> None:
        try:
            meta: dict[str, Any] = read_json(folder / _META, MOST_BYTES)
            self.num_rows = int(meta["rows"])
            self.num_tokens = int(meta["tokens"])
            self.num_trained = int(meta["trained"])
            self._files: list[str] = list(meta["files"])
        except (RunError, KeyError, TypeError, ValueError) as error:
            raise TornStore(f"{folder / _META} is missing or torn") from error
        self.folder = folder
        self._tokens = _map(folder / _TOKENS, np.dtype("<u4"), self.num_tokens)
        self._trained = _map(folder / _TRAINED, np.dtype(np.bool_), self.num_tokens)
        self._rows = _map(folder / _ROWS, _ROW_DTYPE, self.num_rows)
        self.lengths: npt.NDArray[np.int64] = self._rows["length"].astype(np.int64)
        self.trained_lengths: npt.NDArray[np.int64] = self._rows["trained"].astype(np.int64)
        self.sources: npt.NDArray[np.int16] = self._rows["source"].astype(np.int16)
        self.weights: npt.NDArray[np.float32] = self._rows["weight"].astype(np.float32)
        self.parts: npt.NDArray[np.int32] = self._rows["part"].astype(np.int32)
        self._check()

    def row(self, index: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """Ids and mask of a row as read-only views into the files, both [tokens of the row]."""
        start = int(self._rows["start"][index])
        end = start + int(self.lengths[index])
        return self._tokens[start:end], self._trained[start:end]

    def row_id(self, index: int) -> str:
        """Identity of the source row, with ``#k`` behind it for window k of a cut document."""
        text = f"{int(self._rows['id'][index]):016x}"
        window = int(self._rows["window"][index])
        return text if window == WHOLE else f"{text}#{window}"

    def origin(self, index: int) -> Origin:
        """File and line of the source row, and its number in a JSON array."""
        record = self._rows[index]
        return Origin(self._files[int(record["file"])], int(record["line"]), int(record["row"]) or None)

    def _check(self) -> None:
        """Hold the row table against the counts: a torn table would hand out other rows' tokens."""
        if int(self.lengths.sum()) != self.num_tokens or int(self.trained_lengths.sum()) != self.num_trained:
            raise TornStore(f"{self.folder / _ROWS} does not agree with {_META}")


def _map(path: Path, dtype: np.dtype[Any], count: int) -> Any:
    """Map ``count`` items; an empty file cannot be mapped and becomes an empty array."""
    size = path.stat().st_size if path.is_file() else -1
    if size != dtype.itemsize * count:
        raise TornStore(f"{path} has {size:,} bytes instead of {dtype.itemsize * count:,}")
    return np.memmap(path, dtype=dtype, mode="r", shape=(count,)) if count else np.empty(0, dtype=dtype)
