"""AFLoRA's schedule settled for a number of steps: boundaries, shares, words, counts and memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tunesmith.engine.windows import ScoreRule
from tunesmith.errors import RecipeError
from tunesmith.planning.cost import flops_per_token
from tunesmith.planning.memory import estimate_memory, saved_bytes
from tunesmith.planning.scope import scope_of, trainable_parameters
from tunesmith.planning.scoring import boundaries, frozen_share, score_rule, scoring_notes, scoring_values
from tunesmith.planning.settings import Settings
from tunesmith.recipe.codec import parse
from tunesmith.recipe.low_rank import AfloraSection
from tunesmith.recipe.root import Recipe


def recipe(**adapter: Any) -> Recipe:
    return parse({"name": "r", "model": "m", "data": {"train": ["a.csv"]}, "adapter": {"type": "aflora", **adapter}})


@pytest.fixture
def settings(make_settings) -> Settings:
    made: Settings = make_settings()
    return made


def run(settings: Settings, steps: int, per_epoch: int) -> Settings:
    return replace(settings, total_steps=steps, steps_per_epoch=per_epoch)


def test_the_cubic_schedule() -> None:
    assert [frozen_share(x) for x in (-1.0, 0.0, 0.5, 1.0, 2.0)] == [0.0, 0.0, 0.875, 1.0, 1.0]


def test_boundaries_of_the_published_setting(settings) -> None:
    """20 epochs of 100 steps: nothing in the first, all after 600; r(t) = 1 - (1 - (t - 100)/500)³ where windows end."""
    found = boundaries(AfloraSection(), run(settings, 2000, 100))
    assert [step for step, _ in found] == [190, 270, 350, 440, 520, 600]
    assert [share for _, share in found] == pytest.approx([1 - (1 - (step - 100) / 500) ** 3 for step, _ in found])


@pytest.mark.parametrize("steps", [1, 2, 7, 30, 100, 999])
@pytest.mark.parametrize(
    "changes", [{}, {"boundaries": 1}, {"freeze_by": 1.0}, {"freeze_from": 0.0}, {"window": 1}, {"window": 64}]
)
def test_boundaries_rise_end_with_all_and_are_few(settings, steps: int, changes: dict[str, Any]) -> None:
    section = AfloraSection(**changes)
    found = boundaries(section, run(settings, steps, 10))
    at, shares = [step for step, _ in found], [share for _, share in found]
    assert 1 <= len(found) <= section.boundaries <= 6
    assert at == sorted(set(at))
    assert shares == sorted(shares)
    assert all(0 < share <= 1 for share in shares)
    assert shares[-1] == 1.0
    assert at[0] >= 1
    assert at[-1] == max(1, -(-round(section.freeze_by * steps * 1000) // 1000))
    assert all(step % section.window == 0 for step in at[:-1])


def test_an_epoch_that_is_too_long_to_wait_for_is_cut_to_half_the_way(settings) -> None:
    """Of 3 epochs the first ends after all should be frozen."""
    first, _ = boundaries(AfloraSection(window=1), run(settings, 300, 100))[0]
    assert first == 45 + 8  # 45 + 45/6, rounded up


def test_given_shares_of_the_steps(settings) -> None:
    """The authors' setting for GSM8K: from 0.3 to 0.7 of the run."""
    found = boundaries(AfloraSection(freeze_from=0.3, freeze_by=0.7, boundaries=4), run(settings, 1000, 333))
    assert found == ((400, frozen_share(0.25)), (500, frozen_share(0.5)), (600, frozen_share(0.75)), (700, 1.0))


def test_the_rule_is_what_the_recipe_says(settings) -> None:
    made = score_rule(recipe(procedure="paper", window=5, level_decay=0.5, spread_decay=0.6), run(settings, 100, 10))
    assert isinstance(made, ScoreRule)
    assert (made.pooled, made.window, made.level_decay, made.spread_decay) == (False, 5, 0.5, 0.6)
    assert score_rule(recipe(), run(settings, 100, 10)).pooled  # type: ignore[union-attr]
    plain = parse({"name": "r", "model": "m", "data": {"train": ["a.csv"]}})
    assert score_rule(plain, settings) is None


