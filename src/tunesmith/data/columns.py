"""Fields of the formats and the columns they are read from. Torch-free."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from tunesmith.data.bad_row import BadRow
from tunesmith.data.layout import TABLES
from tunesmith.errors import DataError

_TEMPLATE_PART = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]")
_LONGEST_COMPARED = 100
_PLAIN_NAME = re.compile(r"\w[\w -]*")
_NUMBER = re.compile(r"\s*[-+]?\d+([.,]\d+)?\s*")
_SHOWN_COLUMNS = 16
_SHOWN_CHARACTERS = 40
_LONGEST_NAME = 60
_MOST_COLUMNS = 64


@dataclass(frozen=True)
class Field:
    """A field of a format: the columns it is looked for in, in order, and whether a row must have one.

    ``unless`` names a column that stands in for it.
    """

    name: str
    columns: tuple[str, ...]
    required: bool = True
    unless: str | None = None


FIELDS: dict[str, tuple[Field, ...]] = {
    "text": (Field("text", ("text",)),),
    "alpaca": (
        Field("instruction", ("instruction",)),
        Field("input", ("input",), required=False),
        Field("output", ("output",), unless="instances"),
        Field("system", ("system",), required=False),
        Field("history", ("history",), required=False),
    ),
    "messages": (
        Field("messages", ("messages", "conversations", "conversation")),
        Field("tools", ("tools", "functions"), required=False),
    ),
    "sharegpt": (
        Field("conversations", ("conversations", "conversation", "messages")),
        Field("tools", ("tools",), required=False),
        Field("system", ("system",), required=False),
    ),
    "prompt-completion": (
        Field("prompt", ("prompt",)),
        Field("completion", ("completion",)),
        Field("system", ("system",), required=False),
    ),
    "labelled": (Field("text", ("text",)), Field("label", ("label",))),
    "tagged": (Field("tokens", ("tokens", "words")), Field("tags", ("tags", "ner_tags"))),
    "spans": (Field("text", ("text",)), Field("spans", ("spans", "entities"))),
}
"""Format to its fields."""


@dataclass(frozen=True)
class Column:
    """Where one field is read from: one of ``names``, or a template of literals and columns."""

    field: Field
    names: tuple[str, ...]
    template: tuple[tuple[str, bool], ...] | None
    is_named: bool

    def read(self, values: Mapping[str, Any]) -> Any:
        """The field's value in a row; None where an optional field is absent.

        Raises:
            BadRow: ``missing_column``, with the columns there are.
        """
        if self.template is not None:
            return "".join(_part(values, text, is_column) for text, is_column in self.template)
        name = self.found_in(values)
        if name is not None:
            return values[name]
        if self.is_named or (self.field.required and (self.field.unless is None or self.field.unless not in values)):
            raise BadRow("missing_column", _lacks(self.names[0], values))
        return None

    def found_in(self, values: Mapping[str, Any]) -> str | None:
        """The column that the field is read from: the first that is there and not null, else the first that is there."""
        there = [name for name in self.names if name in values]
        return next((name for name in there if values[name] is not None), there[0] if there else None)

    def has(self, values: Mapping[str, Any]) -> bool:
        """Whether a row has what this field needs."""
        try:
            self.read(values)
        except BadRow as fault:
            return fault.reason != "missing_column"
        return True


@lru_cache(maxsize=64)
def columns_of(name: str, given: tuple[tuple[str, str], ...]) -> dict[str, Column]:
    """The column of each field of a format.

    Args:
        name: of the format.
        given: pairs of field and column or template, as ``SourceSection.columns`` has them.

    Raises:
        DataError: a field the format does not have, or a broken template.
    """
    fields = FIELDS[name]
    named = dict(given)
    for key in named:
        _check_field(key, name)
    return {field.name: _column(field, named.get(field.name)) for field in fields}


def check_field_names(names: Iterable[str]) -> None:
    """Raise DataError for a name that is a field of no format."""
    known = sorted({field.name for fields in FIELDS.values() for field in fields} | {"weight"})
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean `{close[0]}`? " if close else ""
            raise DataError(
                f"no format has a field `{name}`",
                where=f"columns.{name}",
                hint=f"{hint}columns are given as FIELD: COLUMN; fields: {', '.join(known)}",
            )


def _check_field(key: str, name: str) -> None:
    known = [field.name for field in FIELDS[name]]
    if key in known:
        return
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    others = [other for other in FIELDS if key in (field.name for field in FIELDS[other])]
    hint = f"did you mean `{close[0]}`? " if close else ""
    hint += f"fields of {name}: {', '.join(known)}"
    if others:
        hint += f"; `{key}` belongs to {', '.join(others)}"
    raise DataError(f"the format {name} has no field `{key}`", where=f"columns.{key}", hint=hint)


def _column(field: Field, given: str | None) -> Column:
    if given is None:
        return Column(field, field.columns, None, False)
    if "{" in given or "}" in given:
        return Column(field, (), parse_template(given, f"columns.{field.name}"), True)
    return Column(field, (given,), None, True)


def parse_template(template: str, where: str) -> tuple[tuple[str, bool], ...]:
    """Parts of a template such as ``"{title}: {body}"``: pairs of text and whether it names a column.

    Doubled braces are braces. A name in braces is letters, digits, ``_``, ``-`` and spaces: no attributes, indices,
    conversions or widths.

    Raises:
        DataError: a lone brace or another thing in braces, or no column at all.
    """
    parts: list[tuple[str, bool]] = []
    at = 0
    for match in _TEMPLATE_PART.finditer(template):
        parts.append((template[at : match.start()], False))
        at = match.end()
        token = match.group()
        if token in ("{{", "}}"):
            parts.append((token[0], False))
        elif len(token) > 2 and _PLAIN_NAME.fullmatch(token[1:-1]):
            parts.append((token[1:-1], True))
        else:
            raise DataError(
                f"`{token}` in the template {template!r} is not a column in braces",
                where=where,
                hint="write {column} with a plain name; a brace itself is written twice",
            )
    parts.append((template[at:], False))
    if not any(is_column for _, is_column in parts):
        raise DataError(
            f"the template {template!r} names no column", where=where, hint="write a column's name as {column}"
        )
    return tuple((text, is_column) for text, is_column in parts if text)


def _part(values: Mapping[str, Any], text: str, is_column: bool) -> str:
    if not is_column:
        return text
    if text not in values:
        raise BadRow("missing_column", _lacks(text, values))
    return as_text(values[text], f"column `{text}`")


def as_text(value: Any, what: str) -> str:
    """Text of a value: text itself, a number or boolean as JSON writes it, "" for a missing one.

    Raises:
        BadRow: ``wrong_type`` for lists and objects.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    kind = (
        "an object"
        if isinstance(value, Mapping)
        else "a list"
        if isinstance(value, list | tuple)
        else f"a {type(value).__name__}"
    )
    if isinstance(value, Mapping):
        kind += f" ({shown_columns(value)})"
    raise BadRow("wrong_type", f"{what} is {kind}, text is expected")


