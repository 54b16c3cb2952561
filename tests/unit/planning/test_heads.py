"""What a head reads and how fast it learns where the recipe does not say: by the kind of model, with the reason in the plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import VOCABULARY
from tests.tiny_encoders import write_encoder
from transformers import BertConfig, BertForPreTraining

from tunesmith.embedded import DEFAULT_MODEL
from tunesmith.models.facts import ModelFacts, read_facts
from tunesmith.models.head_shape import shape_of, transformers_class
from tunesmith.planning.defaults import derive_head_factor, derive_pooling, derive_rate
from tunesmith.planning.plan import Plan
from tunesmith.recipe.codec import parse
from tunesmith.recipe.heads import ClassifySection, RegressSection, TagSection
from tunesmith.workshop.planning import plan_recipe


def facts_of(folder: Path, name: str) -> ModelFacts:
    return read_facts(write_encoder(folder / name, name))


def planned(folder: Path, model: str, objective: dict[str, Any], **more: Any) -> Plan:
    rows = [{"text": f"{number} words", "label": "ab"[number % 2]} for number in range(20)]
    if objective["type"] == "tag":
        rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}] * 20
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"name": "r", "model": model, "data": {"train": "rows.jsonl", "validation": 0, "test": 0},
              "objective": objective, **more}  # fmt: skip
    return plan_recipe(parse(values).placed(folder))


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert"])
def test_an_encoder_without_a_pooler_is_read_by_its_mean(tmp_path: Path, name: str) -> None:
    facts = facts_of(tmp_path, name)
    assert not facts.has_pooler
    shape = shape_of(ClassifySection(), facts, 3)
    assert shape.pooling == "mean"
    assert shape.kind == ("mlp" if name == "modernbert" else "linear")
    exported = "AutoModelForSequenceClassification" if name == "modernbert" else None
    assert transformers_class(shape, facts) == exported
    first = shape_of(RegressSection(pooling="first"), facts, 0)
    assert (first.kind, transformers_class(first, facts)) == ("mlp", "AutoModelForSequenceClassification")


def test_an_encoder_with_a_trained_pooler_is_read_at_its_first_token(tmp_path: Path) -> None:
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    BertForPreTraining(BertConfig(**shape, num_attention_heads=4)).save_pretrained(tmp_path)
    facts = read_facts(tmp_path)
    assert facts.has_pooler
    head = shape_of(ClassifySection(), facts, 3)
    assert (head.pooling, head.kind) == ("first", "mlp")
    assert transformers_class(head, facts) == "AutoModelForSequenceClassification"


def test_the_plan_says_what_is_read_and_why(tmp_path: Path) -> None:
    write_encoder(tmp_path / "bert", "bert")
    found = planned(tmp_path, "bert", {"type": "classify"}).values
    assert (found["objective.pooling"].value, found["objective.pooling"].reason) == (
        "mean", "the model's files hold no pooler: its first token was never trained to stand for a text",
    )  # fmt: skip
    decoder = planned(tmp_path, DEFAULT_MODEL, {"type": "classify"}).values["objective.pooling"]
    assert (decoder.value, decoder.reason) == ("last", "a decoder's last token has read the whole text")
    given = planned(tmp_path, "bert", {"type": "classify", "pooling": "first"}).values["objective.pooling"]
    assert given.value == "first"
    assert "objective.pooling" not in planned(tmp_path, "bert", {"type": "tag"}).values


@pytest.mark.parametrize(("adapter", "part"), [("lora", 5), ("bottleneck", 5), ("full", 25), ("head", None)])
def test_rates_under_a_head_on_an_encoder(tmp_path: Path, adapter: str, part: float | None) -> None:
    """At width 768 LoRA's rule is 1.06e-3: 2.1e-4 and 4.2e-5, near what is published for RoBERTa and BERT; the head's own is 5e-3."""
    facts = replace(facts_of(tmp_path, "bert"), hidden_size=768)
    recipe = parse(
        {"name": "r", "model": "m", "data": {"train": "a"}, "objective": {"type": "tag"}, "adapter": {"type": adapter}}
    )
    rate = derive_rate(recipe, facts)
    rule = 5e-4 * (2000 / 768) ** 0.781
    expected = 5e-3 if part is None else rule / part
    assert rate.value == pytest.approx(expected, rel=0.03)
    factor = derive_head_factor(recipe, facts, rate.value)
    assert factor is not None
    assert factor.value * rate.value == pytest.approx(5e-3, rel=0.03)
    assert "the rate of a head alone" in factor.reason


def test_a_head_on_a_decoder_learns_at_the_rate_of_the_rest_and_a_recipe_may_say_otherwise(tiny: ModelFacts) -> None:
    values: dict[str, Any] = {"name": "r", "model": "m", "data": {"train": "a"}, "objective": {"type": "classify"}}
    factor = derive_head_factor(parse(values), tiny, 1e-3)
    assert factor is not None
    assert factor.value == 1.0
    values["objective"] = {"type": "classify", "rate_factor": 7}
    given = derive_head_factor(parse(values), tiny, 1e-3)
    assert given is not None
    assert given.value == 7
    values["objective"] = {"type": "sft"}
    assert derive_head_factor(parse(values), tiny, 1e-3) is None
    assert derive_pooling(parse(values), tiny) is None


def test_a_rate_above_the_heads_own_is_not_lowered_for_it(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, "bert")
    recipe = parse({"name": "r", "model": "m", "data": {"train": "a"}, "objective": {"type": "tag"}})
    factor = derive_head_factor(recipe, facts, 1e-2)
    assert factor is not None
    assert factor.value == 1.0
    assert shape_of(TagSection(), facts, 3).pooling == "words"
