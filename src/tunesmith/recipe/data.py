"""Where examples come from and how they are split."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tunesmith.recipe.section import Section

FormatName = Literal[
    "auto", "text", "alpaca", "messages", "sharegpt", "prompt-completion", "labelled", "tagged", "spans"
]
TextRow = Literal["file", "paragraph", "line", "conll"]
OverlongPolicy = Literal["error", "drop", "split", "truncate"]
DuplicatePolicy = Literal["drop", "error", "keep"]


class SourceSection(Section):
    """Files of one format. A bare string is its ``path``."""

    path: str | list[str]
    """File, folder or glob, relative to the recipe: jsonl, json, csv, tsv, parquet, txt, conll; also .gz and .zst."""
    format: FormatName = "auto"
    """Shape of the rows; ``auto`` detects it from the columns and says what it found."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Field of the format -> column name, or a template such as ``"{title}\\n{body}"``. The field ``weight``, which every
    format has, is what the row's tokens count in the training loss, 0 to 1,000,000; none is read unless it is named here."""
    row: TextRow = "file"
    """What one row of a ``.txt`` file is; splits hold out whole rows. Blank lines part paragraphs and are no rows. ``conll`` reads
    tagged words, one a line with its tag in the last column, as a ``.conll`` file has them."""
    header: bool = True
    """Whether the first line of a ``.csv`` or ``.tsv`` file names its columns; else they are ``column_1``, ``column_2`` …"""
    weight: float = Field(default=1.0, gt=0.0)
    """How often each row is seen in an epoch: 2 is twice, 0.5 is every second row, another half each epoch."""
    limit: int | None = Field(default=None, gt=0)
    """Read at most this many rows."""
    system: str | None = None
    """System message put before conversations that have none."""


class SplitSection(Section):
    """A held-out share, chosen by hash so that it is stable when the data grows. A bare number is its ``fraction``."""

    fraction: float = Field(ge=0.0, lt=1.0)
    """Share of the training rows, 0 to 1."""
    group_by: str | None = None
    """Column whose value is hashed instead of the input: rows that share it stay on one side."""


def _as_source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _as_split(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return {"fraction": float(value)}
    return [value] if isinstance(value, str) or (isinstance(value, dict) and "path" in value) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


SourceField = Annotated[SourceSection, BeforeValidator(_as_source, json_schema_input_type=str | SourceSection)]
SourceList = Annotated[
    list[SourceField],
    BeforeValidator(_as_list, json_schema_input_type=SourceField | list[SourceField]),
    Field(min_length=1),
]
SplitField = Annotated[
    SplitSection | list[SourceField],
    BeforeValidator(_as_split, json_schema_input_type=float | SplitSection | SourceField | list[SourceField]),
]


class DataSection(Section):
    """Training sources, splits, and what happens to rows that do not fit."""

    train: SourceList
    """Sources to learn from; one string or mapping is a list of one."""
    validation: SplitField = SplitSection(fraction=0.05)
    """Stops and selects: a fraction of the training rows, or sources."""
    test: SplitField = SplitSection(fraction=0.1)
    """The verdict: a fraction of the training rows, or sources. Never used to stop or select."""
    overlong: OverlongPolicy | None = None
    """Examples longer than the context; unset means ``error`` for conversations and ``split`` for plain documents."""
    max_rejected: float = Field(default=0.01, ge=0.0, le=1.0)
    """Share of faulty rows that is tolerated; above it the run does not start."""
    duplicates: DuplicatePolicy = "drop"
    """Training rows whose input is also in a held-out source: ``drop`` counts them, ``error`` refuses, ``keep`` says so."""
