"""Headers are read by hand and must agree with the safetensors library; torn and foreign files must be named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tunesmith import embedded
from tunesmith.errors import ModelError
from tunesmith.models import names
from tunesmith.models.facts import read_facts
from tunesmith.models.weights import read_header, read_tensors

BASE = embedded.model_folder(embedded.DEFAULT_MODEL)
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "num_attention_heads": 2,
    "num_key_value_heads": 1, "num_hidden_layers": 2, "intermediate_size": 12, "vocab_size": 20,
    "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip


def tensors(num_layers: int = 2) -> dict[str, np.ndarray]:
    shapes = {"model.embed_tokens.weight": (20, 8), "model.norm.weight": (8,)}
    for layer in range(num_layers):
        shapes |= {
            f"model.layers.{layer}.self_attn.q_proj.weight": (8, 8),
            f"model.layers.{layer}.self_attn.k_proj.weight": (4, 8),
            f"model.layers.{layer}.mlp.gate_proj.weight": (12, 8),
            f"model.layers.{layer}.input_layernorm.weight": (8,),
        }
    return {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}


def write(folder: Path, config: dict | None = None, stored: dict[str, np.ndarray] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    save_file(stored or tensors(), folder / "model.safetensors")
    return folder


def test_embedded_model() -> None:
    facts = read_facts(BASE)
    assert facts.num_parameters == 7_999_744
    assert facts.weights_bytes == 2 * facts.num_parameters
    assert (facts.hidden_size, facts.num_layers, facts.num_heads, facts.num_kv_heads, facts.head_dim) == (
        256,
        8,
        4,
        2,
        64,
    )
    assert (facts.vocab_size, facts.context, facts.tied, facts.dtype, facts.gated) == (8192, 1024, True, "bf16", True)
    assert facts.is_causal_lm


def test_header_agrees_with_the_library(tmp_path: Path) -> None:
    from safetensors import safe_open

    folder = write(tmp_path / "m")
    ours = read_header(folder / "model.safetensors")
    with safe_open(folder / "model.safetensors", "np") as theirs:
        assert {name: item.shape for name, item in ours.items()} == {
            name: tuple(theirs.get_slice(name).get_shape())
            for name in theirs.keys()  # noqa: SIM118
        }


def test_shards_are_joined(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    everything = tensors()
    halves = [dict(list(everything.items())[::2]), dict(list(everything.items())[1::2])]
    weight_map = {}
    for number, half in enumerate(halves, 1):
        save_file(half, folder / f"model-{number}.safetensors")
        weight_map |= dict.fromkeys(half, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert set(read_facts(folder).tensors) == set(everything)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"1 of 2 weight files .* missing: model-2\.safetensors"):
        read_facts(folder)


def test_index_may_not_leave_the_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    (folder / "model.safetensors").rename(tmp_path / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(ModelError, match="not a safetensors file of this folder"):
        read_facts(folder)


@pytest.mark.parametrize("kept", [0, 5, 40, -1, -100])
def test_torn_file_names_file_and_sizes(tmp_path: Path, kept: int) -> None:
    folder = write(tmp_path / "m")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    torn = whole[:kept]
    path.write_bytes(torn)
    with pytest.raises(ModelError) as caught:
        read_tensors(folder)
    assert str(path) in caught.value.where
    assert f"{len(torn):,} bytes" in caught.value.what
    if kept < 0:
        assert f"expects {len(whole):,} bytes" in caught.value.what


def test_longer_file_is_refused_too(tmp_path: Path) -> None:
    path = write(tmp_path / "m") / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ModelError, match="torn"):
        read_header(path)


def test_header_that_lies_about_a_shape(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ModelError, match=r"`a` of shape \[3\] and type F32 has 8 bytes"):
        read_header(path)


def test_tied_copy_and_buffers_are_no_parameters(tmp_path: Path) -> None:
    stored = tensors()
    plain = read_facts(write(tmp_path / "plain", stored=stored)).num_parameters
    extra = {
        "lm_head.weight": np.zeros((20, 8), np.float16),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(2, np.float16),
    }
    assert read_facts(write(tmp_path / "tied", stored={**stored, **extra})).num_parameters == plain
    untied = read_facts(write(tmp_path / "untied", {"tie_word_embeddings": False}, {**stored, **extra}))
    assert untied.num_parameters == plain + 160


def test_bare_gpt2_names_get_the_prefix(tmp_path: Path) -> None:
    stored = {
        "wte.weight": np.zeros((20, 8), np.float32), "wpe.weight": np.zeros((64, 8), np.float32),
        "h.0.attn.c_attn.weight": np.zeros((8, 24), np.float32), "h.0.attn.bias": np.zeros((1, 1, 64, 64), np.float32),
        "ln_f.weight": np.zeros(8, np.float32),
    }  # fmt: skip
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 64,
        "vocab_size": 20,
    }
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(stored, folder / "model.safetensors")
    facts = read_facts(folder)
    assert "transformer.h.0.attn.c_attn.weight" in facts.tensors
    assert facts.num_parameters == 160 + 512 + 192 + 8
    assert facts.tied
    assert facts.intermediate_size == 32


def test_fields_that_could_run_code_are_dropped_and_named(tmp_path: Path) -> None:
    assert read_facts(write(tmp_path / "m", {"auto_map": {"AutoModel": "evil.py"}})).dropped_fields == ("auto_map",)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_hidden_layers": 3}, "lack layer 2"),
        ({"vocab_size": 30}, "vocabulary of 30, the embedding has 20 rows"),
        ({"hidden_size": None}, "does not say `hidden_size`"),
    ],
)
def test_config_and_weights_must_belong_together(tmp_path: Path, config: dict, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read_facts(write(tmp_path / "m", config))


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_broken_config(tmp_path: Path, content: str) -> None:
    folder = write(tmp_path / "m")
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match=r"config\.json is not"):
        read_facts(folder)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    stored = tensors()
    stored["model.layers.0.self_attn.q_proj.weight"] = np.zeros((8, 8), np.uint8)
    with pytest.raises(ModelError, match=r"quantised \(gptq, stored as U8\)"):
        read_facts(write(tmp_path / "m", {"quantization_config": {"quant_method": "gptq"}}, stored))


def test_pickles_are_refused_with_the_reason(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="unpickling a file runs code") as caught:
        read_facts(folder)
    assert "sandbox" in caught.value.hint


def test_no_weights_lists_what_is_there(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "notes.md").touch()
    with pytest.raises(ModelError, match=r"no weights; it holds: config\.json, notes\.md"):
        read_facts(folder)


def test_missing_config(tmp_path: Path) -> None:
    shutil.copy(BASE / "model.safetensors", tmp_path)
    with pytest.raises(ModelError, match=r"no config\.json"):
        read_facts(tmp_path)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.7.mlp.up_proj.weight", 7),
        ("transformer.h.11.attn.c_attn", 11),
        ("model.norm.weight", None),
        ("lm_head", None),
    ],
)
def test_layer_index(name: str, layer: int | None) -> None:
    assert names.layer_index(name) == layer


@pytest.mark.parametrize(
    ("module", "attention", "forward"),
    [
        ("model.layers.0.self_attn.o_proj", True, False),
        ("transformer.h.0.attn.c_proj", True, False),
        ("transformer.h.0.mlp.c_proj", False, True),
        ("model.layers.0.self_attn.dense", True, False),
        ("model.layers.0.mlp.gate_up_proj", False, True),
        ("model.layers.0.mlp.gate", False, False),
    ],
)
def test_kinds_of_modules(module: str, attention: bool, forward: bool) -> None:
    assert (names.in_attention(module), names.in_feed_forward(module)) == (attention, forward)
