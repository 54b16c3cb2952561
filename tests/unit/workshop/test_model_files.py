"""Whole models on disk: what others need to use them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import family
from transformers import AutoModelForCausalLM

from tunesmith.workshop.model_files import _name_stops, write_model


@pytest.mark.parametrize(
    ("there", "stops", "written"),
    [
        ({"eos_token_id": 0, "pad_token_id": 1}, {3, 0}, {"eos_token_id": [0, 3], "pad_token_id": 1}),
        ({"eos_token_id": [5, 2]}, {2}, {"eos_token_id": [5, 2]}),
        ({}, {7}, {"eos_token_id": 7}),
        (None, {7, 9}, {"eos_token_id": [7, 9]}),
    ],
)
def test_the_end_of_turn_is_named_where_others_stop_by_it(
    tmp_path: Path, there: dict[str, object] | None, stops: set[int], written: dict[str, object]
) -> None:
    path = tmp_path / "generation_config.json"
    if there is not None:
        path.write_text(json.dumps(there), encoding="utf-8")
    _name_stops(path, stops)
    assert json.loads(path.read_text(encoding="utf-8")) == written


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_weight_is_stored_once_and_everybody_may_read_it(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    model = family("llama", tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "out").mkdir()
    write_model(tmp_path / "out", model, tmp_path / "base", dtype)
    path = tmp_path / "out" / "model.safetensors"
    stored = load_file(path)
    distinct = {id(parameter): parameter for parameter in model.parameters()}
    assert ("lm_head.weight" in stored) is not tied
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    assert sum(tensor.numel() for tensor in stored.values()) == sum(part.numel() for part in distinct.values())
    assert set(stored) == set(load_file(tmp_path / "base" / "model.safetensors"))
    plain = tmp_path / "plain.txt"
    plain.write_text("as any new file")
    assert path.stat().st_mode == plain.stat().st_mode
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype)
    trained = model.state_dict()
    assert all(torch.equal(tensor, trained[name].to(dtype)) for name, tensor in again.state_dict().items())
