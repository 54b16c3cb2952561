"""Virtual tokens in a plan: room in the context, start text, pass sizes, arithmetic, rates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tunesmith.embedded import DEFAULT_MODEL
from tunesmith.errors import RecipeError
from tunesmith.models import names
from tunesmith.planning import defaults
from tunesmith.planning.cost import flops_per_token, run_flops
from tunesmith.planning.plan import Plan, make_plan
from tunesmith.planning.prompts import window_notes
from tunesmith.planning.scope import scope_of
from tunesmith.planning.settings import Counts
from tunesmith.recipe.codec import parse
from tunesmith.recipe.root import Recipe

COUNTS = Counts(rows=320, tokens=6400, trained_tokens=1000, longest=40, attended=20.0)


def recipe(adapter: dict[str, object], **sections: object) -> Recipe:
    values = {"name": "r", "model": "m", "data": {"train": ["rows.jsonl"]}, "adapter": adapter, **sections}
    return parse(values)


@pytest.fixture
def plan_of(tmp_path: Path, cpu):
    """plan_of(adapter) -> the plan of a small recipe on the embedded model."""

    def make(adapter: dict[str, object], **sections: object) -> Plan:
        (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
        return make_plan(recipe(adapter, model=DEFAULT_MODEL, **sections).placed(tmp_path), cpu, COUNTS)

    return make


@pytest.mark.parametrize(
    ("limit", "taken", "room"), [(128, 20, 108), (4096, 20, 4076), (4110, 20, 4090), (8192, 20, 4096), (128, 126, 2)]
)
def test_examples_have_what_virtual_tokens_leave(tiny, limit: int, taken: int, room: int) -> None:
    derived = defaults.derive_context(recipe({"type": "prompt", "num_tokens": taken}), replace(tiny, context=limit))
    assert derived.value == room
    assert f"less {taken} virtual tokens" in derived.reason


@pytest.mark.parametrize("taken", [127, 128, 5000])
def test_a_prompt_that_leaves_no_room_is_refused(tiny, taken: int) -> None:
    with pytest.raises(RecipeError, match="no example has room") as caught:
        defaults.derive_context(recipe({"type": "prompt", "num_tokens": taken}), tiny)
    assert "adapter.num_tokens" in caught.value.where


def test_a_context_that_was_asked_for_must_fit_behind_them(tiny) -> None:
    """108 of the 128 positions are left; a resolved recipe names 108 and plans the same."""
    prompt = {"type": "prompt", "num_tokens": 20}
    assert defaults.derive_context(recipe(prompt, model={"name": "m", "context": 108}), tiny).value == 108
    with pytest.raises(RecipeError, match="behind 20 virtual tokens the model reads at most 108"):
        defaults.derive_context(recipe(prompt, model={"name": "m", "context": 109}), tiny)


def test_a_context_that_no_file_states_is_taken_as_asked(tiny) -> None:
    unstated = replace(tiny, context_stated=False)
    assert defaults.derive_context(recipe({"type": "prompt", "num_tokens": 500}), unstated).value == unstated.context


@pytest.mark.parametrize(
    ("count", "ids", "words"), [(3, 3, "of which the first 3"), (5, 5, "as many as train"), (9, 5, "repeated to 9")]
)
def test_a_start_text_becomes_token_ids(plan_of, count: int, ids: int, words: str) -> None:
    text = "Sort this ticket now"
    plan = plan_of({"type": "prompt", "num_tokens": count, "init_text": text})
    found = plan.recipe["adapter"]["init_text"]
    assert len(found) == ids
    assert all(type(token) is int for token in found)
    assert plan.values["adapter.init_text"].value == text
    assert words in plan.values["adapter.init_text"].reason


def test_a_resolved_recipe_plans_the_same(plan_of, cpu) -> None:
    plan = plan_of({"type": "prompt", "init_text": "Sort this"})
    again = make_plan(plan.resolved, cpu, COUNTS)
    assert (again.recipe, again.identity, again.parameters) == (plan.recipe, plan.identity, plan.parameters)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_passes_and_arithmetic_count_them(plan_of) -> None:
    """A step of 4 examples as long as the context, and 20 virtual tokens before each; each of 320 examples runs 20 tokens more."""
    short = {"training": {"batch_size": 4}, "machine": {"device": "cpu"}}
    bare, prompt = (
        plan_of({"type": "partial", "norms": True}, **short),
        plan_of({"type": "prompt"}, **short),
    )
    assert prompt.settings.context == bare.settings.context - 20
    assert prompt.settings.atom_tokens == bare.settings.atom_tokens
    assert prompt.parameters.trainable == 20 * 256 + 2 * 256


def test_flops_are_those_of_longer_documents(tiny, make_settings) -> None:
    section = recipe({"type": "prompt", "num_tokens": 20}).adapter
    scope = scope_of(tiny, section)
    assert (scope.first_layer, scope.virtual_tokens, scope.num_adapter) == (0, 20, 20 * tiny.hidden_size)
    plain = replace(scope, adapted={}, virtual_tokens=0)
    assert flops_per_token(tiny, scope, make_settings(), 40) == flops_per_token(tiny, plain, make_settings(), 40)


@pytest.mark.parametrize(("kind", "window", "said"), [("prefix", 8, 1), ("prefix", None, 0), ("lora", 8, 0)])
def test_a_window_that_hides_them_is_said(tiny, kind: str, window: int | None, said: int) -> None:
    notes = window_notes(recipe({"type": kind}), replace(tiny, sliding_window=window))
    assert len(notes) == said
    assert all("window of 8 tokens" in note for note in notes)


def test_they_stand_before_the_layers() -> None:
    """For rates by layer and for freezing: whatever makes them, their gradient passes every layer."""
    for name in (
        "virtual_tokens.embedding.weight",
        "virtual_tokens.mlp_head.0.bias",
        "virtual_tokens.transform.2.weight",
    ):
        assert names.depth(name, 8) == 0
    assert names.depth("model.virtual_tokens_norm.weight", 8) == 9


def test_rates(tiny) -> None:
    """A table moves at ten times LoRA's rate, a network at LoRA's."""
    at = {
        kind: defaults.derive_rate(recipe({"type": kind}), replace(tiny, hidden_size=2000)).value
        for kind in ("lora", "prompt", "p-tuning", "prefix")
    }
    assert at == {"lora": 5e-4, "prompt": 5e-3, "p-tuning": 5e-4, "prefix": 5e-3}
    network = recipe({"type": "prefix", "projection": True})
    assert defaults.derive_rate(network, replace(tiny, hidden_size=2000)).value == 5e-4


def test_a_prefix_runs_no_token_more_through_the_layers(tiny, make_settings) -> None:
    flops = {
        kind: run_flops(tiny, scope_of(tiny, recipe({"type": kind}).adapter), make_settings(), COUNTS)
        for kind in ("prompt", "prefix")
    }
    scope = scope_of(tiny, recipe({"type": "prefix"}).adapter)
    per_token = flops_per_token(tiny, scope, make_settings(), COUNTS.attended + 20).per_token
    assert flops["prompt"] - flops["prefix"] == pytest.approx(3 * 20 * COUNTS.rows * per_token)