def _lacks(name: str, values: Mapping[str, Any]) -> str:
    return f"no column `{name}`; the columns are: {shown_columns(values)}"


def shown_columns(values: Mapping[str, Any]) -> str:
    """Names of a row's columns for a message; of many or long ones the beginning."""
    names = [
        name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}…"
        for name in islice(values, _SHOWN_COLUMNS)
    ]
    more = f" and {len(values) - len(names):,} more" if len(values) > len(names) else ""
    return f"{', '.join(names)}{more}" if names else "none"


def odd_columns(file: str, values: Mapping[str, Any]) -> str | None:
    """What to do with a file whose columns are none that could be named, as a hint; None where they look usual.

    Args:
        file: its name.
        values: its first row.
    """
    is_table = file.lower().removesuffix(".gz").removesuffix(".zst").endswith(TABLES)
    if is_table and any(_NUMBER.fullmatch(name) or len(name) > _LONGEST_NAME for name in values):
        return "the first line looks like a row: set `header: false` in the source, then the columns are column_1, column_2 …"
    if values and all(isinstance(value, Mapping) for value in values.values()):
        inner = shown_columns(next(iter(values.values())))
        return (
            f"every column holds an object (the first with {inner}), and values inside one are no columns: "
            "write JSON lines, a flat object for each row"
        )
    if len(values) > _MOST_COLUMNS:
        return f"the file is one object, which is one row of {len(values):,} columns: write an array, an object for each row"
    return None


def near_column(name: str, values: Mapping[str, Any]) -> str | None:
    """A column whose name is close to ``name``, regardless of case."""
    folded = {key.casefold(): key for key in values if len(key) <= _LONGEST_COMPARED}
    if len(name) > _LONGEST_COMPARED:
        return None
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None
