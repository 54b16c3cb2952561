"""Loading recipes: YAML 1.2, JSON, overrides, and what they mean."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import RecipeError
from tunesmith.recipe import codec
from tunesmith.recipe.adapters import FullSection, LoraSection
from tunesmith.recipe.data import SourceSection, SplitSection
from tunesmith.recipe.objectives import ClmSection, SftSection
from tunesmith.recipe.syntax import parse_yaml

Write = Callable[..., Path]


def test_short_recipe_is_complete(write: Write) -> None:
    recipe = codec.load(write())
    assert recipe.name == "banking"
    assert recipe.model.name == "tunesmith-base-8m"
    assert recipe.data.train == [SourceSection(path="train.csv", format="prompt-completion")]
    assert isinstance(recipe.objective, SftSection)
    assert isinstance(recipe.adapter, LoraSection)
    assert recipe.seed == 0


def test_relative_paths_start_from_the_recipe(write: Write) -> None:
    path = write()
    assert codec.load(path).folder == path.parent


def test_design_page_example_loads(write: Write) -> None:
    recipe = codec.load(
        write(
            text="""
name: banking-intents
model: tunesmith-base-8m
data:
  train:
    - path: train.csv
      format: prompt-completion
      columns: {prompt: text, completion: category}
  validation: {fraction: 0.1}
  test: {fraction: 0.1}
  overlong: error
objective: {type: sft}
adapter: {type: lora, rank: 16}
training: {epochs: 3}
evaluation:
  tasks: [{type: exact_match, data: test}]
  preserve: [general]
