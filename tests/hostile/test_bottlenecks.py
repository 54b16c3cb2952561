"""Folders of bottleneck adapters by strangers: any value in the configuration, any name and shape of a tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.hostile.bounds import GENTLE, answer, refusal
from tests.hostile.folders import write_model
from tests.hostile.test_model_files import JSON
from tunesmith.adapters.bottleneck import BottleneckAdapter
from tunesmith.adapters.peft_files import CONFIGURATION, WEIGHTS, attach_read, read_adapter
from tunesmith.errors import ModelError
from tunesmith.models.loading import load_model

SITE = "model.layers.0.mlp"
PART: dict[str, Any] = {"placement": "parallel", "width": 2, "activation": "relu", "scaling": 4.0}
PLAIN: dict[str, Any] = {"peft_type": "TUNESMITH_BOTTLENECK", "format": 1, "parts": {SITE: PART}}
TENSORS = {
    f"{SITE}.down.weight": torch.ones(2, 8),
    f"{SITE}.down.bias": torch.ones(2),
    f"{SITE}.up.weight": torch.ones(8, 2),
    f"{SITE}.up.bias": torch.ones(8),
}


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIGURATION).write_text(json.dumps(PLAIN | changes), encoding="utf-8")
    save_file(TENSORS if tensors is None else tensors, folder / WEIGHTS)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return load_model(write_model(tmp_path / "m")).hf


def test_the_adapter_is_fine_to_begin_with(model: Any, tmp_path: Path) -> None:
    assert isinstance(attach_read(model, *read_adapter(write_adapter(tmp_path / "a"))), BottleneckAdapter)


@GENTLE
@given(
    changes=st.dictionaries(
        st.sampled_from(["peft_type", "format", "parts", "token_rows", "base_model_name_or_path", "auto_mapping", "__class__"]),
        JSON, min_size=1,
    )
)  # fmt: skip
@example(changes={"parts": {"": PART}})
@example(changes={"parts": {SITE: PART, "a" * 10_000: PART}})
@example(changes={"token_rows": {"model.embed_tokens": [10**30]}})
@example(changes={"token_rows": [[]]})
@example(changes={"base_model_name_or_path": "../../../etc"})
def test_any_value_in_a_configuration(tmp_path: Path, changes: dict[str, Any]) -> None:
    read = answer(lambda: read_adapter(write_adapter(tmp_path / "a", **changes)))
    if not isinstance(read, ModelError):
        assert list(read[0].parts) == [SITE]


@GENTLE
@given(values=st.dictionaries(st.sampled_from([*PART, "layer_norm", "dropout", "more"]), JSON, min_size=1))
@example(values={"width": 10**12})
@example(values={"width": True})
@example(values={"scaling": 10**400})
@example(values={"scaling": float("nan")})
def test_any_value_in_a_part(tmp_path: Path, values: dict[str, Any]) -> None:
    read = answer(lambda: read_adapter(write_adapter(tmp_path / "a", parts={SITE: PART | values})))
    if not isinstance(read, ModelError):
        part = read[0].parts[SITE]
        assert 0 < part.scaling < float("inf")
        assert 0 < part.width <= 1 << 24


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        ("down.weight", torch.ones(2, 9)),
        ("down.weight", torch.ones(3, 8)),
        ("down.weight", torch.ones(16)),
        ("up.bias", torch.ones(8, 1)),
        ("up.weight", torch.ones(2, 8)),
        ("down.bias", torch.ones(0)),
    ],
)
def test_shapes_that_lie(model: Any, tmp_path: Path, key: str, tensor: torch.Tensor) -> None:
    settings, state = read_adapter(write_adapter(tmp_path / "a", TENSORS | {f"{SITE}.{key}": tensor}))
    assert isinstance(refusal(lambda: attach_read(model, settings, state)), ModelError)


def test_a_tensor_for_the_whole_of_the_base(model: Any, tmp_path: Path) -> None:
    """Parameters beside the parts are those of the model, in its shapes."""
    for key in ("model.layers.9.mlp.up_proj.weight", "model.norm.weight", "lm_head.bias", "config"):
        settings, state = read_adapter(write_adapter(tmp_path / "a", TENSORS | {key: torch.ones(3)}))
        assert isinstance(refusal(lambda: attach_read(model, settings, state)), ModelError)  # noqa: B023


def test_pickled_weights(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    assert "pickled" in refusal(lambda: read_adapter(folder)).what
