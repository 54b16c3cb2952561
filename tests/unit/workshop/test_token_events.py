"""A run says which tokens train by themselves, and which end of answers stays untrained, with what would mend it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.tiny import desk_model
from transformers import AutoModelForCausalLM

from tunesmith.embedded import DEFAULT_MODEL, ROOT
from tunesmith.recipe.codec import parse
from tunesmith.workshop.planning import plan_recipe
from tunesmith.workshop.prepare import base_of, renderer_of
from tunesmith.workshop.token_events import token_events


@pytest.fixture
def events(tmp_path: Path):
    """events(adapter, ...) -> what a run of a small recipe would say."""

    def make(adapter: object, **sections: object) -> list[tuple[str, str]]:
        (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
        values = {"name": "r", "model": DEFAULT_MODEL, "data": {"train": ["rows.jsonl"], "validation": 0, "test": 0}}
        recipe = parse({**values, "adapter": adapter, **sections}).placed(tmp_path)
        base = base_of(recipe)
        return token_events(plan_recipe(recipe), base.path, renderer_of(recipe, base)[0])

    return make


def test_rows_that_train_are_named(events) -> None:
    ((kind, text),) = events({"type": "lora"})
    assert kind == "trained_tokens"
    assert text.startswith("the rows of <|im_start|>, <|im_end|> train beside the adapter: the chat template uses them")


def test_one_row_is_told_as_one(events) -> None:
    ((kind, text),) = events({"type": "lora", "train_tokens": ["<|im_end|>"]})
    assert kind == "trained_tokens"
    assert text == "the row of <|im_end|> trains beside the adapter: given in the recipe"


@pytest.mark.parametrize(
    ("adapter", "remedy"),
    [
        ({"type": "lora", "train_tokens": "none"}, "`adapter.train_tokens: auto` trains it"),
        ({"type": "partial", "last_layers": 1}, "`adapter.embeddings: true` trains it"),
    ],
)
def test_an_end_that_stays_untrained_is_told_with_a_remedy(events, adapter: dict, remedy: str) -> None:
    ((kind, text),) = events(adapter)
    assert kind == "untrained_token"
    assert text.startswith("<|im_end|> ends an answer here but was never trained")
    assert text.endswith(remedy)


def test_both_are_told_where_the_list_leaves_the_end_out(events) -> None:
    told = events({"type": "lora", "train_tokens": ["<|im_start|>"]})
    assert [kind for kind, _ in told] == ["trained_tokens", "untrained_token"]


@pytest.mark.parametrize(
    ("adapter", "sections"),
    [
        ({"type": "full"}, {}),
        ({"type": "partial", "head": True}, {}),
        ({"type": "lora", "also_train": ["*embed_tokens*"]}, {}),
        ({"type": "lora"}, {"objective": {"type": "clm"}}),
    ],
)
def test_nothing_is_told_where_the_head_trains_or_no_answer_is_learnt(events, adapter: dict, sections: dict) -> None:
    assert events(adapter, **sections) == []


def test_the_remedy_of_an_untied_head_is_the_head(events, tmp_path: Path) -> None:
    desk_model(tmp_path / "base", ROOT / DEFAULT_MODEL, tie_word_embeddings=False, eos_token_id=0, bos_token_id=0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.lm_head.weight[3] = model.lm_head.weight[2]
    model.save_pretrained(tmp_path / "base")
    ((kind, text),) = events({"type": "partial", "last_layers": 1}, model="base")
    assert kind == "untrained_token"
    assert text.endswith("`adapter.head: true` trains it")
