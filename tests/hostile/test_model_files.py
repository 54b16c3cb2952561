"""config.json, safetensors headers, indices and links of a model folder from a stranger."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.hostile.bounds import GENTLE, TELL, answer, measured, refusal
from tests.hostile.folders import CONFIG, EMBEDDED, SHAPES, header, write_model
from tunesmith.errors import ModelError
from tunesmith.foreign import SMALL_BYTES
from tunesmith.models.facts import ModelFacts, read_facts
from tunesmith.models.links import TEXTS
from tunesmith.models.locate import check_weights, locate, open_model, tokenizer_size
from tunesmith.models.weights import MOST_HEADER_BYTES, TensorInfo, read_header, read_tensors, weight_files

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "m")


def test_the_folder_is_fine_to_begin_with(folder: Path) -> None:
    assert isinstance(answer(lambda: read_facts(folder)), ModelFacts)
    assert set(read_tensors(folder)) == set(SHAPES)


@GENTLE
@given(
    changes=st.dictionaries(
        st.sampled_from([*CONFIG, "text_config", "sliding_window", "layer_types"]), JSON, min_size=1
    )
)
@example(changes={"num_hidden_layers": 10**9})
@example(changes={"num_hidden_layers": 10**400})
@example(changes={"hidden_size": 10**400})
@example(changes={"max_position_embeddings": 10**400})
@example(changes={"vocab_size": [10**400]})
@example(changes={"num_attention_heads": 10**9})
@example(changes={"architectures": {"a": 1}})
@example(changes={"architectures": 5})
@example(changes={"sliding_window": -1})
def test_any_value_in_a_config(folder: Path, changes: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes), encoding="utf-8")
    facts = answer(lambda: read_facts(folder))
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    if isinstance(facts, ModelFacts):
        sizes = (facts.hidden_size, facts.num_layers, facts.num_heads, facts.head_dim, facts.context)
        assert all(0 < size < 1 << 41 for size in sizes)
        assert facts.num_layers == 1


@GENTLE
@given(payload=st.binary(max_size=64))
@example(payload=b"[" * 100_000)
@example(payload=b'{"a":' * 100_000)
@example(payload=b"\xff\xfe{}")
@example(payload=b"null")
@example(payload=b"")
def test_any_bytes_as_a_config(folder: Path, payload: bytes) -> None:
    (folder / "config.json").write_bytes(payload)
    refused = refusal(lambda: read_facts(folder))
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    assert str(folder / "config.json") in refused.where


@GENTLE
@given(payload=st.binary(max_size=80))
@example(payload=b"")
@example(payload=header({}, length=2**64 - 1))
@example(payload=header({}, length=MOST_HEADER_BYTES + 1))
@example(payload=header(b"[" * 100_000))
@example(payload=header(b'{"a":' * 100_000))
@example(payload=header(b"null"))
@example(payload=header({"__metadata__": 5}))
def test_any_bytes_as_weights(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(payload)
    tensors = answer(lambda: read_header(path))
    assert isinstance(tensors, ModelError) or tensors == {}


@GENTLE
@given(
    shape=st.lists(st.integers(-2, 2**70) | st.floats() | st.booleans(), max_size=4) | JSON,
    offsets=st.lists(st.integers(-4, 2**70) | st.floats(), max_size=3) | JSON,
    dtype=st.sampled_from(["F32", "BF16", "I8", "F99", "\x1b[2J"]) | JSON,
)
def test_any_tensor_in_a_header(tmp_path: Path, shape: Any, offsets: Any, dtype: Any) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}, b"0000"))
    tensors = answer(lambda: read_header(path))
    if not isinstance(tensors, ModelError):
        (info,) = tensors.values()
        assert isinstance(info, TensorInfo)
        assert info.num_bytes == 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"a": TENSOR, "b": TENSOR}, "shares bytes"),
        ({"a": {**TENSOR, "data_offsets": [4, 8]}}, "bytes"),
        ({"a": {"dtype": "X", "shape": [1], "data_offsets": [1, 4]}}, "unused"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "twice"),
        ({"a": {**TENSOR, "shape": [-1, -1]}}, "negative"),
        ({"a": {**TENSOR, "data_offsets": [4, 0]}}, "negative"),
        ({"a": {**TENSOR, "shape": [2**32, 2**32]}}, "bytes"),
        ({"a": {"dtype": "X", "shape": [2**32, 2**32], "data_offsets": [0, 4]}}, "larger than any"),
        ({"a": {**TENSOR, "shape": [1] * 9}}, "larger than any"),
        ({"a": {**TENSOR, "shape": [2**62] * 100_000}}, "larger than any"),
        ({"a": {**TENSOR, "shape": ["1"]}}, "no whole number"),
        ({"a": {**TENSOR, "shape": [True]}}, "no whole number"),
        (b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', "no whole number"),
        (b'{"a":{"dtype":"X","shape":[1],"data_offsets":[NaN,NaN]}}', "no whole number"),
        ({"a": {**TENSOR, "dtype": []}}, "no whole number"),
        ({"a": {**TENSOR, "dtype": "BF16"}}, "BF16 has 4 bytes"),
    ],
)  # fmt: skip
def test_headers_that_lie(tmp_path: Path, values: Any, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header(values, b"0000"))
    assert words in refusal(lambda: read_header(path), 1.0).what


def test_a_name_with_a_null_character_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header({"a\0b": TENSOR}, b"0000"))
    assert list(read_header(path)) == ["a\0b"]


@pytest.mark.parametrize("number", ["1" * 5_000, "9" * 10])
def test_a_layer_with_an_enormous_number_is_none(tmp_path: Path, number: str) -> None:
    folder = write_model(tmp_path / "m")
    path = folder / "model.safetensors"
    path.write_bytes(header({f"model.layers.{number}.x": TENSOR}, b"0000"))
    refusal(lambda: read_facts(folder))


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../x.safetensors", "a/x.safetensors", "..", "", "\0.safetensors", "x.bin", "a\\..\\b.safetensors"],
)
def test_an_index_names_files_of_its_folder_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(header({"a": TENSOR}, b"0000"))
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
    assert INDEX in refusal(lambda: weight_files(folder)).where


@GENTLE
@given(values=JSON | st.fixed_dictionaries({"weight_map": JSON}))
def test_any_index(tmp_path: Path, values: Any) -> None:
    (tmp_path / INDEX).write_text(json.dumps(values), encoding="utf-8")
    refusal(lambda: weight_files(tmp_path))


@GENTLE
@given(values=JSON | st.fixed_dictionaries({"model": st.fixed_dictionaries({"vocab": JSON}), "added_tokens": JSON}))
@example(values={"model": {"vocab": {}}, "added_tokens": [{"id": float("inf")}]})
@example(values={"model": {"vocab": {"a": float("nan")}}})
def test_any_tokenizer_has_a_size_or_an_error(tmp_path: Path, values: Any) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    answer(lambda: tokenizer_size(tmp_path))


def test_what_is_read_whole_has_a_largest_size(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    with (folder / "config.json").open("wb") as stream:
        stream.truncate(SMALL_BYTES + 1)
    refused = refusal(lambda: read_facts(folder))
    assert f"{SMALL_BYTES >> 20} MiB" in refused.what


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_files_that_are_no_files(tmp_path: Path, kind: str, name: str) -> None:
    """A pipe would wait for ever, a device never end."""
    folder = write_model(tmp_path / "m")
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    said = answer(lambda: check_weights(folder))
    assert isinstance(said, ModelError) or (kind, name) == ("loop", "tokenizer.json")


@pytest.mark.parametrize("name", TEXTS)
def test_a_link_out_of_the_folder_is_not_read(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "m")
    secret = tmp_path / "secret"
    secret.write_text((folder / name).read_text() if (folder / name).is_file() else "{}", encoding="utf-8")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    refused = refusal(lambda: check_weights(folder))
    assert "a link that leads out of the folder" in refused.what
    assert name in refused.where


def test_links_within_the_folder_of_the_hubs_cache_and_to_weights_are_read(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "whole")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        (blobs / name).write_bytes((whole / name).read_bytes())
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    check_weights(snapshot)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "own.json").write_bytes((whole / "config.json").read_bytes())
    (linked / "config.json").symlink_to("own.json")
    (linked / "model.safetensors").symlink_to(whole / "model.safetensors")
    check_weights(linked)


@pytest.mark.parametrize(
    "name", ["~nobody-of-this-name/model", "a\0b", "x" * 5_000, "/" + "x/" * 5_000, "\ud800", "~", ""]
)
def test_any_name_of_a_model(tmp_path: Path, name: str) -> None:
    refusal(lambda: locate(name, tmp_path))
    answer(lambda: open_model(name))


def test_a_model_and_an_adapter_in_one_folder_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    for find in (locate, open_model):
        assert "which of them is meant" in refusal(lambda find=find: find(str(folder))).what


@pytest.mark.parametrize(
    "base", ["/etc", "../../..", "org/model", "\0", "~nobody-of-this-name/x", 5, None, ["a"], "x" * 5_000]
)
def test_an_adapter_that_names_any_base(tmp_path: Path, base: Any) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}), encoding="utf-8")
    refusal(lambda: open_model(str(tmp_path)))


def test_enormous_numbers_and_headers_take_no_memory(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", num_hidden_layers=10**9)
    code = TELL + "from tunesmith.models.facts import read_facts\ntell(lambda: read_facts(Path(sys.argv[1])))"
    said, small = measured(code, str(folder), seconds=10, mebibytes=1024)
    assert "1000000000 layers" in said
    path = write_model(tmp_path / "h") / "model.safetensors"
    path.write_bytes(header(b'{"__metadata__":[' + b"[]," * ((MOST_HEADER_BYTES - 40) // 3) + b"[]]}"))
    said, large = measured(code, str(path.parent), seconds=20, mebibytes=2048)
    assert "ModelError" in said
    assert large < small + 30 * MOST_HEADER_BYTES / 2**20


def test_the_embedded_model_still_passes() -> None:
    check_weights(EMBEDDED)
