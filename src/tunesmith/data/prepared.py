"""A prepared data set: token stores, held-out rows, ledger and labels in one folder of the cache. Torch-free.

KEY/  train/  validation/  test/        token stores; a split without rows has none
      validation.jsonl  test.jsonl      the held-out rows with their full record
      rejected.jsonl                    every row left out, with its reason
      ledger.json  meta.json            meta.json is written last and lists size and sha256 of every other file
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.ledger import Ledger
from tunesmith.data.row_codec import read_rows_json
from tunesmith.data.store import STORE_VERSION, TokenStore, TornStore
from tunesmith.errors import RunError
from tunesmith.files import MOST_BYTES, read_json, sha256_of, write_sealed
from tunesmith.records import Row

Split = Literal["train", "validation", "test"]
META, LEDGER, REJECTED = "meta.json", "ledger.json", "rejected.jsonl"


@dataclass(frozen=True)
class Prepared:
    """Tokens and account of a recipe's data.

    Attributes:
        folder: in the cache.
        key: what it is found by; part of a run's record.
        ledger: what became of every row.
        train: tokens of the training rows.
        validation: tokens of the validation rows; None where there are none.
        test: tokens of the test rows; None where there are none.
        labels: the distinct answers of single-turn training rows in sorted order, where they are a closed set:
            at most 256, each on average on three rows or more; else None.
        label_counts: training rows of each label; empty where there is no closed set.
    """

    folder: Path
    key: str
    ledger: Ledger
    train: TokenStore
    validation: TokenStore | None
    test: TokenStore | None
    labels: list[str] | None
    label_counts: dict[str, int]

    @property
    def rejected_path(self) -> Path:
        """JSON lines with file, line, reason, detail and row of every rejected row."""
        return self.folder / REJECTED

    def rows(self, split: Split) -> list[Row]:
        """The held-out rows of ``validation`` or ``test`` in the order they were read. See ``iter_rows``."""
        return list(self.iter_rows(split))

    def iter_rows(self, split: Split) -> Iterator[Row]:
        """The same one at a time. Training rows are kept as tokens only: ``reading.read`` streams their sources."""
        if split == "train":
            raise ValueError("training rows are not kept as records; read their sources again")
        path = self.folder / f"{split}.jsonl"
        return read_rows_json(path) if path.exists() else iter(())


def write_meta(folder: Path, key: str, context: int, label_counts: dict[str, int] | None) -> None:
    """Close a prepared folder: list every file with its size and hash. Nothing may be written after it."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    meta = {
        "version": STORE_VERSION, "key": key, "context": context, "label_counts": label_counts,
        "files": {name: path.stat().st_size for name, path in paths.items()},
        "sha256": {name: sha256_of(path) for name, path in paths.items()},
    }  # fmt: skip
    write_sealed(folder / META, meta)


def open_prepared(folder: Path, *, verify: bool = False) -> Prepared:
    """Open a prepared folder.

    Args:
        folder: in the cache.
        verify: hash every file: a token that rotted would be trained on.

    Raises:
        TornStore: a file is missing, has the wrong size, does not parse, or holds other bytes than were written.
    """
    try:
        meta: dict[str, Any] = read_json(folder / META, MOST_BYTES)
        for name, size in meta["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != size:
                raise TornStore(f"{name} is missing or has the wrong size")
        for name, digest in meta.get("sha256", {}).items() if verify else ():
            if sha256_of(folder / name) != digest:
                raise TornStore(f"{name} does not hold the bytes that were written")
        counts = meta["label_counts"]
        return Prepared(
            folder=folder,
            key=meta["key"],
            ledger=Ledger.from_json(read_json(folder / LEDGER, MOST_BYTES)),
            train=TokenStore(folder / "train"),
            validation=_optional(folder / "validation"),
            test=_optional(folder / "test"),
            labels=None if counts is None else sorted(counts),
            label_counts=counts or {},
        )
    except (RunError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise TornStore(f"the account of the cached data does not parse: {error}") from error


def _optional(folder: Path) -> TokenStore | None:
    return TokenStore(folder) if folder.is_dir() else None
