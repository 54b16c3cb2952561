"""Tagged words from lists, spans and CoNLL files: every format gives the same record, and each fault its sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.bad_row import BadRow
from tunesmith.data.formats import FORMATS, check_columns, detect
from tunesmith.data.layout import Layout
from tunesmith.data.row_codec import record_from_json, record_to_json
from tunesmith.data.sources import read_rows
from tunesmith.data.words import tokens_of_words, words_of
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSection
from tunesmith.records import Origin, RawRow, Rejected, Tagged

WANTED = Tagged("Ask Ida Rye .", ((0, 3), (4, 7), (8, 11), (12, 13)), ("O", "B-PER", "I-PER", "O"))


def make(name: str, values: dict[str, Any], **source: Any) -> Any:
    return FORMATS[name](RawRow(Origin("f", 1), values), SourceSection(path="f", **source))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tagged", {"tokens": ["Ask", "Ida", "Rye", "."], "ner_tags": ["O", "B-PER", "I-PER", "O"]}),
        ("tagged", {"words": '["Ask", "Ida", "Rye", "."]', "tags": '["O", "B-PER", "I-PER", "O"]'}),
        ("spans", {"text": "Ask Ida Rye .", "spans": [{"start": 4, "end": 11, "label": "PER"}]}),
        ("spans", {"text": "Ask Ida Rye .", "entities": [{"start": 4, "end": 11, "type": "PER"}]}),
    ],
)
def test_formats_give_the_same_record(name: str, values: dict[str, Any]) -> None:
    assert make(name, values) == WANTED
    assert record_from_json(record_to_json(WANTED)) == WANTED


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"id": 1, "tokens": ["a"], "ner_tags": [0], "pos_tags": [1]}, "tagged"),
        ({"tokens": ["a"], "tags": ["O"]}, "tagged"),
        ({"text": "a", "spans": []}, "spans"),
        ({"text": "a", "entities": [{"start": 0, "end": 1, "label": "X"}], "label": "b"}, "spans"),
        ({"text": "a", "tags": ["x"], "label": "b"}, "labelled"),
    ],
)
def test_formats_are_told_from_columns(values: dict[str, Any], expected: str) -> None:
    assert detect([RawRow(Origin("f", 1), values)], "f") == expected


def test_columns_of_other_names() -> None:
    columns = {"tokens": "forms", "tags": "chunks"}
    values = {"forms": ["a"], "chunks": ["B-NP"]}
    assert detect([RawRow(Origin("f", 1), values)], "f", columns) == "tagged"
    assert make("tagged", values, columns=columns) == Tagged("a", ((0, 1),), ("B-NP",))
    with pytest.raises(DataError, match="needs its field `tags`"):
        check_columns(RawRow(Origin("f", 1), {"tokens": ["a"]}), "tagged", SourceSection(path="f"))


def test_numbers_stay_numbers_until_labels_name_them() -> None:
    assert make("tagged", {"tokens": ["a", "b"], "ner_tags": [0, 3]}).tags == ("0", "3")


@pytest.mark.parametrize(
    ("name", "values", "reason", "words"),
    [
        ("tagged", {"tokens": ["a", "b"], "tags": ["O"]}, "wrong_tags", "2 words have 1 tags"),
        ("tagged", {"tokens": ["a", " "], "tags": ["O", "O"]}, "wrong_tags", "word 2 is empty"),
        ("tagged", {"tokens": ["a"], "tags": [None]}, "empty_answer", "word 1 .a. has no tag"),
        ("tagged", {"tokens": [], "tags": []}, "empty_text", "`tokens` is empty"),
        ("tagged", {"tokens": "a b", "tags": ["O"]}, "wrong_type", "tokens"),
        ("tagged", {"tokens": [["a"]], "tags": ["O"]}, "wrong_type", "a word of `tokens` is a list"),
        ("spans", {"text": " ", "spans": []}, "empty_text", "`text` is empty"),
        ("spans", {"text": "ab", "spans": ["x"]}, "wrong_tags", "span 1 is not an object"),
        ("spans", {"text": "ab", "spans": [{"start": 0, "label": "X"}]}, "wrong_tags", "it has: start, label"),
        ("spans", {"text": "ab", "spans": [{"start": 0, "end": 9, "label": "X"}]}, "wrong_tags", "runs from 0 to 9"),
        ("spans", {"text": "a b", "spans": [{"start": 1, "end": 2, "label": "X"}]}, "wrong_tags", "covers no word"),
        ("spans", {"text": "ab", "spans": [{"start": 0, "end": 1, "label": " "}]}, "empty_answer", "an empty label"),
        ("spans", {"text": "abc", "spans": [{"start": 0, "end": 2, "label": "X"}, {"start": 1, "end": 3, "label": "Y"}]},
         "wrong_tags", "the spans of X and Y overlap at character 1"),
    ],
)  # fmt: skip
def test_faults_have_a_reason_and_a_sentence(name: str, values: dict[str, Any], reason: str, words: str) -> None:
    with pytest.raises(BadRow, match=words) as caught:
        make(name, values)
    assert caught.value.reason == reason


def test_a_system_message_belongs_to_conversations() -> None:
    with pytest.raises(DataError, match="rows of the format tagged are none"):
        make("tagged", {"tokens": ["a"], "tags": ["O"]}, system="Be brief.")


def test_words_are_cut_where_spans_end() -> None:
    record = make("spans", {"text": "10:30Uhr, gut", "spans": [{"start": 0, "end": 5, "label": "T"}]})
    assert [record.text[start:end] for start, end in record.words] == ["10", ":", "30", "Uhr", ",", "gut"]
    assert record.tags == ("B-T", "I-T", "I-T", "O", "O", "O")


def test_words_of_a_text() -> None:
    text = "Größe №7: can't\n…"
    assert [text[start:end] for start, end in words_of(text)] == ["Größe", "№", "7", ":", "can", "'", "t", "…"]


@pytest.mark.parametrize(
    ("words", "offsets", "tokens"),
    [
        ([(0, 2), (3, 5)], [(0, 2), (2, 5)], [range(1), range(1, 2)]),
        ([(0, 2), (3, 5)], [(0, 0), (0, 1), (1, 2), (3, 5), (0, 0)], [range(1, 3), range(3, 4)]),
        ([(0, 2), (2, 3)], [(0, 3)], [range(1), range(1)]),
        ([(0, 1), (2, 3), (4, 5)], [(0, 1), (4, 5)], [range(1), range(0), range(1, 2)]),
        ([(0, 1)], [(0, 1), (0, 1), (0, 1)], [range(3)]),
    ],
)
def test_tokens_of_words(words: list[Any], offsets: list[Any], tokens: list[range]) -> None:
    """Space before a word, special tokens without characters, a token of two words, a word without one, bytes of one sign."""
    assert tokens_of_words(words, offsets) == tokens


CONLL = """-DOCSTART- -X- O O

