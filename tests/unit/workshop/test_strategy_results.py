"""What a comparison makes of scores: pairs by seed, and what it says where seeds are missing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tunesmith.evaluation.seeds import SeededRows
from tunesmith.workshop.strategy_results import _hold_against, _missing_seeds

SCORES = np.random.default_rng(0).random((3, 40))


def _against(own: list[int], reference: list[int]) -> Any:
    """A strategy that scores as the reference does under each seed, but for 0.25 more."""
    rows = {
        "lora": SeededRows(SCORES[reference], np.ones(40)),
        "full": SeededRows(SCORES[own] + 0.25, np.ones(40)),
    }
    listed: list[dict[str, Any]] = [{"name": "lora"}, {"name": "full"}]
    contest: Any = SimpleNamespace(reference="lora", measure=SimpleNamespace(better=1))
    _hold_against(listed, rows, {"lora": reference, "full": own}, contest)
    return listed[1]["against"]


@pytest.mark.parametrize(("own", "reference"), [([0, 1, 2], [0, 1, 2]), ([0, 2], [0, 1, 2]), ([0, 1, 2], [0, 2])])
def test_seeds_are_paired_by_what_they_are(own: list[int], reference: list[int]) -> None:
    """The difference is 0.25 in every row under the same seed, and so in every resample; under two seeds it would not be."""
    against = _against(own, reference)
    assert against["difference"]["low"] == pytest.approx(0.25)
    assert against["difference"]["high"] == pytest.approx(0.25)
    assert against["verdict"] == "better"


def test_seeds_that_a_guard_stopped_are_named() -> None:
    said = _missing_seeds({"lora": [0, 1, 2], "full": [0, 2]}, (0, 1, 2))
    assert len(said) == 1
    assert said[0].startswith("full: a guard stopped seed 1 at its best rate")