def test_start_and_end_are_counted(tiny) -> None:
    """Three layers, hidden 32, k and v 16, feed-forward 48, rank 4: matrices 4 (I + O), vectors 4 + O."""
    forward = 3 * 3 * 4 * (32 + 48)
    attention = 3 * 4 * (2 * (32 + 32) + 2 * (32 + 16))
    vectors = 3 * (7 * 4 + 2 * 48 + 32 + 2 * 32 + 2 * 16)
    for which, trained, fixed in (
        ("feed-forward", forward, attention), ("all", forward + attention, 0), ("none", 0, forward + attention),
    ):  # fmt: skip
        section = AfloraSection(train_projections=which)
        scope, count = scope_of(tiny, section), trainable_parameters(tiny, section)
        assert (scope.scored, scope.fixed) == (trained, fixed)
        assert count.trainable == vectors + trained
        assert count.at_end == (vectors if trained else None)


def test_memory_and_arithmetic_count_scores_and_what_never_trains(tiny, settings) -> None:
    section = AfloraSection()
    scope = scope_of(tiny, section)
    made = estimate_memory(tiny, scope, settings, 1 << 40)
    bare = estimate_memory(tiny, replace(scope, scored=0, fixed=0), settings, 1 << 40)
    assert made.parts["optimiser"] - bare.parts["optimiser"] == 12 * scope.scored
    assert made.parts["weights"] - bare.parts["weights"] == 4 * scope.fixed
    assert (
        saved_bytes(settings, scope)
        == 4 * (scope.num_trainable + scope.fixed) + 8 * scope.num_trainable + 12 * scope.scored
    )
    more = (
        flops_per_token(tiny, scope, settings, 64).per_token
        - flops_per_token(tiny, replace(scope, fixed=0), settings, 64).per_token
    )
    assert more == 4 * scope.fixed


def test_the_plan_says_steps_shares_and_rates(tiny, settings) -> None:
    made, scope = recipe(), scope_of(tiny, AfloraSection())
    values = scoring_values(made, scope, replace(run(settings, 2000, 100), learning_rate=2e-4))
    assert values["adapter.vector_rate"].value == pytest.approx(2e-4 * made.adapter.vector_rate)  # type: ignore[union-attr]
    assert values["adapter.procedure"].value == "released"
    assert values["adapter.frozen_from"].value.startswith("191 (45%), 271 (71%), ")
    assert "from step 101 on" in values["adapter.frozen_from"].reason
    assert "adapter.procedure" not in scoring_values(made, replace(scope, scored=0), settings)


@pytest.mark.parametrize(
    ("adapter", "steps", "words"),
    [
        ({}, 2000, None),
        ({"train_projections": "none"}, 2000, "only the vectors train"),
        ({"targets": "attention"}, 2000, "none of `targets` is feed-forward"),
        ({"freeze_by": 1.0}, 2000, "not all frozen before the run ends"),
        ({}, 20, "before the first window of 10 steps"),
    ],
)
def test_what_does_not_do_what_was_asked_is_said(
    tiny, settings, adapter: dict[str, Any], steps: int, words: str | None
) -> None:
    made = recipe(**adapter)
    found = scoring_notes(made, tiny, scope_of(tiny, made.adapter), run(settings, steps, 100))
    assert found == [] if words is None else words in found[0]


def test_a_schedule_of_layers_beside_it_is_refused() -> None:
    values = {"name": "r", "model": "m", "data": {"train": ["a.csv"]}, "adapter": {"type": "aflora"}}
    with pytest.raises(RecipeError, match="freezes by a rule of its own"):
        parse(values | {"training": {"freezing": {"type": "freezeout"}}})
