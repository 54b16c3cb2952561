"""Fills the folder of a prepared data set, row by row, and keeps the account. Torch-free.

ReadRow ──> duplicate? ──> split ──> render ──> fit the context ──> store        each arrow may reject, with a reason
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from tunesmith.data.bad_row import BadRow
from tunesmith.data.faults import FaultExamples
from tunesmith.data.formats import note
from tunesmith.data.head_rendering import HeadRenderer
from tunesmith.data.head_targets import HeadTargets
from tunesmith.data.held_out import HeldOutSplit, Splitter
from tunesmith.data.labels import LabelCounter
from tunesmith.data.ledger import Ledger, SourceCount, summarise
from tunesmith.data.length_bound import num_characters, tokens_beyond
from tunesmith.data.notes import (
    duplicate_notes,
    format_notes,
    reject_notes,
    split_notes,
    text_row_hint,
    warning_notes,
)
from tunesmith.data.overlong import Overlong
from tunesmith.data.prepared import LEDGER, REJECTED, Split, write_meta
from tunesmith.data.reading import ReadRow, SourceFiles, read
from tunesmith.data.rejects import RejectFile
from tunesmith.data.row_codec import row_to_json, to_line
from tunesmith.data.row_weights import WeightTally
from tunesmith.data.splitting import input_key
from tunesmith.data.store import StoreWriter, TokenStore
from tunesmith.data.sum_rendering import SumRenderer
from tunesmith.data.token_roles import RoleTally
from tunesmith.disk import disk
from tunesmith.errors import DataError
from tunesmith.files import NewFile, make_folders, write_json
from tunesmith.recipe.objectives import SftSection
from tunesmith.recipe.root import Recipe
from tunesmith.records import RawRow, Record, Rejected, Row, Text

PROGRESS_ROWS = 20_000


class ExaminedRow(Protocol):
    """A rendered record."""

    @property
    def ids(self) -> Sequence[int]:
        """Token ids."""
        ...

    @property
    def trained(self) -> Sequence[bool]:
        """For each token, whether it is a target of the loss."""
        ...

    @property
    def roles(self) -> bytes:
        """For each token, the code of its role; see ``token_roles``."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """Sentences that hold for the record, without its values: equal ones are counted over rows."""
        ...


class Encoder(Protocol):
    """Text to token ids."""

    def encode(self, text: str) -> Sequence[int]:
        """Token ids of a text."""
        ...


class RowRenderer(Protocol):
    """What preparing needs of a renderer; ``rendering.Renderer`` is one."""

    @property
    def tokenizer(self) -> Encoder:
        """Tells how long a text is that is not worth rendering."""
        ...

    def examine(self, record: Record) -> ExaminedRow:
        """Ids, mask, roles and warnings. Raises BadRow for a faulty record."""
        ...

    def reference(self, record: Record) -> str:
        """The answer that a record asks for."""
        ...

    def fingerprint(self) -> str:
        """Changes whenever the same record would be rendered to other tokens."""
        ...


class Builder:
    """One preparation.

    Args:
        recipe: names splits and policies.
        renderer: turns records into ids and masks.
        context: most tokens of a row.
        folder: empty; becomes the prepared folder.
        notify: told how far the reading is.
    """

    def __init__(
        self, recipe: Recipe, renderer: RowRenderer, context: int, folder: Path, notify: Callable[[str], None]
    ) -> None:
        self._data = recipe.data
        self._objective = recipe.objective
        self._renderer = renderer
        self._context = context
        self._folder = folder
        self._notify = notify
        self._ledger = Ledger()
        self._faults = FaultExamples()
        self._first_trains = isinstance(renderer, HeadRenderer)
        self._overlong = Overlong(recipe.data.overlong, context, first_trains=self._first_trains)
        self._splitter = Splitter(recipe.data)
        self._labels = LabelCounter(renderer.reference)
        self._targets: HeadTargets | None = None
        self._roles = RoleTally()
        self._weights = WeightTally()
        self._duplicates: dict[tuple[Split, Split], int] = {}
        self._warnings: dict[str, int] = {}
        self._found: list[dict[str, int]] = []
        self._sources: Sequence[SourceFiles] = ()

    def build(self, sources: Sequence[SourceFiles], key: str) -> None:
        """Read every source and write the whole folder.

        Raises:
            DataError: too many faults, overlong or duplicate rows under ``error``, nothing to train on.
        """
        self._sources = sources
        with ExitStack() as stack:
            self._writers: dict[Split, StoreWriter] = {}
            self._records: dict[Split, NewFile] = {}
            self._stack = stack
            if isinstance(self._renderer, HeadRenderer):
                self._targets = HeadTargets(self._renderer, self._folder, stack)
            self._rejected = RejectFile(stack.enter_context(NewFile(self._folder / REJECTED)))
            if self._splitter.by_group:
                for source in sources:
                    if source.role == "train":
                        self._splitter.collect(read(source))
            for source in sources:
                self._read(source)
        self._check(key)
        counts = self._labels.closed_set() if self._targets is None else self._targets.close(self._trained_from)
        self._close_ledger()
        write_json(self._folder / LEDGER, self._ledger.to_json())
        write_meta(self._folder, key, self._context, counts)

    def _read(self, source: SourceFiles) -> None:
        count = SourceCount(source.role, source.name)
        self._ledger.per_source.append(count)

        found: dict[str, int] = {}
        self._found.append(found)

        def started(name: str, first: RawRow) -> None:
            count.formats[name] = count.formats.get(name, 0) + 1
            # `note` tells which columns were found; named ones the user knows.
            sentence = f"format {name}, columns as named" if source.section.columns else note(name, first)
            found[sentence] = found.get(sentence, 0) + 1
            if source.role == "train":
                self._splitter.check_columns(first)

        for item in read(source, started):
            self._ledger.rows_in += 1
            count.rows_in += 1
            if self._ledger.rows_in % PROGRESS_ROWS == 0:
                self._notify(f"read {self._ledger.rows_in:,} rows")
            rejected = item if isinstance(item, Rejected) else self._take(source, count, item)
            if rejected is not None:
                self._ledger.reject(rejected.reason, count)
                self._faults.add(rejected)
                self._rejected.write(rejected)

    def _take(self, source: SourceFiles, count: SourceCount, item: ReadRow) -> Rejected | None:
        """Store a row, or say why not."""
        try:
            return self._place(source, count, item)
        except BadRow as fault:
            return Rejected(item.row.origin, fault.reason, fault.detail, item.raw.values)
        except UnicodeEncodeError as error:
            return Rejected(
                item.row.origin,
                "wrong_encoding",
                f"the text holds a lone surrogate at character {error.start}",
                item.raw.values,
            )

    def _place(self, source: SourceFiles, count: SourceCount, item: ReadRow) -> Rejected | None:
        row = item.row
        key = input_key(row.record)
        split: Split = self._splitter.assign(item, key) if source.role == "train" else source.role
        if source.role == "train" and self._splitter.by_group:
            row = replace(row, group=self._splitter.group_of(item))
        if (repeated := self._splitter.duplicate_of(key, split)) is not None and self._drops(
            item, key, split, repeated
        ):
            return Rejected(
                row.origin, f"duplicate_of_{repeated}", f"its input is also in a {repeated} row", item.raw.values
            )
        unrendered = self._too_long(row)
        if unrendered is not None:
            return Rejected(row.origin, "overlong", unrendered, item.raw.values)
        rendered = self._renderer.examine(row.record)
        if self._targets is None and not any(rendered.trained[1:]):
            raise BadRow("nothing_trained", "no token of the row is a target of the loss")
        pieces = self._overlong.fit(row, rendered.ids, rendered.trained, rendered.roles)
        if not pieces:
            detail = f"{len(rendered.ids):,} tokens, the context is {self._context:,}"
            return Rejected(row.origin, "overlong", detail, item.raw.values)
        for warning in rendered.warnings:
            self._warnings[warning] = self._warnings.get(warning, 0) + 1
        for piece in pieces:
            writer, ids, trained = self._writer(split), piece.ids, piece.trained
            if self._targets is not None:
                ids, trained = self._targets.add(split, row.record, rendered.ids, piece)
            part = self._renderer.part_of(row.record) if isinstance(self._renderer, SumRenderer) else 0
            writer.add(row, ids, trained, piece.window, part)
            if split == "train":
                self._roles.add(piece.roles, trained, first_trains=self._first_trains)
        self._account(row, split, count, key if source.role == split else None)
        return None

    def _too_long(self, row: Row) -> str | None:
        """The sentence about a row that is left out before it is rendered, being far too long; else None."""
        if isinstance(row.record, Text) and isinstance(self._objective, SftSection):
            return None  # it is a fault, whatever its length
        beyond = tokens_beyond(row.record, self._renderer.tokenizer.encode, self._context)
        if beyond is None or not self._overlong.leaves_out(row, beyond):
            return None
        characters = num_characters(row.record)
        return f"{characters:,} characters, more than {beyond - 1:,} tokens; the context is {self._context:,}"

    def _account(self, row: Row, split: Split, count: SourceCount, source_key: str | None) -> None:
        if split == "train":
            self._ledger.trained += 1
            count.trained += 1
            self._labels.add(row.record)
            self._weights.add(row.weight)
            return
        if split not in self._records:
            self._records[split] = self._stack.enter_context(NewFile(self._folder / f"{split}.jsonl"))
        self._records[split].write(to_line(row_to_json(row)))
        self._ledger.held_out += 1
        count.held_out += 1
        if split == "test":
            self._ledger.test_rows += 1
        else:
            self._ledger.validation_rows += 1
        if source_key is not None:
            self._splitter.remember(source_key, split)

    def _drops(self, item: ReadRow, key: str, split: Split, repeated: HeldOutSplit) -> bool:
        """Apply ``data.duplicates`` to a row whose input is in a held-out row."""
        if self._data.duplicates == "error":
            other = self._splitter.find(key, repeated, self._sources)
            raise DataError(
                f"{item.row.origin} ({split}) has the same input as {other} ({repeated})",
                where=str(item.row.origin),
                hint="remove one of them, or set data.duplicates to drop",
            )
        self._duplicates[split, repeated] = self._duplicates.get((split, repeated), 0) + 1
        return self._data.duplicates == "drop"

    @property
    def _trained_from(self) -> str:
        return ", ".join(source.name for source in self._sources if source.role == "train")

    def _writer(self, split: Split) -> StoreWriter:
        if split not in self._writers:
            self._writers[split] = self._stack.enter_context(
                StoreWriter(self._folder / split, first_trains=self._first_trains)
            )
        return self._writers[split]

    def _check(self, key: str) -> None:
        """Refuse data that cannot be trained on; the rejected rows of a refusal are kept for the user to read."""
        ledger = self._ledger
        if ledger.faults or sum(ledger.rejected.values()) == ledger.rows_in:
            kept = self._folder.parent / "rejected" / f"{key[:16]}.jsonl"
            try:
                self._faults.check(ledger, self._data.max_rejected, kept)
            except DataError:
                make_folders(kept.parent)
                disk().rename(self._folder / REJECTED, kept)
                raise
        self._overlong.check()
        if not ledger.trained:
            reasons = ", ".join(f"{reason} {rows:,}" for reason, rows in ledger.rejected.items())
            raise DataError(
                f"no row is left to train on: of {ledger.rows_in:,} rows {ledger.held_out:,} are held out and "
                f"{sum(ledger.rejected.values()):,} rejected{f' ({reasons})' if reasons else ''}",
                where=self._trained_from,
                hint=text_row_hint(self._sources) or "add training rows, or lower data.validation and data.test",
            )
        self._weights.check(", ".join(source.name for source in self._sources if source.role == "train"))

    def _close_ledger(self) -> None:
        ledger, store = self._ledger, TokenStore(self._folder / "train")
        ledger.tokens, ledger.trained_tokens = store.num_tokens, store.num_trained
        ledger.tokens_by_role = self._roles.to_json()
        ledger.windows, ledger.lengths = store.num_rows, summarise(store.lengths)
        ledger.notes = [
            *format_notes(self._sources, self._found, ledger.per_source),
            *duplicate_notes(self._duplicates, self._data.duplicates),
            *self._overlong.notes(),
            *warning_notes(self._warnings),
            *self._weights.notes(),
            *(self._targets.notes() if self._targets is not None else ()),
            *reject_notes(ledger, self._context),
            *self._rejected.notes(),
            *split_notes(ledger, self._sources, self._data),
        ]
        if not (ledger.balanced and ledger.balanced_tokens):
            raise RuntimeError(f"the ledger does not add up: {ledger}")
