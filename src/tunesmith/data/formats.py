"""Raw rows to records: one function a format, and the detection of a format from columns. Torch-free."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from tunesmith.data.bad_row import BadRow
from tunesmith.data.columns import (
    FIELDS,
    as_text,
    check_field_names,
    columns_of,
    near_column,
    odd_columns,
    shown_columns,
)
from tunesmith.data.message_rows import as_list, check_turns, openai_message, sharegpt_message, tool_schemas
from tunesmith.data.row_weights import FIELD, content_columns
from tunesmith.data.source_columns import read_columns, refuse_system
from tunesmith.data.tagged_rows import has_spans, has_words, spans, tagged
from tunesmith.errors import DataError
from tunesmith.json_values import json_kind, loads
from tunesmith.recipe.data import FormatName, SourceSection
from tunesmith.records import Chat, Labelled, Message, RawRow, Record, Text

Maker = Callable[[RawRow, SourceSection], Record]

_BESIDE_TEXT = frozenset(
    {
        "id",
        "uid",
        "idx",
        "index",
        "url",
        "uri",
        "source",
        "timestamp",
        "date",
        "meta",
        "metadata",
        "lang",
        "language",
        "title",
    }
)
_PREFERENCE = "preference"
_LONGEST_NAMED = 60
"""Characters of a column's name in an example of a recipe."""
_TURN_COLUMNS = ("messages", "conversations", "conversation")


def text(raw: RawRow, source: SourceSection) -> Text:
    """A document from ``text``; a txt file is one."""
    columns = read_columns("text", raw, source)
    refuse_system("text", source)
    content = as_text(columns["text"].read(raw.values), "`text`")
    if not content.strip():
        raise BadRow("empty_text", "`text` is empty")
    return Text(content)


def labelled(raw: RawRow, source: SourceSection) -> Labelled:
    """A text and its label from ``text`` and ``label``; a label that is a number is written as JSON writes it."""
    columns = read_columns("labelled", raw, source)
    refuse_system("labelled", source)
    content = as_text(columns["text"].read(raw.values), "`text`")
    label = _label(columns["label"].read(raw.values))
    if not content.strip():
        raise BadRow("empty_text", "`text` is empty")
    if not label.strip():
        raise BadRow("empty_answer", "`label` is empty")
    return Labelled(content, label)


def _label(value: Any) -> str:
    """A label as text; a list of labels as JSON writes it."""
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return json.dumps(list(value), ensure_ascii=False)
    return as_text(value, "`label`")


def prompt_completion(raw: RawRow, source: SourceSection) -> Chat:
    """A user turn from ``prompt`` and an assistant turn from ``completion``; ``system`` if there is one."""
    columns = read_columns("prompt-completion", raw, source)
    prompt = as_text(columns["prompt"].read(raw.values), "`prompt`")
    completion = as_text(columns["completion"].read(raw.values), "`completion`")
    if not prompt.strip():
        raise BadRow("empty_text", "`prompt` is empty")
    system = as_text(columns["system"].read(raw.values), "`system`")
    return _chat([Message("user", prompt), Message("assistant", completion)], source, system=system)


def alpaca(raw: RawRow, source: SourceSection) -> Chat:
    """Stanford Alpaca: the user says ``instruction`` and, after a line end, ``input`` if there is one.

    ``history`` holds earlier pairs of user and assistant. Where a row has no ``output`` but Self-Instruct's list
    ``instances``, the first instance gives input and output: each row counts once, further instances are not used.
    """
    columns = read_columns("alpaca", raw, source)
    values = raw.values
    instruction = as_text(columns["instruction"].read(values), "`instruction`")
    output, given = columns["output"].read(values), columns["input"].read(values)
    if "instances" in values and output is None:
        output, given = _first_instance(values["instances"])
    given_text = as_text(given, "`input`")
    question = "\n".join(part for part in (instruction, given_text) if part.strip())
    if not question:
        raise BadRow("empty_text", "`instruction` and `input` are empty")
    messages = _history(columns["history"].read(values))
    messages += [Message("user", question), Message("assistant", as_text(output, "`output`"))]
    return _chat(messages, source, system=as_text(columns["system"].read(values), "`system`"))


def messages(raw: RawRow, source: SourceSection) -> Chat:
    """OpenAI's ``messages`` with ``role`` and ``content``, and ``tools``; see ``message_rows.openai_message``."""
    columns = read_columns("messages", raw, source)
    turns = as_list(columns["messages"].read(raw.values), "`messages`")
    made = [openai_message(turn, number) for number, turn in enumerate(turns, 1)]
    return _chat(made, source, tools=columns["tools"].read(raw.values))


def sharegpt(raw: RawRow, source: SourceSection) -> Chat:
    """ShareGPT's ``conversations`` with ``from`` and ``value``, and ``tools``; see ``message_rows.sharegpt_message``.

    The column ``system`` is used where the conversation has no system turn of its own.
    """
    columns = read_columns("sharegpt", raw, source)
    turns = as_list(columns["conversations"].read(raw.values), "`conversations`")
    made = [sharegpt_message(turn, number) for number, turn in enumerate(turns, 1)]
    system = as_text(columns["system"].read(raw.values), "`system`")
    return _chat(made, source, system=system, tools=columns["tools"].read(raw.values))


