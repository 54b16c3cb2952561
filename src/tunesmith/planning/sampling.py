"""Rows and tokens of an epoch, estimated from a seeded sample in well under a second. Torch-free.

Sampling in two phases (Cochran, Sampling Techniques, §12.6): up to 2,000 rows are read and their characters counted, which is quick;
some of them are rendered to tokens, and a regression on the characters carries the result over to all. Each file is a stratum:
its number of rows times its mean. The 95 % interval joins the residuals of the rendered rows, the spread of characters over the
rows read, row counts that are estimates, and the split by hash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import NamedTuple, Protocol

import numpy as np

from tunesmith.data.bad_row import BadRow
from tunesmith.data.formats import FORMATS, check_columns, detect
from tunesmith.data.length_bound import tokens_beyond
from tunesmith.data.notes import document_notes
from tunesmith.data.packing import windows
from tunesmith.data.reading import DETECTION_ROWS, resolve
from tunesmith.data.row_weights import row_weight
from tunesmith.errors import DataError, RecipeError
from tunesmith.planning.row_sample import FileSample
from tunesmith.planning.settings import Counts
from tunesmith.planning.source_sample import MIN_ROWS, sample_source
from tunesmith.recipe.data import SourceSection, SplitSection
from tunesmith.recipe.prompts import virtual_tokens_of
from tunesmith.recipe.root import Recipe
from tunesmith.records import Chat, Labelled, RawRow, Record, Rejected, Text

_RENDERED_ROWS = 320
_TEXT_BUDGET = 240_000
"""Characters rendered at most, beyond the first few rows of each file: what keeps the estimate quick on long rows."""
_SLICE = 20_000
"""Characters of a long plain document that are rendered; its tokens follow by proportion."""
_NORMAL_95 = 1.96


class Renders(Protocol):
    """What the estimate needs of a renderer."""

    @property
    def tokenizer(self) -> Encoder:
        """Tells how long a text is that is not worth rendering."""
        ...

    def render(self, record: Record) -> Rendering:
        """Token ids and trained flags of a record; raises BadRow."""
        ...


class Encoder(Protocol):
    """Text to token ids."""

    def encode(self, text: str) -> Sequence[int]:
        """Token ids of a text."""
        ...


class Rendering(Protocol):
    """Token ids and whether each is a target."""

    @property
    def ids(self) -> Sequence[int]:
        """Token ids."""
        ...

    @property
    def trained(self) -> Sequence[bool]:
        """One flag a token."""
        ...

    @property
    def text(self) -> str:
        """What was tokenised."""
        ...


@dataclass
class _Tally:
    """One file's sample: characters of the rows read, and of those rendered characters and what they became; rejects are zeros."""

    characters: list[int] = field(default_factory=list)
    rendered: list[int] = field(default_factory=list)
    examples: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    longest: int = 0
    overlong: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: Rejected | None = None

    def reject(self, rejected: Rejected) -> None:
        self.reasons[rejected.reason] += 1
        self.first = self.first or rejected

    def add(self, characters: int, pieces: Sequence[tuple[int, int]]) -> None:
        self.rendered.append(characters)
        self.examples.append(len(pieces))
        self.tokens.append(sum(length for length, _ in pieces))
        self.trained.append(sum(trained for _, trained in pieces))
        self.squares.append(float(sum(length * length for length, _ in pieces)))
        self.longest = max([self.longest, *(length for length, _ in pieces)])

    def fit(self, values: Sequence[float]) -> _Fit:
        """Mean of a quantity over the rows read, from the rows rendered."""
        return _regression(self.characters, self.rendered, values)


@dataclass
class _Total:
    """Estimates summed over files."""

    rows: float = 0.0
    tokens: float = 0.0
    trained: float = 0.0
    squares: float = 0.0
    stored: float = 0.0
    variance: float = 0.0


def estimate_counts(recipe: Recipe, renderer: Renders, context: int) -> Counts:
    """Estimate an epoch of the recipe's training rows.

    Args:
        recipe: its ``data`` section and seed count.
        renderer: makes tokens of records.
        context: most tokens of an example.

    Raises:
        DataError: a file is missing, unreadable or of an unknown format, or no sampled row can be trained on.
    """
    generator = np.random.default_rng(recipe.seed)
    sources = [source for source in resolve(recipe) if source.role == "train"]
    sizes = {path: path.stat().st_size for source in sources for path, _ in source.files}
    all_bytes = sum(sizes.values())
    kept_share = 1.0 - _held_out(recipe)
    total, merged, notes = _Total(), _Tally(), list[str]()
    for source in sources:
        sampled = sample_source(source, sizes, all_bytes, generator)
        notes += sampled.notes
        parts = [
            (sample, _rendered(sample, source.section, shown, renderer, recipe, context, share))
            for shown, sample, share in sampled.files
        ]
        if len(sources) == len(source.files) == 1 and parts[0][0].num_rows == 1:
            # A single row is not cut: it trains whole, or nothing does.
            kept_share = 1.0
            notes += document_notes(("validation", "test"), sources, recipe.data)
        _add_source(total, parts, source.section, sampled.scale, kept_share)
        for _, tally in parts:
            _merge(merged, tally)
    found = _counts(total, merged, notes, recipe, context)
    return replace(found, labels=len(getattr(renderer, "seen", ())))


