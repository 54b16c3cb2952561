"""Derived values: the rule, its number and its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tunesmith.errors import HardwareMissing, RecipeError
from tunesmith.planning import defaults
from tunesmith.planning.machine import Gpu
from tunesmith.planning.settings import Counts
from tunesmith.recipe.codec import parse
from tunesmith.recipe.root import Recipe


def recipe(**sections) -> Recipe:
    return parse({"name": "r", "model": "m", "data": {"train": ["x.jsonl"]}, **sections})


def facts_of_width(facts, width: int):
    return replace(facts, hidden_size=width)


@pytest.mark.parametrize(
    ("adapter", "width", "rate"),
    [
        ("lora", 4096, 2.9e-4),  # DESIGN §4
        ("lora", 256, 2.5e-3),  # DESIGN §4
        ("lora", 2000, 5e-4),
        ("full", 4096, 2.9e-5),
        ("full", 1025, 8.4e-5),  # 5e-4 (2000/1025)^0.781 = 8.43e-4, a tenth
        ("full", 1024, 3.4e-4),  # 8.43e-4, two fifths
        ("full", 256, 1.0e-3),
    ],
)
def test_rate_by_scope_and_width(tiny, adapter: str, width: int, rate: float) -> None:
    derived = defaults.derive_rate(recipe(adapter={"type": adapter}), facts_of_width(tiny, width))
    assert derived.value == pytest.approx(rate, rel=1e-9)
    assert f"5e-4 · (2000/{width})^0.781" in derived.reason


def test_partial_takes_the_rate_of_full(tiny) -> None:
    partial = recipe(adapter={"type": "partial", "last_layers": 1})
    assert (
        defaults.derive_rate(partial, tiny).value == defaults.derive_rate(recipe(adapter={"type": "full"}), tiny).value
    )


def test_stated_rate_and_sgd(tiny) -> None:
    stated = defaults.derive_rate(recipe(training={"learning_rate": 0.123}), tiny)
    assert (stated.value, stated.reason) == (0.123, "given in the recipe")
    assert "SGD" in defaults.derive_rate(recipe(training={"optimiser": "sgd"}), tiny).reason


def test_states_are_moved_to_the_host_from_a_card_only(tiny, cpu) -> None:
    made = recipe(training={"offload_optimiser": True})
    with pytest.raises(HardwareMissing, match="on cpu they are there already") as caught:
        defaults.derive_device(made, cpu)
    assert caught.value.where == "training.offload_optimiser"
    assert "adamw_8bit" in caught.value.hint
    with pytest.raises(RecipeError, match="moves AdamW's moments"):
        recipe(training={"offload_optimiser": True, "optimiser": "sgd"})


def test_round_to_two_digits() -> None:
    assert [defaults.round_to(value) for value in (0.00285714, 994.0, 0.0995)] == [0.0029, 990.0, 0.1]


@pytest.mark.parametrize(
    ("limit", "context", "words"), [(1024, 1024, "own limit"), (131072, 4096, "131,072, capped at 4,096")]
)
def test_context(tiny, limit: int, context: int, words: str) -> None:
    derived = defaults.derive_context(recipe(), replace(tiny, context=limit))
    assert derived.value == context
    assert words in derived.reason


def test_context_beyond_the_model(tiny) -> None:
    asked = recipe(model={"name": "m", "context": 200})
    with pytest.raises(RecipeError, match="at most 128 tokens"):
        defaults.derive_context(asked, tiny)
    assert defaults.derive_context(asked, replace(tiny, context_stated=False)).value == 200


def steps(training: dict, rows: int) -> tuple[int, int, float]:
    made = recipe(training=training)
    per_epoch = defaults.derive_steps_per_epoch(made, Counts(rows, rows, rows)).value
    epochs = defaults.derive_epochs(made, per_epoch).value
    return per_epoch, defaults.derive_steps(made, per_epoch, epochs).value, epochs


@pytest.mark.parametrize(
    ("training", "rows", "expected"),
    [
        ({}, 320, (10, 30, 3.0)),
        ({}, 321, (11, 33, 3.0)),
        ({"epochs": 1.5, "batch_size": 100}, 321, (4, 6, 1.5)),
        ({"epochs": 0.1}, 3200, (100, 10, 0.1)),
        ({"epochs": 0.01}, 32, (1, 1, 0.01)),
        ({"max_steps": 25}, 320, (10, 25, 2.5)),
    ],
)
def test_steps(training: dict, rows: int, expected: tuple[int, int, float]) -> None:
    assert steps(training, rows) == expected


@pytest.mark.parametrize(
    ("training", "total", "expected"),
    [
        ({}, 1000, 30),
        ({}, 10, 1),
        ({"warmup": 0.0}, 10, 0),
        ({"warmup": 0}, 10, 0),
        ({"warmup": 5}, 10, 5),
        ({"warmup": 50}, 10, 10),
        ({"warmup": 0.07}, 100, 7),
        ({"schedule": "slanted"}, 100, 10),
    ],
)
def test_warmup(training: dict, total: int, expected: int) -> None:
    assert defaults.derive_warmup(recipe(training=training), total).value == expected


@pytest.mark.parametrize(("total", "cadence"), [(1, 1), (9, 1), (10, 1), (11, 2), (1000, 100)])
def test_cadence_is_a_tenth_of_the_run(total: int, cadence: int) -> None:
    assert defaults.derive_cadence(None, total).value == cadence
    assert defaults.derive_cadence(7, total).value == 7


def test_precision_on_cpu(cpu) -> None:
    assert defaults.derive_precision(recipe(), cpu).value == "fp32"
    assert "no AMX" in defaults.derive_precision(recipe(), cpu).reason
    assert defaults.derive_precision(recipe(), replace(cpu, amx=True, bf16=True)).value == "bf16"
    asked = defaults.derive_precision(recipe(training={"precision": "bf16"}), cpu)
    assert asked.value == "bf16"
    assert "slower" in asked.reason
    with pytest.raises(HardwareMissing, match="fp16 training needs a CUDA device"):
        defaults.derive_precision(recipe(training={"precision": "fp16"}), cpu)


def test_precision_on_cuda(h200) -> None:
    assert defaults.derive_precision(recipe(), h200).value == "bf16"
    old = replace(h200, bf16=False, gpus=(Gpu("Tesla T4", 1 << 34, (7, 5)),))
    assert defaults.derive_precision(recipe(), old).value == "fp16"
    assert "7.5" in defaults.derive_precision(recipe(), old).reason
    with pytest.raises(HardwareMissing, match="no bf16"):
        defaults.derive_precision(recipe(training={"precision": "bf16"}), old)


@pytest.mark.parametrize(
    ("adapter", "dtype"),
    [
        ({"type": "lora"}, "bf16"),
        ({"type": "lora", "also_train": ["*embed*"]}, "fp32"),
        ({"type": "full"}, "fp32"),
        ({"type": "partial", "last_layers": 1}, "fp32"),
    ],
)
def test_weights_that_train_stay_in_fp32(adapter: dict, dtype: str) -> None:
    assert defaults.derive_weights_dtype(recipe(adapter=adapter), "bf16").value == dtype
    assert defaults.derive_weights_dtype(recipe(adapter=adapter), "fp32").value == "fp32"


def test_determinism(cpu, h200) -> None:
    assert defaults.derive_deterministic(recipe(), cpu).value is True
    assert defaults.derive_deterministic(recipe(), h200).value is False
    assert defaults.derive_deterministic(recipe(machine={"deterministic": True}), h200).value is True


def test_overlong() -> None:
    assert defaults.derive_overlong(recipe()).value == "error"
    assert defaults.derive_overlong(recipe(objective={"type": "clm"})).value == "split"
    assert defaults.derive_overlong(recipe(data={"train": ["x"], "overlong": "drop"})).value == "drop"
