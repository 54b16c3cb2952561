"""Which single tokens train: decided before a weight is loaded, said with names and a reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.tiny import desk_model

from tunesmith.embedded import DEFAULT_MODEL, ROOT
from tunesmith.errors import RecipeError
from tunesmith.planning.plan import Plan, make_plan, plan_rows
from tunesmith.planning.settings import Counts
from tunesmith.recipe.codec import parse

COUNTS = Counts(rows=560, tokens=50_000, trained_tokens=9_000, longest=200, attended=110.0)
START, END = 2, 3
ADAPTER = 598_016
"""Elements of LoRA of rank 16 on all linear layers of the embedded model."""


@pytest.fixture
def plan_of(tmp_path: Path, cpu):
    """plan_of(adapter, ...) -> the plan of a small recipe on the embedded model or another."""

    def make(adapter: object = None, **sections: object) -> Plan:
        (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
        values = {"name": "r", "model": DEFAULT_MODEL, "data": {"train": ["rows.jsonl"]}, **sections}
        if adapter is not None:
            values["adapter"] = adapter
        return make_plan(parse(values).placed(tmp_path), cpu, COUNTS)

    return make


def tokens_of(plan: Plan) -> tuple[list[str], str]:
    item = plan.values["adapter.train_tokens"]
    return item.value, item.reason


def test_auto_trains_the_chat_tokens_that_the_base_never_saw(plan_of) -> None:
    plan = plan_of()
    texts, reason = tokens_of(plan)
    assert texts == ["<|im_start|>", "<|im_end|>"]
    assert "never saw them" in reason
    assert plan.recipe["adapter"]["train_tokens"] == [START, END]
    assert plan.parameters.trainable == ADAPTER + 2 * 256
    assert ("adapter", "train_tokens", "<|im_start|>, <|im_end|>", reason) in plan_rows(plan)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_resolved_recipe_plans_the_same(plan_of, cpu) -> None:
    plan = plan_of()
    again = make_plan(plan.resolved, cpu, COUNTS)
    assert (again.recipe, again.identity, again.parameters) == (plan.recipe, plan.identity, plan.parameters)
    assert tokens_of(again)[0] == tokens_of(plan)[0]


def test_none_trains_none(plan_of) -> None:
    plan = plan_of({"type": "lora", "train_tokens": "none"})
    assert tokens_of(plan) == ([], "given in the recipe")
    assert plan.parameters.trainable == ADAPTER
    assert ("adapter", "train_tokens", "none", "given in the recipe") in plan_rows(plan)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"adapter": {"type": "lora", "also_train": ["*embed_tokens*"]}}, "`also_train` trains the head"),
        ({"adapter": {"type": "lora", "also_train": ["lm_head*"]}}, "`also_train` trains the head"),
        ({"objective": {"type": "clm"}}, "no chat template is in play"),
    ],
)
def test_auto_trains_none_where_it_would_not_help(plan_of, sections: dict, words: str) -> None:
    texts, reason = tokens_of(plan_of(**sections))
    assert texts == []
    assert words in reason


@pytest.mark.parametrize("type_", ["full", "partial"])
def test_other_scopes_have_no_such_key(plan_of, type_: str) -> None:
    adapter = {"type": type_, **({"norms": True} if type_ == "partial" else {})}
    assert "adapter.train_tokens" not in plan_of(adapter).values


def test_a_base_that_knows_its_chat_tokens_needs_nothing(plan_of, tmp_path: Path) -> None:
    """Random rows point in different ways, as trained ones do."""
    desk_model(tmp_path / "base", ROOT / DEFAULT_MODEL)
    assert tokens_of(plan_of(model="base")) == (
        [],
        "the base knows the tokens of the chat template: <|im_start|>, <|im_end|>",
    )


def test_untied_matrices_have_a_row_each(plan_of, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    desk_model(tmp_path / "base", ROOT / DEFAULT_MODEL, tie_word_embeddings=False, **ends)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.lm_head.weight[START] = model.lm_head.weight[END]
    model.save_pretrained(tmp_path / "base")
    plan = plan_of(model="base")
    assert tokens_of(plan)[0] == ["<|im_end|>"], "the start of a turn is never written"
    without = plan_of({"type": "lora", "train_tokens": "none"}, model="base")
    assert plan.parameters.trainable - without.parameters.trainable == 2 * 32
    head_only = plan_of({"type": "lora", "train_tokens": [END], "also_train": ["*embed_tokens*"]}, model="base")
    assert head_only.parameters.trainable - without.parameters.trainable == 32 * 8192 + 32


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        (["<|im_end|>"], [END]),
        ("<|im_end|>", [END]),
        ([7, "<|im_end|>", END, 7], [7, END]),
        (8000, [8000]),
    ],
)
def test_tokens_are_given_by_text_or_id(plan_of, given: object, ids: list[int]) -> None:
    plan = plan_of({"type": "lora", "train_tokens": given})
    assert plan.recipe["adapter"]["train_tokens"] == ids
    assert plan.parameters.trainable == ADAPTER + len(ids) * 256
    assert tokens_of(plan)[1] == "given in the recipe"
    assert len(tokens_of(plan)[0]) == len(ids)


@pytest.mark.parametrize(
    ("given", "words", "hint"),
    [
        (["<|im_ends|>"], "`<|im_ends|>` is not one token", "did you mean `<|im_end|>`?"),
        (["kettle of fish"], "`kettle of fish` is not one token", "its special tokens: <|endoftext|>"),
        ([8192], "there is no token 8192: the model has 8,192", "below 8192"),
    ],
)
def test_tokens_that_the_model_does_not_have_are_refused(plan_of, given: object, words: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        plan_of({"type": "lora", "train_tokens": given})
    assert words in caught.value.what
    assert hint in caught.value.hint
    assert caught.value.where == "adapter.train_tokens"


def test_rows_beside_a_whole_matrix_are_refused(plan_of) -> None:
    with pytest.raises(RecipeError, match="train fully already"):
        plan_of({"type": "lora", "train_tokens": [3], "also_train": ["*embed_tokens*"]})


def test_a_template_without_tokens_of_its_own_needs_nothing(plan_of, tmp_path: Path) -> None:
    shutil.copytree(ROOT / DEFAULT_MODEL, tmp_path / "base")
    plain = "{%- for message in messages %}{{- message.role + ': ' + message.content + '\\n' }}{%- endfor %}"
    (tmp_path / "base" / "chat_template.jinja").write_text(plain)
    assert tokens_of(plan_of(model="base")) == ([], "the chat template uses no token of its own")
