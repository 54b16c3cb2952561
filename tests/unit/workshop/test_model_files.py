"""Whole models on disk: what others need to use them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.workshop.model_files import _name_stops


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
