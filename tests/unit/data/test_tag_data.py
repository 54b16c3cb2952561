"""Tagged words through preparation: which token answers, what is trained, what is cut, and every word accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_encoders import write_encoder
from tests.unit.data.test_heads import targets
from tunesmith.data.formats import FORMATS
from tunesmith.data.words import NO_TOKEN
from tunesmith.embedded import DEFAULT_MODEL
from tunesmith.errors import DataError
from tunesmith.recipe.codec import parse
from tunesmith.recipe.data import SourceSection
from tunesmith.records import Origin, RawRow
from tunesmith.workshop.headed import describe_head
from tunesmith.workshop.prepare import open_data

ROWS = [
    {"tokens": ["Ask", "Pemberley", "today"], "tags": ["O", "B-PER", "O"]},
    {"tokens": ["Ask", "Ida", "Okonkwo"], "tags": ["O", "B-PER", "I-PER"]},
    {"tokens": ["nothing", "here"], "tags": ["O", "O"]},
]


def prepared(folder: Path, rows: list[dict[str, Any]], model: str = DEFAULT_MODEL, **more: Any) -> Any:
    """Recipe, data, renderer and notes of rows in a file."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {key: more.pop(key) for key in ("overlong", "max_rejected", "test") if key in more}
    values = {
        "name": "tags", "model": {"name": model, "context": more.pop("context", None)},
        "data": {"train": "rows.jsonl", "validation": 0.0, "test": 0.0, **data},
        "objective": {"type": "tag", **more},
    }  # fmt: skip
    recipe = parse(values).placed(folder)
    found, renderer, notes = open_data(recipe)
    return recipe, found, renderer, notes


def pieces_of(renderer: Any, row: dict[str, Any]) -> list[list[int]]:
    """Tokens of each word by spelling: a token belongs to the word whose letters it holds."""
    ids = renderer.tokenizer.encode_document(" ".join(row["tokens"]))
    words, left = [[] for _ in row["tokens"]], list(row["tokens"])
    at = 0
    for place, token in enumerate(ids):
        text = renderer.tokenizer.decode([token], skip_special=True).strip()
        if not text:
            continue
        words[at].append(place)
        left[at] = left[at].removeprefix(text)
        at += not left[at]
    return words


@pytest.mark.parametrize("pieces", ["first", "last", "all"])
def test_a_word_is_answered_for_by_one_of_its_tokens(tmp_path: Path, pieces: str) -> None:
    recipe, data, renderer, notes = prepared(tmp_path, ROWS, pieces=pieces)
    rows, labels = targets(recipe, data), describe_head(recipe, data).labels
    assert labels == ("B-PER", "I-PER", "O")
    assert data.label_counts == {"B-PER": 2, "I-PER": 1, "O": 5}, "words, not rows and not tokens"
    place = 0 if pieces in ("first", "all") else -1
    split_words = 0
    for number, row in enumerate(ROWS):
        words = pieces_of(renderer, row)
        split_words += sum(len(word) > 1 for word in words)
        expected = {word[place]: tag for word, tag in zip(words, row["tags"], strict=True)}
        if pieces == "all":
            for word, tag in zip(words, row["tags"], strict=True):
                expected |= {token: tag.replace("B-", "I-") for token in word[1:]}
        batch = rows.batch([number])
        found = dict(zip(batch.scored_S.tolist(), (labels[item] for item in batch.targets_S.tolist()), strict=True))
        assert found == expected
        stored = data.train.row(number)[1].nonzero()[0].tolist()
        assert stored == sorted(expected), "what `data show` marks is what is asked"
    assert split_words > 0, "or the test shows nothing"
    assert "8 words have a tag in train" in notes
    assert data.ledger.balanced_tokens
    assert data.ledger.trained_tokens == (8 if pieces != "all" else sum(rows.num_scored(row) for row in range(3)))


def test_decoders_are_asked_at_the_last_token_and_encoders_at_the_first(tmp_path: Path) -> None:
    write_encoder(tmp_path / "bert", "bert")
    one, other = (prepared(tmp_path, ROWS, model) for model in (DEFAULT_MODEL, str(tmp_path / "bert")))
    assert (one[2].reads, other[2].reads) == ("last", "first")
    assert describe_head(one[0], one[1]).reads == "last"
    assert one[1].key != other[1].key


def test_a_pack_of_rows_asks_what_its_rows_ask(tmp_path: Path) -> None:
    recipe, data, _, _ = prepared(tmp_path, ROWS)
    rows = targets(recipe, data)
    pack, singles = rows.batch([2, 0, 1]), [rows.batch([row]) for row in (2, 0, 1)]
    assert torch.equal(pack.targets_S, torch.cat([one.targets_S for one in singles]))
    starts = pack.starts_D1[:-1].tolist()
    assert pack.scored_S.tolist() == [
        start + place for start, one in zip(starts, singles, strict=True) for place in one.scored_S.tolist()
    ]
    assert pack.document_S.tolist() == [0] * 2 + [1] * 3 + [2] * 3
    part = pack.part(1, 3)
    both = rows.batch([0, 1])
    assert torch.equal(part.scored_S, both.scored_S)
    assert torch.equal(part.targets_S, both.targets_S)


