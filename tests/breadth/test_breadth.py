"""A fixed sample of families through the whole product; ``tools/write_breadth.py`` tries all there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.breadth.patience import Patience
from tests.breadth.tiny_configs import tiny_config

SAMPLE = [
    ("causal", "llama"), ("causal", "gpt_oss"), ("causal", "deepseek_v3"), ("causal", "mixtral"), ("causal", "qwen3_5"),
    ("causal", "mamba2"), ("causal", "bloom"), ("causal", "bart"), ("causal", "persimmon"), ("encoder", "deberta-v2"),
    ("encoder", "electra"), ("encoder", "fnet"), ("encoder", "albert"), ("encoder-decoder", "bart"), ("encoder-decoder", "pegasus"),
]  # fmt: skip
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "models.md"


@pytest.mark.slow
def test_a_sample_of_families_passes_every_stage() -> None:
    found = list(Patience(60).each(SAMPLE))
    assert {f"{item.kind} {item.model_type}": item.reason for item in found if not item.passed} == {}
    assert [(item.kind, item.model_type) for item in found] == SAMPLE
    ways = {item.model_type: item.packing for item in found}
    assert ways["llama"] == "documents in one row"
    assert "padded" in ways["qwen3_5"]
    assert "of one length" in ways["fnet"]


def test_the_page_names_at_least_a_hundred_that_pass() -> None:
    text = PAGE.read_text(encoding="utf-8")
    passed, tried, classes = map(int, re.findall(r"\*\*(\d+) of (\d+) pass, (\d+) classes", text)[0])
    listed = re.findall(
        r"^\| (\w+) \| `[^`]+` \| (?:in one row|run side by side|of one length)", text, flags=re.MULTILINE
    )
    assert len(listed) == passed
    assert len(set(listed)) == classes
    assert 100 <= classes < tried


def test_shrunk_configurations_are_small_whatever_their_kind() -> None:
    nested = tiny_config("causal", "qwen3_5")
    assert nested.get_text_config().hidden_size == 32
    assert nested.get_text_config().layer_types == ["linear_attention", "full_attention"]
