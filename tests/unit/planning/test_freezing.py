"""Freezing schedules settled for a model: windows, words, notes, arithmetic and memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tunesmith.errors import RecipeError
from tunesmith.planning.cost import flops_per_token, run_flops
from tunesmith.planning.freezing import (
    depths_of,
    freezing_notes,
    freezing_values,
    frozen_flops,
    schedule_of,
    timetable,
)
from tunesmith.planning.memory import optimiser_bytes
from tunesmith.planning.scope import scope_of
from tunesmith.planning.settings import Counts, Settings
from tunesmith.recipe.adapters import LoraSection, PartialSection
from tunesmith.recipe.codec import parse
from tunesmith.recipe.root import Recipe

COUNTS = Counts(rows=100, tokens=10_000, trained_tokens=2_000, attended=100.0)


@pytest.fixture
def settings(make_settings) -> Settings:
    made: Settings = make_settings()
    return made


def recipe(adapter: dict[str, Any] | None = None, **training: Any) -> Recipe:
    values = {"name": "r", "model": "m", "data": {"train": ["a.csv"]}, "training": training}
    return parse(values | ({"adapter": adapter} if adapter else {}))


def run(settings: Settings, steps: int, per_epoch: int, warmup: int = 0, **more: Any) -> Settings:
    return replace(settings, total_steps=steps, steps_per_epoch=per_epoch, warmup_steps=warmup, **more)


def test_depths_of_scopes(tiny) -> None:
    """Three layers; the tied head is the embedding."""
    assert depths_of(tiny, scope_of(tiny, PartialSection(last_layers=1, norms=True))) == [1, 2, 3, 4]
    assert depths_of(tiny, scope_of(tiny, PartialSection(head=True))) == [0]
    assert depths_of(tiny, scope_of(tiny, LoraSection(rank=2))) == [1, 2, 3]
    assert depths_of(tiny, scope_of(tiny, LoraSection(rank=2, train_tokens=[3]))) == [0, 1, 2, 3]


def test_unfreezing_by_epoch_goes_from_the_top_down(settings) -> None:
    """ULMFiT: the last layer first, then one more an epoch; the embeddings come last."""
    made = timetable(recipe(freezing={"type": "unfreeze_gradually"}), run(settings, 50, 10), [0, 1, 2, 3, 4], 3)
    assert made is not None
    assert {depth: window.first for depth, window in made.windows.items()} == {2: 10, 1: 20, 0: 30}
    assert {window.warmup for window in made.windows.values()} == {10}
    assert made.share(3, 0) == made.share(4, 0) == 1.0
    assert [made.share(2, step) for step in (9, 10, 14, 19, 20)] == [0.0, 0.1, 0.5, 1.0, 1.0]


def test_unfreezing_by_step_in_groups(settings) -> None:
    section = {"type": "unfreeze_gradually", "every": 7, "layers": 2, "start": 2, "warmup": 0}
    made = timetable(recipe(freezing=section), run(settings, 50, 10), range(8), 6)
    assert made is not None
    assert {depth: window.first for depth, window in made.windows.items()} == {4: 7, 3: 7, 2: 14, 1: 14, 0: 21}


def test_unfreezing_counts_only_what_trains(settings) -> None:
    made = timetable(recipe(freezing={"type": "unfreeze_gradually"}), run(settings, 50, 10), [2, 4], 6)
    assert made is not None
    assert {depth: window.first for depth, window in made.windows.items()} == {2: 10}


def test_freezeout_as_published(settings) -> None:
    """t_0 = 0.8, cubed: 0.512 at the lowest, 1 at the top, evenly between before cubing; rates alpha / t_i."""
    made = timetable(recipe(freezing={"type": "freezeout"}), run(settings, 110, 10, warmup=10), [0, 1, 2, 3, 4], 3)
    assert made is not None
    shares = [0.8**3, (0.8 + 0.2 / 3) ** 3, (0.8 + 0.4 / 3) ** 3, 1.0]
    for depth, share in enumerate(shares):
        window = made.windows[depth]
        assert window.end == pytest.approx(10 + 100 * share)
        assert window.share(10) == pytest.approx(1 / share)
        assert window.share(10 + round(50 * share)) == pytest.approx(0.5 / share, abs=0.03)
    assert made.share(0, 61) > 0.0
    assert made.share(0, 62) == 0.0
    assert made.windows[4] == made.windows[3]
    assert made.share(4, 109) > 0.0
    plain = timetable(
        recipe(freezing={"type": "freezeout", "cubed": False, "scale_rates": False}),
        run(settings, 100, 10), [0, 1, 2], 2,
    )  # fmt: skip
    assert plain is not None
    assert [plain.windows[depth].end for depth in (0, 1, 2)] == pytest.approx([80, 90, 100])
    assert {window.peak for window in plain.windows.values()} == {1.0}


def test_freezeout_has_the_same_area_in_every_layer(settings) -> None:
    """Scaled by 1 / t_i, the integral of the rate does not depend on t_i (Brock et al. 2017, §3.1)."""
    made = timetable(recipe(freezing={"type": "freezeout", "first": 0.5}), run(settings, 4000, 10), [0, 1, 2], 2)
    assert made is not None
    areas = [sum(made.share(depth, step) for step in range(4000)) for depth in (0, 1, 2)]
    assert areas == pytest.approx([areas[-1]] * 3, rel=2e-3)


def test_freezeout_replaces_the_schedule_and_goes_with_no_other() -> None:
    assert schedule_of(recipe(freezing={"type": "freezeout"})) == "constant"
    assert schedule_of(recipe(freezing={"type": "autofreeze"}, schedule="slanted")) == "slanted"
    with pytest.raises(RecipeError, match="a cosine of its own"):
        recipe(freezing={"type": "freezeout"}, schedule="linear")


def test_one_layer_alone_trains_to_the_end(settings) -> None:
    made = timetable(recipe(freezing={"type": "freezeout"}), run(settings, 40, 10), [3], 3)
    assert made is not None
    assert made.windows[3].end == 40
    head = timetable(recipe(freezing={"type": "freezeout"}), run(settings, 40, 10), [4], 3)
    assert head is not None
    assert head.windows[4].end == 40


def test_autofreeze_looks_at_whole_intervals(settings) -> None:
    made = timetable(recipe(freezing={"type": "autofreeze", "intervals": 4}), run(settings, 50, 10), range(5), 3)
    assert made is not None
    assert made.rule is not None
    assert (made.rule.interval, made.rule.percentile, made.rule.top) == (13, 50.0, 4)
    assert not made.windows


def test_values_say_rates_and_steps(tiny, settings) -> None:
    told = recipe({"type": "full"}, layer_rates={"decay": 0.5}, freezing={"type": "unfreeze_gradually", "layers": 2})
    values = freezing_values(told, tiny, scope_of(tiny, told.adapter), run(settings, 30, 10, learning_rate=1e-3))
    assert [(key, item.value, item.reason) for key, item in values.items()] == [
        ("layers.what follows the layers", 1e-3, "peak rate; trains in all steps"),
        ("layers.layer 2", 5e-4, "peak rate; trains in all steps"),
        ("layers.layer 1", 2.5e-4, "peak rate; trains in steps 11 to 30"),
        ("layers.layer 0", 1.25e-4, "peak rate; trains in steps 11 to 30"),
        ("layers.the embeddings", 6.25e-5, "peak rate; trains in steps 21 to 30"),
    ]
    told = recipe({"type": "full"}, freezing={"type": "unfreeze_gradually", "layers": 3, "every": 30})
    values = freezing_values(told, tiny, scope_of(tiny, told.adapter), run(settings, 30, 10, learning_rate=1e-3))
    assert {key: item.reason for key, item in values.items()} == {
        "layers.layer 2, what follows the layers": "peak rate; trains in all steps",
        "layers.the embeddings, layers 0 to 1": "never trains",
    }
    told = recipe({"type": "full"}, freezing={"type": "autofreeze", "intervals": 3})
    values = freezing_values(told, tiny, scope_of(tiny, told.adapter), run(settings, 30, 10))
    assert "every 10 steps from step 20 on" in values["layers.the embeddings, layers 0 to 2"].reason
    told = recipe({"type": "full"}, freezing={"type": "freezeout", "first": 0.5, "cubed": False})
    values = freezing_values(told, tiny, scope_of(tiny, told.adapter), run(settings, 30, 10, learning_rate=1e-3))
    assert values["layers.the embeddings"].value == 2e-3
    assert values["layers.the embeddings"].reason == "peak rate; trains in steps 1 to 15 by a cosine of its own"
    assert freezing_values(recipe(), tiny, scope_of(tiny, LoraSection()), settings) == {}


def test_what_never_trains_is_said(tiny, settings) -> None:
    told = recipe({"type": "full"}, freezing={"type": "unfreeze_gradually"}, early_stopping={})
    (never, stopping) = freezing_notes(told, tiny, scope_of(tiny, told.adapter), run(settings, 20, 10))
    assert never.startswith("the embeddings, layer 0 would be unfrozen after step 20")
    assert "before all layers are unfrozen" in stopping
    assert freezing_notes(recipe(), tiny, scope_of(tiny, LoraSection()), settings) == []
    told = recipe(
        {"type": "full"}, freezing={"type": "unfreeze_gradually", "every": 1}, guards={"spikes": {}}, adaptive_clip={}
    )
    (guards,) = freezing_notes(told, tiny, scope_of(tiny, told.adapter), run(settings, 20, 10))
    assert guards.endswith("training.guards.spikes and training.adaptive_clip may take that for a spike")


def test_arithmetic_is_that_of_what_trains(tiny, settings) -> None:
    """Half the steps with the last layer alone, half with all: the mean of the two."""
    told = recipe({"type": "full"}, freezing={"type": "unfreeze_gradually", "every": 20, "layers": 9})
    whole, chosen = scope_of(tiny, told.adapter), run(settings, 40, 40)
    top = scope_of(tiny, PartialSection(last_layers=1, patterns=["model.norm.weight"]))
    expected = (run_flops(tiny, whole, chosen, COUNTS) + run_flops(tiny, top, chosen, COUNTS)) / 2
    assert frozen_flops(told, tiny, whole, chosen, COUNTS) == pytest.approx(expected)
    plain = recipe({"type": "full"})
    assert frozen_flops(plain, tiny, whole, chosen, COUNTS) == run_flops(tiny, whole, chosen, COUNTS)
    assert flops_per_token(tiny, top, chosen, 100.0).per_token < flops_per_token(tiny, whole, chosen, 100.0).per_token


def test_sums_of_gradients_take_memory(settings) -> None:
    assert optimiser_bytes(replace(settings, freezing="autofreeze")) == optimiser_bytes(settings) + 4
    assert optimiser_bytes(replace(settings, freezing="freezeout")) == optimiser_bytes(settings)