Ask VB B-VP O
Ida NNP B-NP B-PER
Rye NNP I-NP I-PER
. . O O

Rain NN B-NP O
broken line

Yes UH O O
"""


@pytest.mark.parametrize(
    ("name", "layout"), [("a.conll", Layout()), ("a.txt", Layout(row="conll")), ("a.bio", Layout())]
)
def test_conll_files(tmp_path: Path, name: str, layout: Layout) -> None:
    path = tmp_path / name
    path.write_text(CONLL, encoding="utf-8")
    first, broken, last = read_rows(path, name, layout)
    assert isinstance(first, RawRow)
    assert first.origin.line == 3
    assert detect([first], name) == "tagged"
    assert FORMATS["tagged"](first, SourceSection(path="f")) == WANTED
    assert first.values["column_2"] == ["VB", "NNP", "NNP", "."]
    assert isinstance(broken, Rejected)
    assert (broken.reason, broken.origin.line) == ("wrong_tags", 8)
    assert broken.detail == "line 9 has 2 columns, the sentence began with 4"
    assert isinstance(last, RawRow)
    assert last.values["tokens"] == ["Yes"]


def test_tabs_part_columns_where_a_line_has_one(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_bytes(b"New York\tB-LOC\r\n\r\nx\r\n")
    first, alone = read_rows(path, "a.conll")
    assert isinstance(first, RawRow)
    assert first.values == {"tokens": ["New York"], "tags": ["B-LOC"]}
    assert isinstance(alone, Rejected)
    assert alone.reason == "missing_column"