FORMATS: dict[str, Maker] = {
    "text": text,
    "alpaca": alpaca,
    "messages": messages,
    "sharegpt": sharegpt,
    "prompt-completion": prompt_completion,
    "labelled": labelled,
    "tagged": tagged,
    "spans": spans,
}
"""Format to the function that makes its records.

Each raises BadRow for a fault of the row, a missing column included, and DataError for a fault of the recipe: an unknown
field, a broken template, a ``system`` where there is no conversation. ``check_columns`` turns a column that is missing
from the first row into a DataError.
"""


def check_columns(first: RawRow, name: str, source: SourceSection) -> None:
    """Hold the first row against the columns that a format needs.

    Raises:
        DataError: a column is missing; says which columns there are and how to name one.
    """
    for field, column in read_columns(name, first, source).items():
        try:
            column.read(first.values)
        except BadRow as fault:
            if fault.reason != "missing_column":
                continue
            wanted = column.names[0] if column.names else field
            raise DataError(
                f"{name} needs its field `{field}`: {fault.detail}",
                where=str(first.origin),
                hint=_missing_hint(field, wanted, first),
            ) from None
    weight = source.columns.get(FIELD)
    if weight is not None and weight not in first.values:
        raise DataError(
            f"the weights of the rows have no column `{weight}`; the columns are: {shown_columns(first.values)}",
            where=str(first.origin),
            hint=_missing_hint(FIELD, weight, first),
        )


def detect(first: Sequence[RawRow], where: str, columns: Mapping[str, str] | None = None) -> FormatName:
    """The format of most of the first rows.

    Rows with ``instances`` in place of ``output`` are alpaca (``note`` says what becomes of them). ``text`` beside
    columns that are not plainly about the document could be a question, a label or noise: that is not guessed.

    Args:
        first: some rows from the start of a file.
        where: the file, for messages.
        columns: as in the source: the names of its fields tell the format.

    Raises:
        DataError: the columns tell no format, several, or one of preferences.
    """
    if not first:
        raise DataError("there are no rows to detect a format from", where=where, hint="name the format in the source")
    weight = (columns or {}).get(FIELD)
    columns = content_columns(columns or {})
    check_field_names(columns)
    if weight is not None and not columns:  # the other columns tell the format, as they do where no weight is named
        first = [
            RawRow(row.origin, {key: value for key, value in row.values.items() if key != weight}) for row in first
        ]
    shape = _shape_of_most(first, columns)
    if shape == _PREFERENCE:
        raise DataError(
            f"the rows are preferences ({shown_columns(first[0].values)})",
            where=where,
            hint="that format is for preference objectives, which are not available yet; to train on the better answers, "
            "name a format and its columns",
        )
    if shape is None:
        _refuse_strange_turns(first[0], where, columns)
        raise DataError(
            f"the format cannot be told from the columns: {shown_columns(first[0].values)}",
            where=where,
            hint=odd_columns(where, first[0].values) or _naming_hint(first[0].values),
        )
    return cast(FormatName, shape)


def _refuse_strange_turns(first: RawRow, where: str, columns: Mapping[str, str]) -> None:
    """Refuse a column of turns that holds none, in words about what it holds.

    Raises:
        DataError: there is such a column, and the source names no others.
    """
    name = next((name for name in _TURN_COLUMNS if first.values.get(name) is not None), None)
    if name is None or columns:
        return
    try:
        turns = as_list(first.values[name], f"`{name}`")
    except BadRow:
        what = f"`{name}` holds {json_kind(first.values[name])}, and a conversation is a list of turns"
    else:
        item = turns[0] if turns else None
        what = f"the first turn in `{name}` is {json_kind(item)}"
        if isinstance(item, Mapping):
            what = f"the first turn in `{name}` has neither `role` nor `from`; it has: {shown_columns(item)}"
    raise DataError(
        what,
        where=where,
        hint='write turns as [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}], '
        "or name the format and its columns in the source",
    )


def note(name: str, first: RawRow) -> str:
    """What was found, as a sentence to say aloud after ``detect``."""
    columns = columns_of(name, ()).values()
    fields = [found for column in columns if (found := column.found_in(first.values)) is not None]
    unused = [column for column in first.values if column not in fields and column != "instances"]
    sentence = f"format {name}, from {', '.join(fields)}"
    if name == "alpaca" and "instances" in first.values and "output" not in first.values:
        sentence += ", instances (the first instance of each row is used)"
    return f"{sentence}; not used: {shown_columns(dict.fromkeys(unused))}" if unused else sentence


def _chat(turns: list[Message], source: SourceSection, *, system: str = "", tools: Any = None) -> Chat:
    """A checked conversation; the row's own system message wins over its column, that over the source's."""
    if not any(message.role == "system" for message in turns):
        chosen = system if system.strip() else source.system
        if chosen is not None and chosen.strip():
            turns = [Message("system", chosen), *turns]
    check_turns(turns)
    return Chat(tuple(turns), tool_schemas(tools))


