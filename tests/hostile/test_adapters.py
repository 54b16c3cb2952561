"""Adapter folders of strangers: expressions that hang, shapes that lie, links, pickles, names of other bases."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.hostile.bounds import GENTLE, answer, refusal
from tests.hostile.folders import header, write_model
from tests.hostile.test_model_files import JSON
from tunesmith.adapters import peft_patterns
from tunesmith.adapters.lora import LoraAdapter
from tunesmith.adapters.peft_files import CONFIGURATION, WEIGHTS, attach_read, read_adapter
from tunesmith.adapters.peft_layout import ROWS_KEY
from tunesmith.errors import ModelError
from tunesmith.expressions import slow
from tunesmith.models.loading import load_model

LAYER = "model.layers.0.mlp.gate_proj"
PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["gate_proj"]}
TENSORS = {
    f"base_model.model.{LAYER}.lora_A.weight": torch.ones(2, 8),
    f"base_model.model.{LAYER}.lora_B.weight": torch.ones(12, 2),
}


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIGURATION).write_text(json.dumps(PLAIN | changes), encoding="utf-8")
    save_file(TENSORS if tensors is None else tensors, folder / WEIGHTS)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


def test_the_adapter_is_fine_to_begin_with(folder: Path, tmp_path: Path) -> None:
    settings, state = read_adapter(folder)
    assert settings.ranks == {LAYER: (2, 4.0)}
    assert isinstance(attach_read(load_model(write_model(tmp_path / "m")).hf, settings, state), LoraAdapter)


@GENTLE
@given(
    changes=st.dictionaries(
        st.sampled_from(["peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "alpha_pattern", "rank_pattern", "init_lora_weights", "target_modules", "auto_mapping", "base_model_name_or_path", "modules_to_save", "use_dora", "megatron_core", "corda_config", "__class__", "trainable_token_indices"]),
        JSON, min_size=1,
    )
)  # fmt: skip
@example(changes={"r": 10**9})
@example(changes={"r": 0})
@example(changes={"lora_alpha": float("inf")})
@example(changes={"lora_alpha": 10**400})
@example(changes={"alpha_pattern": {"gate_proj": float("nan")}})
@example(changes={"alpha_pattern": {"gate_proj": 10**400}})
@example(changes={"alpha_pattern": {"(": 1}})
@example(changes={"alpha_pattern": ["gate_proj"]})
@example(changes={"auto_mapping": {"base_model_class": "evil", "parent_library": "os"}})
@example(changes={"base_model_name_or_path": "../../../etc"})
@example(changes={"target_modules": "(a+)+b"})
def test_any_value_in_a_configuration(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = write_adapter(tmp_path / "adapter", **changes)
    read = answer(lambda: read_adapter(folder))
    if not isinstance(read, ModelError):
        ((rank, alpha),) = read[0].ranks.values()
        assert rank == 2
        assert 0 < alpha < 1e10


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+b",
        r"(.*)*x",
        r"(a|a)*b",
        r".*.*.*.*=",
        r"(\w+\s?)*$",
        r"(?:a?){30}a{30}",
        "a?" * 30 + "a" * 30,
        "(" * 500,
        "a" * 400,
    ],
)
def test_patterns_that_take_for_ever_are_refused_unrun(tmp_path: Path, pattern: str) -> None:
    name = "a" * 60
    tensors = {
        f"base_model.model.{name}.lora_A.weight": torch.ones(2, 8),
        f"base_model.model.{name}.lora_B.weight": torch.ones(12, 2),
    }
    folder = write_adapter(tmp_path / "adapter", tensors, alpha_pattern={pattern: 8})
    assert "alpha_pattern" in refusal(lambda: read_adapter(folder)).where


@pytest.mark.parametrize(
    ("pattern", "alpha"),
    [
        ("gate_proj", 8.0), (LAYER, 8.0), (r".*gate_proj", 8.0), (r"^model\.layers\.\d+\.mlp\.(gate|up)_proj", 8.0),
        (r"model.layers.0.*", 8.0), ("q_proj", 4.0), (r"(gate|up)_proj", 8.0), (r"layers\.[0-9]+\.mlp\.gate_proj", 8.0),
    ],
)  # fmt: skip
def test_patterns_that_people_write_fit_as_in_peft(tmp_path: Path, pattern: str, alpha: float) -> None:
    folder = write_adapter(tmp_path / "adapter", alpha_pattern={pattern: 8})
    settings, _ = read_adapter(folder)
    assert settings.ranks[LAYER][1] == alpha
    assert (re.match(rf"(.*\.)?({pattern})$", LAYER) is not None) == (alpha == 8.0)  # PEFT's own line


@GENTLE
@given(
    pattern=st.text(alphabet="ab()[]{}|*+?^\\,1.$-", max_size=24), name=st.text(alphabet="ab.", min_size=1, max_size=60)
)
def test_any_pattern_is_refused_or_quick(pattern: str, name: str) -> None:
    def use() -> float:
        return peft_patterns.first_match(peft_patterns.compiled({pattern: 2}), name, 1.0)

    with suppress(peft_patterns.DangerousPattern):
        assert answer(use, 5.0) in (1.0, 2.0)


def test_slow_says_what_is_slow() -> None:
    assert slow("(a+)+", 6, 100) == "repeats a group"
    assert slow("a*" * 7, 6, 100) == "has more than 6 repeats in a row"
    assert slow("a" * 101, 6, 100) == "has more than 100 characters"
    assert slow("(?:ab)+[c-e]*d?|x*y*z*", 3, 100) == ""


@pytest.mark.parametrize(
    "tensors",
    [
        {"a.lora_A.weight": torch.ones(()), "a.lora_B.weight": torch.ones(2, 2)},
        {"a.lora_A.weight": torch.ones(0, 8), "a.lora_B.weight": torch.ones(12, 0)},
        {"a.lora_A.weight": torch.ones(2), "a.lora_B.weight": torch.ones(2)},
        {"a.lora_A.weight": torch.ones(2, 2, 2), "a.lora_B.weight": torch.ones(2, 2)},
        {"a" * 400 + ".lora_A.weight": torch.ones(2, 8), "a" * 400 + ".lora_B.weight": torch.ones(12, 2)},
        {"a.lora_A.weight": torch.ones(2, 8)},
        {"a.lora_magnitude_vector": torch.ones(2, 8)},
        {"x": torch.ones(1)},
        {f"base_model.model.model.embed_tokens.{ROWS_KEY.strip('.')}": torch.ones(()), **TENSORS},
        {},
    ],
)
def test_tensors_that_are_no_adapter(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    folder = write_adapter(tmp_path / "adapter", tensors)
    assert isinstance(refusal(lambda: read_adapter(folder)), ModelError)


@pytest.mark.parametrize("shape", [(3, 8), (2, 9), (10, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_tensors_of_another_model(tmp_path: Path, shape: tuple[int, int], dtype: torch.dtype) -> None:
    tensors = {**TENSORS, f"base_model.model.{LAYER}.lora_A.weight": torch.ones(shape, dtype=dtype)}
    settings, state = read_adapter(write_adapter(tmp_path / "adapter", tensors))
    model = load_model(write_model(tmp_path / "m")).hf
    assert isinstance(refusal(lambda: attach_read(model, settings, state)), ModelError)


@GENTLE
@given(payload=st.binary(max_size=64))
@example(payload=header({"a.lora_A.weight": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"0"))
@example(payload=header({"a.lora_A.weight": {"dtype": "U16", "shape": [1, 1], "data_offsets": [0, 2]}}, b"00"))
@example(payload=header({}, length=2**63))
def test_any_bytes_as_weights(tmp_path: Path, payload: bytes) -> None:
    folder = write_adapter(tmp_path / "adapter")
    (folder / WEIGHTS).write_bytes(payload)
    assert isinstance(refusal(lambda: read_adapter(folder)), ModelError)


@pytest.mark.parametrize("payload", [b"[" * 100_000, b"[]", b"{", b"\xff", b"null"])
def test_any_bytes_as_a_configuration(folder: Path, payload: bytes) -> None:
    (folder / CONFIGURATION).write_bytes(payload)
    assert CONFIGURATION in refusal(lambda: read_adapter(folder)).where


def test_a_configuration_that_is_a_link_out(folder: Path, tmp_path: Path) -> None:
    (folder / CONFIGURATION).rename(tmp_path / "secret.json")
    (folder / CONFIGURATION).symlink_to(tmp_path / "secret.json")
    assert "leads out" in refusal(lambda: read_adapter(folder)).what


def test_very_many_patterns_for_very_many_layers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft_patterns, "MOST_TRIES", 3)
    (folder / CONFIGURATION).write_text(
        json.dumps({**PLAIN, "alpha_pattern": {f"a{number}": 1 for number in range(4)}})
    )
    assert "4 patterns" in refusal(lambda: read_adapter(folder)).what