def _held_out(recipe: Recipe) -> float:
    """Share of the rows that the splits by fraction take."""
    splits = (recipe.data.validation, recipe.data.test)
    return sum(split.fraction for split in splits if isinstance(split, SplitSection))


def _rendered(
    sample: FileSample,
    section: SourceSection,
    shown: str,
    renderer: Renders,
    recipe: Recipe,
    context: int,
    share: float,
) -> _Tally:
    """Count the characters of all sampled rows of a file and render some of them."""
    tally = _Tally()
    name = _format(sample, section, shown)
    records = [_record(row, section, name, tally) for row in sample.rows]
    tally.characters = [0 if record is None else _characters(record) for record in records]
    wanted = min(len(records), max(MIN_ROWS, round(_RENDERED_ROWS * share)))
    budget = _TEXT_BUDGET * share
    for number in range(wanted):
        position = number * len(records) // wanted
        record, length = records[position], tally.characters[position]
        if budget < 0 and number >= MIN_ROWS:
            break
        if record is None:
            tally.add(0, [])
            continue
        if not isinstance(record, Text) and tokens_beyond(record, renderer.tokenizer.encode, context) is not None:
            tally.overlong += 1
            tally.add(length, [])
            continue
        short, factor = _shortened(record)
        try:
            rendering = renderer.render(short)
        except BadRow as fault:
            tally.reject(Rejected(sample.rows[position].origin, fault.reason, fault.detail))
            tally.add(length, [])
            continue
        budget -= len(rendering.text)
        tally.add(length, _pieces(rendering, factor, record, recipe, context, tally))
    return tally


def _format(sample: FileSample, section: SourceSection, shown: str) -> str:
    raws = [row for row in sample.rows if isinstance(row, RawRow)]
    if not raws:
        return section.format
    found = detect(raws[:DETECTION_ROWS], shown, section.columns) if section.format == "auto" else section.format
    check_columns(raws[0], found, section)
    return found


def _record(row: RawRow | Rejected, section: SourceSection, name: str, tally: _Tally) -> Record | None:
    """The record of a row; None, with the reason counted, for a row that would be rejected."""
    if isinstance(row, Rejected):
        tally.reject(row)
        return None
    try:
        record = FORMATS[name](row, section)
        row_weight(row.values, section.columns)
    except BadRow as fault:
        tally.reject(Rejected(row.origin, fault.reason, fault.detail))
        return None
    return record


def _characters(record: Record) -> int:
    if isinstance(record, Chat):
        return sum(len(message.content) for message in record.messages)
    return len(record.text) + (len(record.label) if isinstance(record, Labelled) else 0)


class _Fit(NamedTuple):
    """A mean over the rows read; the variance that rendering only some adds, and that of reading only some, before the share read."""

    mean: float
    rendering: float
    reading: float


def _regression(everywhere: Sequence[float], here: Sequence[float], values: Sequence[float]) -> _Fit:
    """Carry the mean of a quantity from the rendered rows to all rows read.

    Args:
        everywhere: characters of all rows read.
        here: characters of the rendered ones.
        values: what these became.
    """
    x, y, all_x = (np.asarray(item, dtype=np.float64) for item in (here, values, everywhere))
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 0 else 0.0
    residual = y - y.mean() - slope * (x - x.mean())
    left = float((residual**2).sum()) / (len(y) - 2) if len(y) > 2 else float(y.mean()) ** 2
    explained = slope**2 * float(np.var(all_x, ddof=1)) if len(all_x) > 1 else float(y.mean()) ** 2
    return _Fit(
        max(0.0, float(y.mean() + slope * (all_x.mean() - x.mean()))),
        left / len(y) * (1.0 - len(y) / len(all_x)),
        (explained + left) / len(all_x),
    )


def _shortened(record: Record) -> tuple[Record, float]:
    """A long plain document's middle, and how much longer the whole is."""
    if not isinstance(record, Text) or len(record.text) <= _SLICE:
        return record, 1.0
    start = (len(record.text) - _SLICE) // 2
    return Text(record.text[start : start + _SLICE]), len(record.text) / _SLICE