def test_row_weights_weigh_every_word(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row | {"w": 0.5}) + "\n" for row in ROWS), encoding="utf-8")
    source = {"path": "rows.jsonl", "format": "tagged", "columns": {"weight": "w"}}
    values = {"name": "t", "model": DEFAULT_MODEL, "data": {"train": source, "validation": 0, "test": 0},
              "objective": {"type": "tag"}}  # fmt: skip
    recipe = parse(values).placed(tmp_path)
    data = open_data(recipe)[0]
    assert targets(recipe, data).batch([0]).weights_S.tolist() == [0.5] * 3


def test_words_behind_the_context_are_counted(tmp_path: Path) -> None:
    long = {"tokens": ["word"] * 30, "tags": ["B-X"] + ["O"] * 29}
    with pytest.raises(DataError, match="longer than the context of 16 tokens"):
        prepared(tmp_path, [*ROWS, long], context=16)
    _, data, renderer, notes = prepared(tmp_path, [*ROWS, long], context=16, overlong="truncate")
    whole, stored = len(renderer.tokenizer.encode_document(" ".join(long["tokens"]))), len(data.train.row(3)[0])
    assert (whole, stored) == (30, 16), "a token a word, so that 14 words are cut off"
    said = next(note for note in notes if "words have a tag in train" in note)
    assert said.startswith(
        "38 words have a tag in train; 14 of them, in 1 row, stand behind the context and are cut off"
    )
    assert sum(data.label_counts.values()) == 8 + 16
    assert data.ledger.trained_tokens == 8 + 16
    record = renderer_record(long)
    assert renderer.reading_tokens(record, 16) == [*range(16), *[NO_TOKEN] * 14]


def renderer_record(row: dict[str, Any]) -> Any:
    return FORMATS["tagged"](RawRow(Origin("f", 1), row), SourceSection(path="f"))


def test_the_closing_token_takes_the_place_of_the_last_word_that_fits(tmp_path: Path, shared: Path) -> None:
    rows = [*ROWS, {"tokens": ["word"] * 30, "tags": ["O"] * 30}]
    model = str(shared / "models" / "tunesmith-encoder-8m")
    recipe, data, renderer, _ = prepared(tmp_path, rows, model, context=16, overlong="truncate")
    ids, trained = data.train.row(3)
    assert int(ids[-1]) in renderer.tokenizer.special_ids
    assert not trained[-1]
    batch = targets(recipe, data).batch([3])
    record = renderer_record(rows[3])
    assert batch.scored_S.tolist() == [token for token in renderer.reading_tokens(record, 16) if token != NO_TOKEN]
    assert max(batch.scored_S.tolist()) == 14


def test_numbers_are_places_in_the_labels(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b"], "ner_tags": [1, 0]}] * 3
    recipe, data, _, _ = prepared(tmp_path, rows, labels=["O", "B-X"])
    assert data.label_counts == {"B-X": 3, "O": 3}
    assert targets(recipe, data).batch([0]).targets_S.tolist() == [1, 0]
    with pytest.raises(DataError, match="the tag 1 is a number") as caught:
        prepared(tmp_path, rows)
    assert "objective.labels" in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "objective", "words"),
    [
        ([{"tokens": ["a", "b"], "tags": ["O", "I-X"]}], {"scheme": "bio"}, "word 2 has the tag 'I-X', which goes on"),
        ([{"tokens": ["a", "b"], "tags": ["O", "NOUN"]}], {"scheme": "bio"}, "the tag 'NOUN' is none of a span scheme"),
        ([{"tokens": ["a", "b"], "tags": ["O", "B-Y"]}], {"labels": ["O", "B-X"]}, "none of those that `objective.labels`"),
        ([{"text": "a", "label": "b"}], {}, "the row has no tags of words"),
        ([{"tokens": ["a"], "tags": ["O"]}], {}, "the training rows have a single label, 'O'"),
        ([{"tokens": ["a"], "tags": ["O"]}], {"labels": ["O", "B-X"]}, "no training row has the label 'B-X'"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_trained(tmp_path: Path, rows: list[Any], objective: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        prepared(tmp_path, rows * 3, **objective)


def test_a_scheme_that_rows_break_is_said(tmp_path: Path) -> None:
    rows = [*ROWS, {"tokens": ["a", "b"], "tags": ["O", "I-PER"]}]
    notes = prepared(tmp_path, rows)[3]
    assert any(note.startswith("in 1 row: a tag goes on with a span that no tag began") for note in notes)
    assert not any("goes on with" in note for note in prepared(tmp_path, rows, scheme="none")[3])


def test_words_without_a_token_and_words_that_share_one_are_said(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "why?? ok", "spans": [{"start": 0, "end": 3, "label": "PER"}]}]
    (tmp_path / "spans.jsonl").write_text(json.dumps(rows[-1]) + "\n")
    values = {"name": "t", "model": DEFAULT_MODEL, "objective": {"type": "tag"},
              "data": {"train": [{"path": "spans.jsonl"}, {"path": "rows.jsonl"}], "validation": 0, "test": 0}}  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe = parse(values).placed(tmp_path)
    data, renderer, notes = open_data(recipe)
    ids = renderer.tokenizer.encode_document("why?? ok")
    shares = len(ids) < 4
    assert any("two words share a token" in note for note in notes) is shares
    assert data.train.num_rows == 4
