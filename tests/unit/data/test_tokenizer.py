"""The tokenizer alone: ids, offsets, special tokens, and folders that hold none."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.embedded import DEFAULT_MODEL, model_folder
from tunesmith.errors import ModelError

FOLDER = model_folder(DEFAULT_MODEL)
assert FOLDER is not None
TOKENIZER = Tokenizer.from_folder(FOLDER)


def test_facts_of_the_embedded_tokenizer():
    assert TOKENIZER.vocab_size == 8192
    assert (TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id) == (0, 0, 1)
    assert TOKENIZER.special_tokens["eos_token"] == "<|endoftext|>"
    assert TOKENIZER.special_ids >= {0, 1, 2, 3}
    assert TOKENIZER.sha256 == hashlib.sha256((FOLDER / "tokenizer.json").read_bytes()).hexdigest()


def test_special_strings_in_text_are_tokens_and_nothing_is_added():
    assert TOKENIZER.encode("<|im_start|><|im_end|>") == [2, 3]
    assert TOKENIZER.encode("") == []


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_byte_level_text_survives_and_offsets_cover_it(text: str):
    ids, offsets = TOKENIZER.encode_with_offsets(text)
    assert TOKENIZER.decode(ids) == text
    assert ids == TOKENIZER.encode(text)
    assert len(offsets) == len(ids)
    covered = {place for start, end in offsets for place in range(start, end)}
    assert covered == set(range(len(text)))


def test_offsets_keep_the_space_before_a_word():
    """A post-processor that trims offsets would say that " b" begins at the letter."""
    spec = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    spec["post_processor"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    _, offsets = Tokenizer(json.dumps(spec)).encode_with_offsets("a banana")
    assert offsets[1][0] == 1


def test_saved_truncation_is_not_applied():
    spec = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    spec["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    tokenizer = Tokenizer(json.dumps(spec))
    text = "one two three four five six seven eight"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode_document(text)) == text


def test_documents_get_what_the_post_processor_adds():
    spec = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    tokenizer = Tokenizer(json.dumps(spec))
    assert tokenizer.encode_document("tide") == [0, *tokenizer.encode("tide")]


def test_token_text_is_readable():
    assert [TOKENIZER.token_text(token) for token in TOKENIZER.encode("<|im_end|>")] == ["<|im_end|>"]
    assert "".join(TOKENIZER.token_text(token) for token in TOKENIZER.encode("a b\n")) == "a b\n"
    assert TOKENIZER.token_text(10**6) == "<1000000>"


def test_survives_pickling():
    assert pickle.loads(pickle.dumps(TOKENIZER)).encode("high water") == TOKENIZER.encode("high water")


def test_vocab_and_merges_make_the_gpt2_kind(tmp_path: Path):
    spec = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in spec["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(spec["vocab"]), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<|endoftext|>"}}), encoding="utf-8"
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("Hello there, you") == TOKENIZER.encode("Hello there, you")
    assert tokenizer.encode("<|endoftext|>") == [0]
    assert tokenizer.eos_id == 0


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no tokenizer"),
        ({"tokenizer.model": "x"}, "SentencePiece"),
        ({"tokenizer.json": "{"}, "cannot be read"),
        ({"tokenizer.json": "[]"}, "cannot be read"),
        ({"tokenizer.json": "{}"}, "cannot be read"),
        ({"vocab.json": "{}", "merges.txt": "a b\n"}, "cannot be made of vocab.json"),
        ({"tokenizer.json": "{}", "tokenizer_config.json": "{"}, "not valid JSON"),
    ],
)
def test_folders_without_a_usable_tokenizer_are_refused(tmp_path: Path, files: dict[str, str], words: str):
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=words) as caught:
        Tokenizer.from_folder(tmp_path)
    assert caught.value.hint
    assert str(tmp_path) in caught.value.where