seed: 0
"""
        )
    )
    assert recipe.data.train[0].columns == {"prompt": "text", "completion": "category"}
    assert recipe.evaluation.tasks is not None
    assert recipe.evaluation.tasks[0].type == "exact_match"


@pytest.mark.parametrize(
    ("written", "meant"),
    [("1e-4", 1e-4), ("1E-4", 1e-4), ("1.5e-3", 1.5e-3), (".5", 0.5), ("2e0", 2.0), ("1", 1.0)],
)
def test_exponents_are_numbers(write: Write, written: str, meant: float) -> None:
    assert codec.load(write(f"training: {{learning_rate: {written}}}\n")).training.learning_rate == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1000", 1000), ("-3", -3), ("0o17", 15), ("0x1F", 31), ("1.", 1.0), (".5", 0.5), ("1e3", 1000.0), ("-.INF", -math.inf),
        ("1_000", "1_000"), ("1_0.5", "1_0.5"), ("0x1_F", "0x1_F"), ("0o1_7", "0o1_7"), ("0b11", "0b11"), ("-0x1F", "-0x1F"),
        ("+0o7", "+0o7"),
    ],
)  # fmt: skip
def test_numbers_are_those_of_the_core_schema(written: str, meant: object) -> None:
    (found,) = parse_yaml(f"a: {written}", "x")[0].values()
    assert (found, type(found)) == (meant, type(meant))


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "n", "y"])
def test_words_of_yaml_1_1_are_text(write: Write, word: str) -> None:
    recipe = codec.load(write(text=f"name: {word}\nmodel: {word}\ndata: {{train: {word}}}\n"))
    assert (recipe.name, recipe.model.name, recipe.data.train[0].path) == (word, word, word)


@pytest.mark.parametrize(("word", "meant"), [("true", True), ("false", False), ("True", True), ("FALSE", False)])
def test_booleans(write: Write, word: str, meant: bool) -> None:
    assert getattr(codec.load(write(f"adapter: {{rslora: {word}}}\n")).adapter, "rslora") is meant  # noqa: B009


def test_anchored_boolean_stays_one(write: Write) -> None:
    recipe = codec.load(write("adapter: {rslora: &flag true}\nobjective: {type: clm, add_end_token: *flag}\n"))
    assert recipe.adapter == LoraSection(rslora=True)
    assert recipe.objective == ClmSection(add_end_token=True)


@pytest.mark.parametrize("date", ["2026-01-05", "2026-1-5"])
def test_dates_are_the_text_that_was_written(write: Write, date: str) -> None:
    text = f"name: a\nmodel: {{name: m, date: {date}}}\ndata: {{train: a.csv}}\n"
    assert codec.load(write(text=text)).model.date == date


def test_octal_like_numbers_are_decimal(write: Write) -> None:
    assert codec.load(write("seed: 010\n")).seed == 10


def test_short_forms(write: Write) -> None:
    recipe = codec.load(
        write(text="name: a\nmodel: m\ndata: {train: [a.csv, {path: b.csv}], validation: 0, test: held.csv}\n")
    )
    assert [source.path for source in recipe.data.train] == ["a.csv", "b.csv"]
    assert recipe.data.validation == SplitSection(fraction=0.0)
    assert recipe.data.test == [SourceSection(path="held.csv")]


def test_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: a\nmodel: m\ndata: {train: a.csv}\n")
    assert codec.load(path).name == "a"


def test_json_recipe(write: Write) -> None:
    values = {"name": "a", "model": "m", "data": {"train": "a.csv"}, "training": {"learning_rate": 1e-4, "clip": None}}
    recipe = codec.load(write(text=json.dumps(values, indent=1), name="recipe.json"))
    assert recipe.training.learning_rate == 1e-4
    assert recipe.training.clip is None


def test_json_with_tabs_and_surrogate_escapes(write: Write) -> None:
    text = '{\n\t"name": "a",\n\t"model": "\\ud83d\\ude00",\n\t"data": {"train": "a.csv"}\n}'
    assert codec.load(write(text=text, name="recipe.json")).model.name == "\U0001f600"


def test_resolved_recipe_survives_a_round_trip(write: Write) -> None:
    recipe = codec.load(write("adapter: {type: full}\n"))
    values = recipe.model_dump(mode="json")
    assert codec.parse(values).model_dump(mode="json") == values
    assert isinstance(recipe.adapter, FullSection)


def test_overrides_are_typed_as_in_the_file(write: Write) -> None:
    recipe = codec.load(
        write("training: {epochs: 3}\n"),
        "training.learning_rate=1e-4",
        "training.epochs=null",
        "training.max_steps=5",
        "adapter.targets=[attention, feed-forward]",
        "name=no",
        "adapter.rslora=true",
    )
    assert recipe.training.learning_rate == 1e-4
    assert (recipe.training.epochs, recipe.training.max_steps) == (None, 5)
    assert recipe.name == "no"
    assert recipe.adapter == LoraSection(targets=["attention", "feed-forward"], rslora=True)


def test_overrides_reach_into_lists(write: Write) -> None:
    recipe = codec.load(
        write("evaluation: {tasks: [{type: loss}, {type: exact_match}]}\n"),
        "data.train.0.limit=7",
        "evaluation.tasks.1.limit=3",
    )
    assert recipe.data.train[0].limit == 7
    assert recipe.evaluation.tasks is not None
    assert [task.limit for task in recipe.evaluation.tasks] == [None, 3]


@pytest.mark.parametrize("train", ["a.csv", "[a.csv]", "{path: a.csv}", "[{path: a.csv}]"])
def test_overrides_lose_nothing_of_a_short_form(write: Write, train: str) -> None:
    path = write(text=f"name: a\nmodel: m\ndata: {{train: {train}}}\n")
    assert codec.load(path, "data.train.0.limit=7").data.train == [SourceSection(path="a.csv", limit=7)]


def test_override_into_a_bare_model_and_fraction(write: Write) -> None:
    recipe = codec.load(write("  validation: 0.2\n"), "model.context=64", "data.validation.group_by=user")
    assert (recipe.model.name, recipe.model.context) == ("tunesmith-base-8m", 64)
    assert recipe.data.validation == SplitSection(fraction=0.2, group_by="user")


def test_keyword_overrides(write: Write) -> None:
    recipe = codec.load(write(), training__epochs=1, adapter__targets=["attention"], data__overlong=None, name="no")
    assert recipe.training.epochs == 1
    assert recipe.adapter == LoraSection(targets=["attention"])
    assert recipe.name == "no"


def test_value_may_hold_equals_signs(write: Write) -> None:
    assert codec.load(write(), "data.train.0.path=a=b.csv").data.train[0].path == "a=b.csv"


def test_overrides_leave_the_given_values_alone() -> None:
    values = {"data": {"train": [{"path": "a"}]}}
    codec.apply_overrides(values, ["data.train.0.path=b"])
    assert values == {"data": {"train": [{"path": "a"}]}}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_any_json_value_can_be_an_override(value: object) -> None:
    text = json.dumps(value, ensure_ascii=True).replace("\\u", "\\u")
    try:
        result = codec.apply_overrides({}, [f"a.b={text}"])
    except RecipeError:
        assert "\\ud" in text  # YAML knows no surrogate pairs
        return
    if "\\ud" not in text:
        assert result == {"a": {"b": value}}


def test_schema_knows_every_section_and_the_short_forms() -> None:
    schema = codec.schema()
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["additionalProperties"] is False
    assert {"type": "string"} in schema["properties"]["model"]["anyOf"]
    data = schema["$defs"]["DataSection"]["properties"]
    assert {"type": "string"} in data["train"]["anyOf"]
    assert {"type": "number"} in data["test"]["anyOf"]
    described = [
        name
        for section in schema["$defs"].values()
        for name, item in section["properties"].items()
        if name != "type" and not item.get("description")
    ]
    assert described == []
