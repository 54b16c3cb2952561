"""Rows whose words have tags: lists of words and tags, or a text and spans of its characters. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from tunesmith.data.bad_row import BadRow
from tunesmith.data.columns import as_text, shown_columns
from tunesmith.data.message_rows import as_list
from tunesmith.data.source_columns import read_columns, refuse_system
from tunesmith.data.words import Span, words_of
from tunesmith.recipe.data import SourceSection
from tunesmith.records import RawRow, Tagged
from tunesmith.tags import OUTSIDE

_LABEL_KEYS = ("label", "type", "tag")
_Named = tuple[int, int, str]


def tagged(raw: RawRow, source: SourceSection) -> Tagged:
    """Words and tags from ``tokens`` and ``tags``, lists of the same length; the text is the words with a space between.

    A tag that is a number is written as JSON writes it: its name is looked up in the recipe's labels later.
    """
    columns = read_columns("tagged", raw, source)
    refuse_system("tagged", source)
    given = [as_text(word, "a word of `tokens`") for word in as_list(columns["tokens"].read(raw.values), "`tokens`")]
    tags = [as_text(tag, "an item of `tags`").strip() for tag in as_list(columns["tags"].read(raw.values), "`tags`")]
    if not given:
        raise BadRow("empty_text", "`tokens` is empty")
    if len(given) != len(tags):
        raise BadRow("wrong_tags", f"{len(given)} words have {len(tags)} tags")
    words: list[Span] = []
    end = 0
    for number, (word, tag) in enumerate(zip(given, tags, strict=True), 1):
        if not word.strip():
            raise BadRow("wrong_tags", f"word {number} is empty")
        if not tag:
            raise BadRow("empty_answer", f"word {number} ({word}) has no tag")
        words.append((end, end + len(word)))
        end += len(word) + 1
    return Tagged(" ".join(given), tuple(words), tuple(tags))


def spans(raw: RawRow, source: SourceSection) -> Tagged:
    """A text from ``text``, and in ``spans`` a list of ``{"start", "end", "label"}``, characters of it, the end not included.

    Words are stretches of letters and digits and every other sign by itself, cut where a span begins or ends; the first of a
    span becomes ``B-LABEL``, the others ``I-LABEL``, all others ``O``.
    """
    columns = read_columns("spans", raw, source)
    refuse_system("spans", source)
    text = as_text(columns["text"].read(raw.values), "`text`")
    if not text.strip():
        raise BadRow("empty_text", "`text` is empty")
    items = as_list(columns["spans"].read(raw.values), "`spans`")
    found = sorted(_span(item, number, text) for number, item in enumerate(items, 1))
    for (_, end, one), (start, _, other) in pairwise(found):
        if start < end:
            raise BadRow(
                "wrong_tags", f"the spans of {one} and {other} overlap at character {start}: a word has one tag"
            )
    words = words_of(text, (border for start, end, _ in found for border in (start, end)))
    return Tagged(text, tuple(words), tuple(_tags(words, found)))


def _tags(words: list[Span], found: list[_Named]) -> list[str]:
    """Tags of words that no span's border crosses."""
    tags = [OUTSIDE] * len(words)
    at = 0
    for start, end, label in found:
        while at < len(words) and words[at][1] <= start:
            at += 1
        first = at
        while at < len(words) and words[at][0] < end:
            tags[at] = f"{'B' if at == first else 'I'}-{label}"
            at += 1
        if at == first:
            raise BadRow("wrong_tags", f"the span of {label} at character {start} covers no word")
    return tags


def _span(item: Any, number: int, text: str) -> _Named:
    if not isinstance(item, Mapping):
        raise BadRow("wrong_tags", f"span {number} is not an object with `start`, `end` and `label`")
    label = next((item[key] for key in _LABEL_KEYS if key in item), None)
    start, end = item.get("start"), item.get("end")
    if not isinstance(start, int) or not isinstance(end, int) or label is None:
        keys = shown_columns(item)
        raise BadRow("wrong_tags", f"span {number} needs `start`, `end` (whole numbers) and `label`; it has: {keys}")
    name = as_text(label, f"the label of span {number}").strip()
    if not name:
        raise BadRow("empty_answer", f"span {number} has an empty label")
    if not 0 <= start < end <= len(text):
        raise BadRow("wrong_tags", f"span {number} runs from {start} to {end}, the text has {len(text)} characters")
    return start, end, name


def has_words(values: Mapping[str, Any]) -> bool:
    """Whether a row has lists of words and of tags under their usual names."""
    return any(isinstance(values.get(key), list | tuple) for key in ("tokens", "words")) and any(
        isinstance(values.get(key), list | tuple) for key in ("tags", "ner_tags")
    )


def has_spans(values: Mapping[str, Any]) -> bool:
    """Whether a row has a text and spans of it under their usual names."""
    return "text" in values and any(
        isinstance(found := values.get(key), list | tuple)
        and all(isinstance(item, Mapping) and {"start", "end"} <= item.keys() for item in found)
        for key in ("spans", "entities")
    )