def _first_instance(instances: Any) -> tuple[Any, Any]:
    items = as_list(instances, "`instances`")
    if not items:
        raise BadRow("wrong_type", "`instances` is empty: the task has no example")
    if not isinstance(items[0], Mapping) or "output" not in items[0]:
        raise BadRow("wrong_type", "the first of `instances` has no `output`")
    return items[0]["output"], items[0].get("input")


def _history(value: Any) -> list[Message]:
    turns: list[Message] = []
    for number, pair in enumerate(as_list(value, "`history`"), 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRow("wrong_type", f"item {number} of `history` is not a pair of user and assistant")
        turns.append(Message("user", as_text(pair[0], f"item {number} of `history`")))
        turns.append(Message("assistant", as_text(pair[1], f"item {number} of `history`")))
    return turns


def _shape_of_most(rows: Sequence[RawRow], columns: dict[str, str]) -> str | None:
    votes = Counter(_shape(row.values, columns) for row in rows)
    if votes[_PREFERENCE]:
        return _PREFERENCE
    shape, count = votes.most_common(1)[0]
    return shape if 2 * count > len(rows) else None


def _shape(values: Mapping[str, Any], columns: dict[str, str]) -> str | None:
    """The one format of a row, ``preference``, or None."""
    if columns:
        return _shape_by_fields(values, columns)
    if {"chosen", "rejected"} <= values.keys() or _is_judged(values):
        return _PREFERENCE
    turns = _turn_shape(values)
    if turns is not None:
        return turns
    if "instruction" in values and ("output" in values or isinstance(values.get("instances"), list)):
        return "alpaca"
    if {"prompt", "completion"} <= values.keys():
        return "prompt-completion"
    return _shape_of_text(values)


def _shape_of_text(values: Mapping[str, Any]) -> str | None:
    """The format of a text with its label, its tags, or nothing beside it."""
    if has_words(values):
        return "tagged"
    if has_spans(values):
        return "spans"
    if {"text", "label"} <= values.keys():
        return "labelled"
    return "text" if "text" in values and values.keys() - {"text"} <= _BESIDE_TEXT else None


def _is_judged(values: Mapping[str, Any]) -> bool:
    """An answer with a verdict, which must not be learnt as if it were good."""
    has_answer = bool({"messages", "conversations", "completion"} & values.keys())
    return has_answer and any(isinstance(values.get(key), bool) for key in ("label", "kto_tag"))


def _turn_shape(values: Mapping[str, Any]) -> str | None:
    for name in _TURN_COLUMNS:
        turns = values.get(name)
        if isinstance(turns, str):
            try:
                turns = loads(turns)
            except (ValueError, RecursionError):
                continue
        if not isinstance(turns, list | tuple):
            continue
        keys = turns[0].keys() if turns and isinstance(turns[0], Mapping) else set()
        if "role" in keys or "from" in keys:
            return "messages" if "role" in keys else "sharegpt"
        if not turns:
            return "messages" if name == "messages" else "sharegpt"
    return None


def _shape_by_fields(values: Mapping[str, Any], columns: dict[str, str]) -> str | None:
    """The format that has every field named in the source, and whose other columns the row has.

    Where no format finds its columns but one alone has such fields, it is that one: ``check_columns`` says what is missing.
    """
    by_name = [name for name, fields in FIELDS.items() if columns.keys() <= {field.name for field in fields}]
    given = tuple(columns.items())
    fitting = [name for name in by_name if all(column.has(values) for column in columns_of(name, given).values())]
    if len(fitting) == 2 and fitting[0] == "text":  # what is beside the text tells the format
        return fitting[1]
    if not fitting and len(by_name) == 1:
        return by_name[0]
    turns = _turn_shape(values)
    if len(fitting) > 1 and turns in fitting:
        return turns
    return fitting[0] if len(fitting) == 1 else None


def _missing_hint(field: str, wanted: str, first: RawRow) -> str:
    outer = wanted.partition(".")[0]
    if outer != wanted and isinstance(first.values.get(outer), Mapping):
        return f"`{outer}` holds an object, and values inside one are no columns: write rows with a flat object each"
    if (odd := odd_columns(first.origin.file, first.values)) is not None:
        return odd
    close = near_column(wanted, first.values)
    hint = f"did you mean `{close}`? " if close else ""
    return f"{hint}Name the column in the source: columns: {{{field}: {close or 'COLUMN'}}}, or another format"


def _naming_hint(values: Mapping[str, Any]) -> str:
    names = list(values)
    is_usual = len(names) > 1 and all(len(name) <= _LONGEST_NAMED for name in names[:2])
    asked, answer = names[:2] if is_usual else ("COLUMN", "COLUMN")
    example = f"format: prompt-completion, columns: {{prompt: {asked}, completion: {answer}}}"
    if "text" in names:
        example = f"format: text, which leaves the other columns out, or {example}"
    fields = "; ".join(
        f"{name} ({', '.join(field.name for field in FIELDS[name] if field.required)})" for name in FORMATS
    )
    return f"name the format and its columns in the source, for example {example}. Formats: {fields}"
