"""A loss of another level than validation's is told, a plain one is not."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.planning.losses import loss_notes
from tunesmith.recipe.codec import parse
from tunesmith.recipe.root import Recipe


def _recipe(**objective: Any) -> Recipe:
    return parse({"name": "r", "model": "m", "data": {"train": "a.jsonl"}, "objective": objective})


@pytest.mark.parametrize("kind", ["sft", "clm"])
def test_a_plain_loss_needs_no_word(kind: str) -> None:
    assert loss_notes(_recipe(type=kind)) == []
    assert loss_notes(_recipe(type=kind, label_smoothing=0.0, focal_gamma=0)) == []


@pytest.mark.parametrize(("key", "value"), [("label_smoothing", 0.1), ("focal_gamma", 2)])
def test_another_level_is_told_with_key_and_value(key: str, value: float) -> None:
    (said,) = loss_notes(_recipe(type="sft", **{key: value}))
    assert f"{key} {value:g}" in said
    assert "`nll`" in said
