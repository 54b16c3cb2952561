"""tokenizer.json and its neighbours from a stranger: expressions that hang, text that grows, ids beyond the embedding."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hostile.bounds import GENTLE, TELL, answer, measured, refusal
from tests.hostile.folders import EMBEDDED, copy_embedded
from tests.hostile.test_model_files import JSON
from tunesmith.data import tokenizer_spec
from tunesmith.data.tokenizer import Tokenizer, read_mapping, stop_ids_of
from tunesmith.errors import ModelError

SPEC: dict[str, Any] = json.loads((EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"))
KNOWN = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "deepseek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
    "bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "clip": r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "spaces": r" {2,}",
    "plain group": r"(?:ab)+c",
    "possessive": r"[^\r\n\p{L}\p{N}]?+\p{L}++| ?+[^\s]++",
}
HANGING = [
    r"(a+)+$", r"(a|a)+b", r"(?:a?){20}b", r"(\s*\w*)*x", r"a*a*a*a*a*a*a*b", r"((a{1,9}){1,9}){1,9}", r"(?:a|aa)*c",
    r"a?a?a?a?a?a?a?a?aaaaaaaa", r"((?:a*)(?:a*))+b", r"(a*|b)*c", "a" * 5_000,
]  # fmt: skip


def _split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def _payload(**changes: Any) -> str:
    return json.dumps({**SPEC, **changes})


@pytest.mark.parametrize("name", KNOWN)
def test_expressions_of_known_tokenizers_pass(name: str) -> None:
    tokenizer = Tokenizer(_payload(pre_tokenizer=_split(KNOWN[name])))
    assert tokenizer.encode("It's 12 o'clock,  nearly.\n")


@pytest.mark.parametrize("expression", HANGING)
@pytest.mark.parametrize("part", ["pre_tokenizer", "normalizer", "decoder"])
def test_expressions_that_take_for_ever_are_refused_unrun(expression: str, part: str) -> None:
    replace = {"type": "Replace", "pattern": {"Regex": expression}, "content": "x"}
    inner = _split(expression) if part == "pre_tokenizer" else replace
    key = {"pre_tokenizer": "pretokenizers", "normalizer": "normalizers", "decoder": "decoders"}[part]
    for given_part in (inner, {"type": "Sequence", key: [inner]}):
        assert part in refusal(lambda given_part=given_part: Tokenizer(_payload(**{part: given_part}))).what


@GENTLE
@given(expression=st.text(alphabet="ab()[]{}|*+?^\\,1", max_size=30))
def test_any_expression_is_refused_or_quick(expression: str) -> None:
    def use() -> list[int]:
        return Tokenizer(_payload(pre_tokenizer=_split(expression))).encode("ab" * 200 + "a" * 200 + "!")

    answer(use, 10.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 10_000_000}}, "prepend"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}}, "the empty text"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 10}}, "characters of one"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "x"}, "content": "xx"}] * 40}},
            "characters of one",
        ),
        ({"decoder": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}}, "characters of one"),
        ({"decoder": {"type": "WordPiece", "prefix": "x" * 10_000, "cleanup": True}}, "prefix"),
        ({"model": {**SPEC["model"], "continuing_subword_prefix": "x" * 10_000}}, "continuing_subword_prefix"),
        (
            {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "continuing_subword_prefix": "", "max_input_chars_per_word": 10**9}},
            "words of",
        ),
        (
            {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "X", "type_id": 0}}] * 65,
                                "pair": [], "special_tokens": {"X": {"id": "X", "ids": [0], "tokens": ["X"]}}}},
            "more than 64",
        ),
        (
            {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "X", "type_id": 0}}],
                                "pair": [], "special_tokens": {"X": {"id": "X", "ids": [8192], "tokens": ["X"]}}}},
            "does not have",
        ),
        ({"post_processor": {"type": "RobertaProcessing", "sep": ["a", 10**8], "cls": ["a", 0], "trim_offsets": True, "add_prefix_space": True}}, "does not have"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "cannot be read"),
        ({"pre_tokenizer": {"type": "Nothing"}}, "cannot be read"),
        ({"model": {}}, "cannot be read"),
        ({"added_tokens": [{"id": -5, "content": "x"}]}, "cannot be read"),
    ],
)  # fmt: skip
def test_what_no_tokenizer_needs_is_refused(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(lambda: Tokenizer(_payload(**changes))).what


@pytest.mark.parametrize(
    "model",
    [
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"},
        {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]", "continuing_subword_prefix": "", "max_input_chars_per_word": 9},
        {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None},
    ],
)  # fmt: skip
def test_a_model_that_fails_on_a_text_says_so(model: dict[str, Any]) -> None:
    tokenizer = Tokenizer(_payload(model=model, added_tokens=[]))
    for use in (tokenizer.encode, tokenizer.encode_document, tokenizer.encode_with_offsets):
        assert "fails on a text" in refusal(lambda use=use: use("zebra")).what


def test_dropout_of_a_file_is_not_obeyed() -> None:
    """It would give the same text other tokens each time."""
    tokenizer = Tokenizer(_payload(model={**SPEC["model"], "dropout": 0.9}))
    assert tokenizer.encode("reproducible training") == Tokenizer(json.dumps(SPEC)).encode("reproducible training")


@st.composite
def _spoilt(draw: st.DrawFn) -> str:
    """The embedded tokenizer with one value somewhere replaced."""
    spec = copy.deepcopy(
        {**SPEC, "model": {**SPEC["model"], "vocab": dict(list(SPEC["model"]["vocab"].items())[:300]), "merges": []}}
    )
    node: Any = spec
    while True:
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        inner = node[key]
        if not (isinstance(inner, dict | list) and inner) or draw(st.booleans()):
            node[key] = draw(JSON)
            return json.dumps(spec)
        node = inner


@settings(GENTLE, max_examples=120)
@given(payload=_spoilt())
def test_any_spoilt_tokenizer(payload: str) -> None:
    def use() -> str:
        tokenizer = Tokenizer(payload)
        ids = tokenizer.encode_document("Some text, 1 <|user|>")
        assert tokenizer.vocab_size > max(ids, default=0)
        return tokenizer.decode(ids) + "".join(map(tokenizer.token_text, ids))

    answer(use)


@GENTLE
@given(
    values=JSON, name=st.sampled_from(["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"])
)
def test_any_value_in_the_files_beside(tmp_path: Path, values: Any, name: str) -> None:
    folder = copy_embedded(tmp_path / "m")
    (folder / name).write_text(json.dumps(values), encoding="utf-8")
    answer(lambda: Tokenizer.from_folder(folder))
    answer(lambda: stop_ids_of(folder))
    (folder / name).unlink()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("payload", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"[1]"])
def test_files_that_are_no_objects(tmp_path: Path, name: str, payload: bytes) -> None:
    folder = copy_embedded(tmp_path / "m")
    (folder / name).write_bytes(payload)
    assert name in refusal(lambda: Tokenizer.from_folder(folder)).where


def test_stop_ids_are_ids(tmp_path: Path) -> None:
    values = {"eos_token_id": [True, -1, 7, "a", None, 2.0]}
    (tmp_path / "generation_config.json").write_text(json.dumps(values), encoding="utf-8")
    assert stop_ids_of(tmp_path) == {7}
    assert read_mapping(tmp_path / "nothing.json") == {}


def test_growth_would_end_the_process() -> None:
    """What the check is for: the library itself dies of such a file, where no ``except`` reaches."""
    part = {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 10}] * 8,
    }
    code = (
        TELL + "from tunesmith.data.tokenizer import Tokenizer\ntell(lambda: Tokenizer(sys.argv[1]).encode('velvet'))"
    )
    small = {"type": "BPE", "vocab": {"x": 0}, "merges": []}
    said, peak = measured(code, _payload(normalizer=part, model=small), mebibytes=1024)
    assert said.startswith("ModelError | the tokenizer cannot be read: its normalizer")
    assert peak < 200


def test_the_check_is_of_our_words() -> None:
    with pytest.raises(tokenizer_spec.Dangerous):
        tokenizer_spec.check({**SPEC, "normalizer": {"type": "Prepend", "prepend": "x" * 65}})
    assert isinstance(answer(lambda: Tokenizer("null")), ModelError)
