"""Single rows of stored matrices are read by hand and must be the numbers that the safetensors library gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tunesmith.errors import ModelError
from tunesmith.models.weight_rows import read_rows

ROWS = [6, 0, 6, 19]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_every_float_type(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    stored = {
        "a.before": torch.ones(3, dtype=torch.int8),  # what follows lies at no round offset
        "matrix": torch.randn(20, 7, generator=generator).to(dtype),
        "z.after": torch.randn(5, generator=generator),
    }
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = read_rows(tmp_path, "matrix", ROWS)
    assert found.dtype == "float32"
    assert torch.equal(torch.from_numpy(found.copy()), stored["matrix"][ROWS].float())


def test_rows_of_a_shard(tmp_path: Path) -> None:
    parts = {"one": torch.randn(4, 3), "two": torch.randn(5, 3)}
    for name, part in parts.items():
        save_file({name: part}, tmp_path / f"model-{name}.safetensors")
    index = {"weight_map": {name: f"model-{name}.safetensors" for name in parts}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, part in parts.items():
        assert torch.equal(torch.from_numpy(read_rows(tmp_path, name, [3, 1]).copy()), part[[3, 1]])


@pytest.mark.parametrize(
    ("name", "rows", "words"),
    [
        ("nothing", [0], "no weight file holds `nothing`"),
        ("matrix", [0, 20], r"rows 0 to 20 of `matrix` .* shape \[20, 7\]"),
        ("matrix", [-1], "rows -1 to -1"),
        ("vector", [0], r"shape \[7\]"),
        ("whole", [0], "type I32"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path: Path, name: str, rows: list[int], words: str) -> None:
    stored = {
        "matrix": torch.randn(20, 7), "vector": torch.randn(7), "whole": torch.ones(3, 3, dtype=torch.int32),
    }  # fmt: skip
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=words):
        read_rows(tmp_path, name, rows)
