"""Methods that do not fit model, data or each other: refused by the plan, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.desk import Call, Write

UNFREEZE = {"type": "unfreeze_gradually", "every": 1}
NF4 = {"name": "tiny", "quantise": "nf4"}


@pytest.mark.parametrize(
    ("changes", "needles"),
    [
        ({"adapter": {"type": "gralora", "rank": 8, "blocks": 3}}, ["does not divide `rank` 8", "[adapter]", "hint: change one of the keys that it names"]),
        (
            {"adapter": {"type": "gralora", "rank": 10, "blocks": 5}},
            ["does not divide a side of", "[adapter.blocks]", "take a divisor of 2"],
        ),
        (
            {"adapter": {"type": "lora", "rank": 4, "rank_pattern": {"*query": 8}}},
            ["`*query` fits none", "[adapter.rank_pattern]", "model.layers.*.self_attn.q_proj"],
        ),
        (
            {"adapter": {"type": "lora", "rank": 4, "alpha_pattern": {"*query": 8.0}}},
            ["`*query` fits none", "[adapter.alpha_pattern]"],
        ),
        (
            {"adapter": {"type": "lora", "rank": 4, "also_train": ["*q_proj*"]}},
            ["cannot train fully and carry `lora`", "[adapter.also_train]", "out of `targets`"],
        ),
        ({"adapter": {"type": "prompt", "num_tokens": 127}}, ["no example has room", "[adapter.num_tokens]"]),
        (
            {"adapter": {"type": "prefix", "num_tokens": 120}},
            ["longer than the 8 tokens that 120 virtual tokens leave", "[adapter.num_tokens]", "give fewer"],
        ),
        ({"adapter": {"type": "partial"}}, ["nothing would train", "[adapter]"]),
        ({"adapter": {"type": "head"}}, ["nothing would train", "`objective: {type: classify}`"]),
        ({"model": NF4, "adapter": {"type": "full"}}, ["and `adapter.type: full` trains them", "[model.quantise]"]),
        (
            {"model": NF4, "adapter": {"type": "bottleneck", "also_train": ["*q_proj*"]}},
            ["packs `model.layers.0.self_attn.q_proj.weight`", "[adapter.also_train]", "stay unpacked"],
        ),
        (
            {"model": NF4, "adapter": {"type": "head"}, "objective": {"type": "classify"}, "evaluation": {}},
            ["goes with an adapter", "a head and an adapter together"],
        ),
        (
            {"adapter": {"type": "prefix", "num_tokens": 4}, "training__freezing": UNFREEZE},
            ["all that trains lies at one depth", "[training.freezing]"],
        ),
        (
            {"adapter": {"type": "partial", "last_layers": 1, "norms": False}, "training__freezing": {"type": "autofreeze"}},
            ["all that trains lies at one depth"],
        ),
        (
            {
                "adapter": {"type": "head"}, "objective": {"type": "classify"}, "evaluation": {},
                "training__freezing": {"type": "freezeout"},
            },
            ["all that trains lies at one depth"],
        ),
        (
            {"adapter": {"type": "full"}, "training__freezing": {**UNFREEZE, "start": 3}},
            ["train from the first step on", "[training.freezing.start]", "there are 3 depths"],
        ),
        (
            {"adapter": {"type": "full"}, "training__freezing": {"type": "freezeout", "first": 0.1}},
            ["1,000 times, to 1", "[training.freezing.first]", "`scale_rates: false`"],
        ),
        (
            {"adapter": {"type": "aflora"}, "training__freezing": {"type": "freezeout"}},
            ["error: `adapter.type: aflora` freezes", "at recipe.yaml\nhint: change one of the keys"],
        ),
    ],
)  # fmt: skip
def test_a_method_that_does_not_fit(desk: Path, call: Call, write: Write, changes: Any, needles: list[str]) -> None:
    call("plan", write(**changes)).refuses(2, *needles)


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": {"type": "full"}, "training__freezing": {**UNFREEZE, "start": 2}},
        {"adapter": {"type": "partial", "last_layers": 2}, "training__freezing": UNFREEZE},
        {"adapter": {"type": "full"}, "training__freezing": {"type": "freezeout", "first": 0.1, "scale_rates": False}},
        {"adapter": {"type": "full"}, "training__freezing": {"type": "freezeout", "first": 0.22}},
        {"model": NF4, "adapter": {"type": "lora", "also_train": ["*norm*", "*embed_tokens*"]}},
        {"adapter": {"type": "prefix", "num_tokens": 20}},
        {"adapter": {"type": "gralora", "rank": 8, "blocks": 4}},
    ],
)
def test_what_the_hint_says_mends_it(desk: Path, call: Call, write: Write, changes: Any) -> None:
    said = call("plan", write(**changes))
    assert said.code == 0, said.err


@pytest.mark.parametrize(
    "adapter", [{"type": "lora", "rank": 33}, {"type": "gralora", "rank": 34}, {"type": "aflora", "rank": 33}]
)
def test_a_rank_above_that_of_all_layers_is_refused(desk: Path, call: Call, write: Write, adapter: Any) -> None:
    """Sides of 32 and 48: no layer has a smaller side above 32."""
    said = call("plan", write(adapter=adapter))
    said.refuses(2, "more than the smaller side of every layer", "32 at most", "[adapter.rank]", "give at most 32")
    assert call("plan", write(adapter={**adapter, "rank": 32})).code == 0


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"type": "gralora", "rank": 16, "blocks": 2}, []),
        ({"type": "gralora", "rank": 24, "blocks": 2, "targets": "attention"}, ["`adapter.rank` is 24", "k_proj (2 of width 16)"]),
        ({"type": "gralora", "rank": 8, "hybrid_rank": 40, "targets": ["q_proj"]}, ["`adapter.hybrid_rank` is 40"]),
        ({"type": "lora", "rank": 4, "rank_pattern": {"*q_proj": 99}}, ["`adapter.rank_pattern` is 99", "side of q_proj (2 of width 32):"]),
    ],
)  # fmt: skip
def test_a_rank_above_the_layers_size_is_told_by_its_key(
    desk: Path, call: Call, write: Write, adapter: Any, said: list[str]
) -> None:
    """Sides of 32 and 48, keys and values 16 wide; a GraLoRA of rank r has blocks of r / k on sides of 1 / k."""
    text = " ".join(call("plan", write(adapter=adapter)).out.split())
    assert ("smaller side" in text) == bool(said)
    for needle in said:
        assert needle in text
