"""What a wrong recipe is answered: what is wrong, file, line and key, and how to mend it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.errors import RecipeError
from tunesmith.recipe import codec
from tunesmith.recipe.adapters import LoraSection
from tunesmith.recipe.root import Recipe

Refused = Callable[..., RecipeError]

UNKNOWN = [
    ("trainig: {epochs: 1}\n", 7, "trainig", "training"),
    ("training:\n  epoch: 1\n", 8, "training.epoch", "epochs"),
    ("training:\n  batch-size: 1\n", 8, "training.batch-size", "batch_size"),
    ("training:\n  early_stopping:\n    patiens: 2\n", 9, "training.early_stopping.patiens", "patience"),
    ("  validation: {fractoin: 0.1}\n", 7, "data.validation.fractoin", "fraction"),
    ("  test:\n    - pth: x.csv\n", 8, "data.test.0.pth", "path"),
    ("  test: {path: x.csv, colums: {}}\n", 7, "data.test.colums", "columns"),
    ("      colunms: {}\n", 7, "data.train.0.colunms", "columns"),
    ("adapter:\n  type: lora\n  rnk: 4\n", 9, "adapter.rnk", "rank"),
    ("adapter: {rnk: 4}\n", 7, "adapter.rnk", "rank"),
    ("objective: {type: clm, add_end_tokn: true}\n", 7, "objective.add_end_tokn", "add_end_token"),
    (
        "evaluation:\n  tasks:\n    - type: loss\n    - type: exact_match\n      limt: 3\n",
        11,
        "evaluation.tasks.1.limt",
        "limit",
    ),
    ("training:\n  layer_rates: {decy: 0.9}\n", 8, "training.layer_rates.decy", "decay"),
    ("training:\n  freezing: {type: freezeout, frst: 0.5}\n", 8, "training.freezing.frst", "first"),
    ("machine: {device: cpu, thread: 2}\n", 7, "machine.thread", "threads"),
    ("logging: {sink: []}\n", 7, "logging.sink", "sinks"),
]


@pytest.mark.parametrize(("more", "line", "key", "meant"), UNKNOWN)
def test_unknown_key_at_any_depth(refused: Refused, more: str, line: int, key: str, meant: str) -> None:
    error = refused(more)
    assert error.what == f"unknown key `{key.rsplit('.', 1)[-1]}`"
    assert error.where.endswith(f"recipe.yaml:{line} [{key}]")
    assert error.hint == f"did you mean `{meant}`?"


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ("objective: {label_smoothing: 1.0}\n", "label_smoothing"),
        ("objective: {label_smoothing: -0.1}\n", "label_smoothing"),
        ("objective: {type: clm, focal_gamma: -1}\n", "focal_gamma"),
        ("objective: {focal_gamma: .inf}\n", "focal_gamma"),
        ("objective: {focal_gamma: two}\n", "focal_gamma"),
    ],
)
def test_a_loss_out_of_range_is_refused_at_its_key(refused: Refused, more: str, key: str) -> None:
    assert refused(more).where.endswith(f"recipe.yaml:7 [objective.{key}]")


def test_smoothing_and_focal_loss_exclude_each_other(refused: Refused) -> None:
    error = refused("objective: {label_smoothing: 0.1, focal_gamma: 2}\n")
    assert "pull against each other" in error.what
    assert error.where.endswith("recipe.yaml:7 [objective]")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("placement: beside", "sequential"),
        ("preset: houlsby, placement: parallel", "`preset: houlsby` is sequential"),
        ("placement: hybrid, targets: [attention]", "about both sub-layers"),
        ("targets: [attention, attention]", "twice"),
        ("targets: [all-linear]", "attention"),
        ("targets: []", "at least 1"),
        ("reduction: 0", "0.0625"),
        ("scaling: 0", "greater than 0"),
        ("activation: exec", "relu"),
        ("layer_norm: both", "before"),
        ("dropout: 1.0", "less than 1"),
    ],
)
def test_bottlenecks_that_cannot_be(refused: Refused, keys: str, words: str) -> None:
    error = refused(f"adapter: {{type: bottleneck, {keys}}}\n")
    assert words in f"{error.what} {error.hint}"
    assert "recipe.yaml:7 [adapter" in error.where


def test_unknown_key_in_the_model_section(refused: Refused) -> None:
    error = refused(text="name: a\nmodel:\n  name: m\n  contxt: 5\ndata: {train: a.csv}\n")
    assert error.where.endswith("recipe.yaml:4 [model.contxt]")
    assert "`context`" in error.hint


def test_unknown_key_without_a_near_one_lists_the_known(refused: Refused) -> None:
    error = refused("machine: {colour: red}\n")
    assert "known keys here" in error.hint
    assert "device" in error.hint


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        (
            "adapter: {type: full, reduction: 8}\n",
            "`reduction` belongs to `type: bottleneck`; known keys here: type",
        ),
        (
            "adapter: {type: full, rank: 3}\n",
            "`rank` belongs to `type: lora`, `type: gralora` and `type: aflora`; known keys here: type",
        ),
        (
            "adapter: {type: full, also-train: [x]}\n",
            "did you mean `also_train`? It belongs to `type: lora`, `type: gralora`, `type: aflora`, `type: bottleneck`, `type: prompt`, "
            "`type: p-tuning` and `type: prefix`; known keys here: type",
        ),
        (
            "objective: {type: clm, loss_on: responses}\n",
            "`loss_on` belongs to `type: sft`; known keys here: add_end_token, focal_gamma, label_smoothing, rdrop_alpha, type",
        ),
        (
            "evaluation: {tasks: [{type: loss, labels: [a, b]}]}\n",
            "`labels` belongs to `type: label_ranking`; known keys here: data, limit, name, type",
        ),
        (
            "  validation: {fraction: 0.1, format: text}\n",
            "`format` does not go with the other keys; known keys here: fraction, group_by",
        ),
        ("training: {seed: 3}\n", "`seed` stands one level up, beside `training`"),
    ],
)
def test_a_key_that_stands_elsewhere_is_told_as_such(refused: Refused, more: str, hint: str) -> None:
    error = refused(more)
    assert error.what.startswith("unknown key")
    assert error.hint == hint


def test_several_unknown_keys_are_counted(refused: Refused) -> None:
    assert "1 more unknown" in refused("training: {epoch: 1, schedul: linear}\n").hint


WRONG_TYPE = [
    ("training: {epochs: three}\n", "training.epochs", "write a number"),
    ("training: {epochs: '3'}\n", "training.epochs", "remove the quotes"),
    ("training: {learning_rate: '1e-4'}\n", "training.learning_rate", "remove the quotes"),
    ("training: {batch_size: 2.5}\n", "training.batch_size", "write a whole number"),
    ("training: {batch_size: true}\n", "training.batch_size", "given: True"),
    ("adapter: {rslora: no}\n", "adapter.rslora", "true or false"),
    ("adapter: {rslora: 'true'}\n", "adapter.rslora", "true or false"),
    ("adapter: {rslora: 1}\n", "adapter.rslora", "true or false"),
    ("adapter: {train_tokens: 1.5}\n", "adapter.train_tokens", "given: 1.5"),
    ("adapter: {train_tokens: true}\n", "adapter.train_tokens", "given: True"),
    ("adapter: {train_tokens: []}\n", "adapter.train_tokens", "given: []"),
    ("adapter: {train_tokens: [3, -1]}\n", "adapter.train_tokens", "given: [3, -1]"),
    ("adapter: {train_tokens: {a: 1}}\n", "adapter.train_tokens", "given: {'a': 1}"),
    ("training: {schedule: cosin}\n", "training.schedule", "did you mean `cosine`?"),
    ("training: {layer_rates: {decay: 0}}\n", "training.layer_rates.decay", "given: 0"),
    ("training: {layer_rates: {decay: 1.1}}\n", "training.layer_rates.decay", "given: 1.1"),
    ("training: {layer_rates: 0.9}\n", "training.layer_rates", "layer_rates: {key: value}"),
    ("training: {freezing: freezeout}\n", "training.freezing", "freezing: {key: value}"),
    ("training: {freezing: {type: freezout}}\n", "training.freezing", "did you mean `freezeout`?"),
    ("training: {freezing: {type: freezeout, first: 0}}\n", "training.freezing.first", "given: 0"),
    ("training: {freezing: {type: unfreeze_gradually, every: 0}}\n", "training.freezing.every", "given: 0"),
    ("training: {freezing: {type: unfreeze_gradually, every: epochs}}\n", "training.freezing.every", "epoch"),
    ("training: {freezing: {type: autofreeze, intervals: 1}}\n", "training.freezing.intervals", "given: 1"),
    ("training: {freezing: {type: autofreeze, percentile: 101}}\n", "training.freezing.percentile", "given: 101"),
    ("training: {precision: no}\n", "training.precision", "given: 'no'"),
    ("training: [1]\n", "training", "write `training: {key: value}`"),
    ("training:\n", "training", "nothing is given"),
    ("adapter: lora\n", "adapter", "write `adapter: {type: lora}`"),
    ("evaluation: {tasks: {type: loss}}\n", "evaluation.tasks", "write `tasks: [a, b]`"),
    ("evaluation: {preserve: [generl]}\n", "evaluation.preserve.0", "did you mean `general`?"),
    ("      limit: 0\n", "data.train.0.limit", "given: 0"),
    ("      row: paragraf\n", "data.train.0.row", "did you mean `paragraph`?"),
    ("      columns: {a-b: 3}\n", "data.train.0.columns.a-b", "in quotes"),
    ("  validation: {fraction: 2}\n", "data.validation.fraction", "given: 2"),
    ("  validation: true\n", "data.validation", "given: True"),
    ("training: {betas: [0.9]}\n", "training.betas.1", ""),
    ("training: {learning_rate: .inf}\n", "training.learning_rate", "given: inf"),
    ("training: {learning_rate: .nan}\n", "training.learning_rate", "given: nan"),
    ("seed: -1\n", "seed", "given: -1"),
    ("seed: 1_000\n", "seed", "given: '1_000'; `_` in it makes it text (YAML 1.2): write 1000"),
]


@pytest.mark.parametrize(("more", "key", "hint"), WRONG_TYPE)
def test_wrong_type(refused: Refused, more: str, key: str, hint: str) -> None:
    error = refused(more)
    assert error.where.endswith(f"recipe.yaml:7 [{key}]")
    assert hint in error.hint
    assert "Section" not in str(error)


@pytest.mark.parametrize(
    ("value", "hint"), [("[1]", "given: [1]"), ("12", 'in quotes, "12"'), ("a/b", "given: 'a/b'"), ("''", "given: ''")]
)
def test_name_of_a_run(refused: Refused, value: str, hint: str) -> None:
    error = refused(text=f"name: {value}\nmodel: m\ndata: {{train: a.csv}}\n")
    assert error.where.endswith("recipe.yaml:1 [name]")
    assert hint in error.hint


RANKING = "evaluation:\n  tasks:\n    - type: label_ranking\n      labels: {}\n"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("[]", "at least 2"),
        ("[yes]", "at least 2"),
        ("[a, b, a]", "the label 'a' stands twice"),
        ("[a, b, ' a']", "the label 'a' stands twice"),
        ("[a, '  ']", "a label is empty"),
    ],
)
def test_labels_that_cannot_be_ranked(refused: Refused, labels: str, words: str) -> None:
    error = refused(RANKING.format(labels))
    assert words in error.what
    assert error.where.endswith("recipe.yaml:10 [evaluation.tasks.0.labels]")
    assert "given: [" in error.hint


def test_names_of_tasks_are_given_once_and_are_no_probes(refused: Refused) -> None:
    tasks = "evaluation: {{tasks: [{{type: loss, name: {}}}, {{type: exact_match, name: {}}}]}}\n"
    error = refused(tasks.format("a", "a"))
    assert "two tasks have the name `a`" in error.what
    assert error.where.endswith("recipe.yaml:7 [evaluation.tasks]")
    error = refused(tasks.format("a", "probes.general"))
    assert "`probes.`" in error.what
    assert error.where.endswith("recipe.yaml:7 [evaluation.tasks.1.name]")


def test_unknown_type_of_a_method(refused: Refused) -> None:
    error = refused("adapter:\n  type: lore\n")
    assert "`type: lore`" in error.what
    assert error.where.endswith(":7 [adapter]")
    assert error.hint == "did you mean `lora`?"


def test_unknown_type_without_a_near_one_lists_the_known(refused: Refused) -> None:
    known = (
        "one of: `full`, `partial`, `head`, `lora`, `gralora`, `aflora`, `bottleneck`, `prompt`, `p-tuning`, `prefix`"
    )
    assert refused("adapter: {type: zzz}\n").hint == known


def test_task_without_a_type(refused: Refused) -> None:
    error = refused("evaluation: {tasks: [{data: test}]}\n")
    assert "needs a `type`" in error.what
    assert error.where.endswith("[evaluation.tasks.0]")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("model: m\ndata: {train: a}\n", "name"),
        ("name: a\nmodel: m\ndata: {test: 0.1}\n", "data.train"),
        ("name: a\nmodel: m\n", "data"),
    ],
)
def test_missing_key(refused: Refused, text: str, key: str) -> None:
    error = refused(text=text)
    assert error.what == f"`{key.rsplit('.', 1)[-1]}` is missing"
    assert error.where.endswith(f"[{key}]")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("training: {epochs: 1, max_steps: 5}\n", "either `epochs` or `max_steps`"),
        ("training: {warmup: 2.5}\n", "`warmup` is a share"),
    ],
)
def test_values_that_contradict(refused: Refused, more: str, words: str) -> None:
    error = refused(more)
    assert words in error.what
    assert error.where.endswith(":7 [training]")


@pytest.mark.parametrize(
    "more", ["name: again\n", "training: {epochs: 1, epochs: 2}\n", "training:\n  epochs: 1\n  epochs: 1\n"]
)
def test_duplicate_keys(refused: Refused, more: str) -> None:
    error = refused(more)
    assert "duplicate key" in error.what
    assert "recipe.yaml:" in error.where


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: [a\nmodel: m\n", 2),
        ("name: a: b\n", 1),
        ("name: a\n  model: m\n", 2),
        ("name: 'a\n", 2),
        ("name: a\n\tmodel: m\n", 2),
    ],
)
def test_broken_yaml_names_the_line(refused: Refused, text: str, line: int) -> None:
    error = refused(text=text)
    assert error.what.startswith("not valid YAML")
    assert error.where.endswith(f"recipe.yaml:{line}")


@pytest.mark.parametrize(
    ("text", "words"), [("", "empty"), ("# only words\n", "empty"), ("- a\n", "mapping"), ("words\n", "mapping")]
)
def test_no_mapping(refused: Refused, text: str, words: str) -> None:
    error = refused(text=text)
    assert words in error.what
    assert "tunesmith init" in error.hint


def test_broken_json_names_the_line(refused: Refused) -> None:
    error = refused(text='{\n "name": "a",\n "model" "m"\n}', name="recipe.json")
    assert error.what.startswith("not valid JSON")
    assert error.where.endswith("recipe.json:3")


def test_unknown_key_in_json_names_the_line(refused: Refused) -> None:
    values = {"name": "a", "model": "m", "data": {"train": "a.csv"}, "training": {"epoch": 1}}
    error = refused(text=json.dumps(values, indent=1), name="recipe.json")
    assert error.where.endswith("recipe.json:8 [training.epoch]")


@pytest.mark.parametrize("text", ['{"name": "a", "name": "b"}', '{"training": {"seed": 1, "seed": 1}}'])
def test_duplicate_keys_in_json(refused: Refused, text: str) -> None:
    assert "stands twice" in refused(text=text, name="recipe.json").what


def test_nan_in_json(refused: Refused) -> None:
    assert "`NaN`" in refused(text='{"seed": NaN}', name="recipe.json").what


def test_numbers_in_json_are_not_text(refused: Refused) -> None:
    values = {"name": "a", "model": "m", "data": {"train": "a.csv"}, "training": {"learning_rate": "1e-4"}}
    assert "remove the quotes" in refused(text=json.dumps(values), name="recipe.json").hint


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: a\n")
    with pytest.raises(RecipeError, match="no such recipe") as caught:
        codec.load(tmp_path / "recpie.yaml")
    assert caught.value.hint == f"did you mean `{tmp_path / 'recipe.yaml'}`?"


def test_missing_file_in_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        codec.load(tmp_path / "nowhere" / "recipe.yaml")


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="this is a folder"):
        codec.load(tmp_path)


def test_wrong_encoding(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes("name: caf\u00e9\n".encode("latin-1"))
    with pytest.raises(RecipeError, match="not UTF-8 text") as caught:
        codec.load(path)
    assert "UTF-8" in caught.value.hint


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\n")
    path.chmod(0)
    with pytest.raises(RecipeError, match="cannot be read"):
        codec.load(path)


def test_aliases_cannot_blow_up(refused: Refused) -> None:
    levels = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    assert "too large" in refused(text="\n".join(levels)).what


@pytest.mark.parametrize("text", ["&a [*a]", "&a {x: *a}", "&a [[*a], *a]"])
def test_an_alias_of_itself_ends(refused: Refused, text: str) -> None:
    assert refused(f"logging: {text}\n").what


def test_deep_nesting_is_refused(refused: Refused) -> None:
    assert "too deeply" in refused(text="[" * 3000).what


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.system [ls]", "!!python/name:os.system x", "!thing x", "!thing {a: b}", "!!binary aGk="],
)
def test_tags_are_refused(refused: Refused, value: str) -> None:
    error = refused(f"seed: {value}\n")
    assert "is not allowed in a recipe" in error.what
    assert error.where.endswith("recipe.yaml:7")


BAD_OVERRIDES = [
    ("epochs", "is not an override", "section.key=value"),
    ("=1", "is not an override", "section.key=value"),
    ("training..epochs=1", "is not an override", "section.key=value"),
    ("trainig.epochs=1", "unknown key `trainig`", "did you mean `training`?"),
    ("training.epoch=1", "unknown key `epoch`", "did you mean `epochs`?"),
    ("training.epochs='3'", "valid number", "remove the quotes"),
    ("training.epochs=", "valid number", "write a number"),
    ("training.epochs=no", "valid number", "write a number"),
    ("training.betas=[0.9", "not valid YAML", ""),
    ("data.train.1.limit=3", "is not an item of this list of 1", "count from 0"),
    ("data.train.first.limit=3", "is not an item of this list of 1", "count from 0"),
    ("data.train.0.lmit=3", "unknown key `lmit`", "did you mean `limit`?"),
    ("adapter.rslora=no", "valid boolean", "true or false"),
    ("name=123", "valid string", 'in quotes, "123"'),
]


@pytest.mark.parametrize(("override", "what", "hint"), BAD_OVERRIDES)
def test_bad_override(refused: Refused, override: str, what: str, hint: str) -> None:
    error = refused("", override)
    assert what in error.what
    assert hint in error.hint
    assert error.where.startswith(("override ", "command line"))


def test_an_override_given_twice(refused: Refused) -> None:
    error = refused("", "training.epochs=1", "seed=3", "training.epochs=2")
    assert error.what == "the override `training.epochs` is given twice: `1` and `2`"
    assert error.where == "override training.epochs"


def test_an_override_given_as_text_and_by_keyword(write: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match="given twice"):
        codec.load(write(), "training.epochs=1", training__epochs=2)


@pytest.mark.parametrize(
    ("make", "words", "hint"),
    [
        (lambda: Recipe(trainin={}), "unknown key `trainin`", "did you mean `training`?"),
        (lambda: Recipe(name="a", model="m"), "`data` is missing", "add it"),
        (
            lambda: Recipe(name="a", model="m", data={"train": "x"}, training={"epoch": 1}),
            "unknown key `epoch`",
            "`epochs`",
        ),
        (lambda: Recipe(name="a", model="m", data={"train": "x"}, adapter={"type": "lore"}), "`type: lore`", "`lora`"),
        (lambda: LoraSection(rank="3"), "`rank`", "remove the quotes"),
        (lambda: LoraSection(rnk=3), "unknown key `rnk`", "did you mean `rank`?"),
    ],
)
def test_sections_made_in_python_are_answered_alike(make: Callable[[], object], words: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make()
    assert words in caught.value.what
    assert caught.value.where.startswith(("Recipe [", "LoraSection ["))
    assert hint in caught.value.hint


def test_an_error_of_the_file_is_not_blamed_on_an_override(refused: Refused) -> None:
    error = refused("training: {epoch: 1}\n", "training.max_steps=3")
    assert error.where.endswith("recipe.yaml:7 [training.epoch]")


def test_keyword_that_is_no_data(write: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match="not plain data"):
        codec.load(write(), training__epochs=object())


def test_values_that_are_no_data() -> None:
    with pytest.raises(RecipeError, match="not plain data"):
        codec.parse({"name": object()})