def _pieces(
    rendering: Rendering, factor: float, record: Record, recipe: Recipe, context: int, tally: _Tally
) -> list[tuple[int, int]]:
    """Length and trained tokens of each example that a row becomes under the policy for overlong rows."""
    length = round(len(rendering.ids) * factor)
    policy = recipe.data.overlong or ("split" if isinstance(record, Text) else "error")
    if length <= context:
        spans = [(0, length)]
    elif policy == "split" and isinstance(record, Text):
        spans = windows(length, context)
    else:
        tally.overlong += 1
        spans = [(0, context)] if policy == "truncate" else []
    # The first token of an example has nothing before it and is never a target.
    if factor > 1.0:
        share = sum(rendering.trained) / max(1, len(rendering.trained))
        return [(end - start, round((end - start - 1) * share)) for start, end in spans]
    return [(end - start, sum(rendering.trained[start + 1 : end])) for start, end in spans]


def _add_source(
    total: _Total, parts: Sequence[tuple[FileSample, _Tally]], section: SourceSection, scale: float, kept_share: float
) -> None:
    rows = scale * sum(sample.num_rows for sample, _ in parts)
    limited = min(1.0, section.limit / rows) if section.limit is not None and rows else 1.0
    for sample, tally in parts:
        if not tally.tokens:
            continue
        every = sample.num_rows * scale * limited
        seen = every * kept_share * section.weight
        fit = tally.fit(tally.tokens)
        total.rows += seen * tally.fit(tally.examples).mean
        total.tokens += seen * fit.mean
        total.trained += seen * tally.fit(tally.trained).mean
        total.squares += seen * tally.fit(tally.squares).mean
        total.stored += every * fit.mean
        unread = max(0.0, 1.0 - len(tally.characters) / max(every, 1.0))
        total.variance += seen**2 * (fit.rendering + fit.reading * unread) + (seen * fit.mean * sample.row_spread) ** 2
        by_hash = every * kept_share * (1.0 - kept_share) * float(np.mean(np.square(tally.tokens)))
        total.variance += section.weight**2 * by_hash


def _merge(into: _Tally, tally: _Tally) -> None:
    into.characters += tally.characters
    into.tokens += tally.tokens
    into.reasons += tally.reasons
    into.first = into.first or tally.first
    into.overlong += tally.overlong
    into.longest = max(into.longest, tally.longest)


def _counts(total: _Total, merged: _Tally, notes: list[str], recipe: Recipe, context: int) -> Counts:
    sampled, rendered = len(merged.characters), len(merged.tokens)
    reasons = ", ".join(f"{reason} {count}" for reason, count in merged.reasons.most_common(4))
    if total.tokens <= 0:
        first = merged.first
        if first is None and merged.overlong and (taken := virtual_tokens_of(recipe.adapter)):
            raise RecipeError(
                f"no row fits: {merged.overlong:,} of {sampled:,} sampled rows are longer than the {context:,} tokens that "
                f"{taken:,} virtual tokens leave of the context",
                where=recipe.where("adapter.num_tokens"),
                hint="give fewer `num_tokens` (5 to 100 are usual), or shorten the rows",
            )
        raise DataError(
            f"none of {sampled:,} sampled rows can be trained on"
            + (
                f": {reasons}; for one: {first.detail}"
                if first
                else f"; {merged.overlong:,} are longer than the context of {context:,} tokens"
            ),
            where=str(first.origin) if first else "data.train",
            hint="`tunesmith data check RECIPE` shows every rejected row with its reason",
        )
    if reasons:
        notes.append(f"of {sampled:,} sampled rows {sum(merged.reasons.values()):,} would be rejected: {reasons}")
    policy = recipe.data.overlong
    if merged.overlong:
        fate = {"drop": "would be dropped", "truncate": "would be truncated"}.get(
            policy or "", "are refused: see `data.overlong`"
        )
        notes.append(f"of {rendered:,} rendered rows {merged.overlong:,} are longer than {context:,} tokens and {fate}")
    half = _NORMAL_95 * sqrt(total.variance)
    tokens = round(total.tokens)
    return Counts(
        rows=max(1, round(total.rows)),
        tokens=tokens,
        trained_tokens=round(total.trained),
        exact=False,
        low=max(0, round(total.tokens - half)),
        high=round(total.tokens + half),
        longest=merged.longest,
        attended=total.squares / total.tokens,
        stored_tokens=round(total.stored),
        sampled=sampled,
        notes=tuple(notes),
    )
