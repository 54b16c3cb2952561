"""Wrong recipes and arguments: each is refused by place and with a way out, and leaves nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.desk import Call, Write, remains
from tests.e2e.desk import source as rows_of

HEAD = "name: desk\nmodel: tiny\ndata:\n  train: rows.jsonl\n"
WRONG_RECIPES = {
    "unknown key": (HEAD + "trainig: {}\n", ":5 [trainig]", "did you mean `training`?"),
    "unknown key, second depth": (
        HEAD + "training:\n  learning_rte: 1e-3\n", ":6 [training.learning_rte]", "did you mean `learning_rate`?",
    ),
    "unknown key in a list": (
        "name: desk\nmodel: tiny\ndata:\n  train:\n    - path: rows.jsonl\n      colums: {a: b}\n",
        ":6 [data.train.0.colums]", "did you mean `columns`?",
    ),
    "unknown key in a variant": (
        HEAD + "evaluation:\n  tasks:\n    - type: loss\n      dat: test\n",
        ":8 [evaluation.tasks.0.dat]", "did you mean `data`?",
    ),
    "unknown key, third depth": (
        HEAD + "training:\n  early_stopping:\n    patence: 3\n",
        ":7 [training.early_stopping.patence]", "did you mean `patience`?",
    ),
    "wrong type": (HEAD + "training:\n  batch_size: many\n", ":6 [training.batch_size]", "given: 'many'"),
    "a number in quotes": (HEAD + 'training:\n  learning_rate: "1e-4"\n', ":6 [training.learning_rate]", "remove the quotes"),
    "no for false": (HEAD + "machine:\n  deterministic: no\n", ":6 [machine.deterministic]", "true or false"),
    "a number for a name": ("name: 12\nmodel: tiny\ndata: {train: rows.jsonl}\n", ":1 [name]", "in quotes"),
    "unknown method": (HEAD + "adapter: {type: lorra}\n", ":5 [adapter", "did you mean `lora`?"),
    "out of range": (HEAD + "adapter: {rank: 0}\n", ":5 [adapter.rank]", "given: 0"),
    "missing key": ("model: tiny\ndata: {train: rows.jsonl}\n", "[name]", "tunesmith init"),
    "two budgets": (HEAD + "training: {epochs: 1, max_steps: 2}\n", ":5 [training]", "given:"),
    "not YAML": (HEAD + "training: [\n", "recipe.yaml:6", "indentation"),
    "a tab": ("name: desk\n\tmodel: tiny\n", "recipe.yaml:2", "indentation"),
    "a key twice": (HEAD + "model: other\n", "recipe.yaml:5", "repeated keys"),
    "empty": ("", "recipe.yaml", "tunesmith init"),
    "a list": ("- a\n", "recipe.yaml", "tunesmith init"),
    "a tag": (HEAD + "seed: !!python/object:os.system 1\n", "recipe.yaml:5", "plain values"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_RECIPES)
@pytest.mark.parametrize("verb", ["train", "plan"])
def test_a_wrong_recipe(desk: Path, call: Call, verb: str, name: str) -> None:
    text, *needles = WRONG_RECIPES[name]
    (desk / "recipe.yaml").write_text(text, encoding="utf-8")
    call(verb, "recipe.yaml").refuses(2, *needles)
    assert remains(desk) == []


def test_numbers_and_words_as_yaml_12_means_them(desk: Path, call: Call) -> None:
    (desk / "recipe.yaml").write_text(
        "name: no\nmodel: tiny\ndata: {train: rows.jsonl, test: 0}\ntraining: {learning_rate: 1e-4, max_steps: 2}\n",
        encoding="utf-8",
    )
    said = call("plan", "recipe.yaml", "--json")
    assert said.code == 0, said.err
    assert said.json["recipe"]["name"] == "no"
    assert said.json["recipe"]["training"]["learning_rate"] == 1e-4


def test_a_missing_recipe_names_the_near_one(desk: Path, call: Call, write: Write) -> None:
    write("recipe.yaml")
    call("train", "recipes.yaml").refuses(2, "no such recipe file", "at recipes.yaml", "did you mean `recipe.yaml`?")
    call("train", "tiny").refuses(2, "this is a folder")
    (desk / "latin.yaml").write_bytes("name: caf\xe9\n".encode("latin-1"))
    call("train", "latin.yaml").refuses(2, "not UTF-8", "at latin.yaml")


@pytest.mark.parametrize(
    ("override", "needles"),
    [
        ("trainig.epochs=1", ("override trainig.epochs", "did you mean `training`?")),
        ("training.batch_size=many", ("override training.batch_size", "given: 'many'")),
        ("machine.deterministic=no", ("override machine.deterministic", "true or false")),
        ("training.batch_size", ("command line", "section.key=value")),
        ("data.train.7.path=x", ("override data.train.7.path", "count from 0")),
    ],
)
def test_a_wrong_override(desk: Path, call: Call, write: Write, override: str, needles: tuple[str, ...]) -> None:
    call("train", write(), override).refuses(2, *needles)
    assert remains(desk) == []


TARGETS = [
    ({"type": "lora", "targets": ["nothing.*"]}, ("`nothing.*` matches no linear layer", "model.layers.*.mlp.down_proj")),
    ({"type": "lora", "targets": ["q_proj", "w_proj"]}, ("`w_proj`", "self_attn.q_proj")),
    ({"type": "lora", "also_train": ["nosuch"]}, ("`nosuch` matches no parameter", "model.embed_tokens.weight")),
    ({"type": "lora", "train_tokens": ["<|im_edn|>"]}, ("`<|im_edn|>` is not one token", "did you mean `<|im_end|>`?")),
    ({"type": "partial", "patterns": ["nosuch"]}, ("`nosuch`", "model.norm.weight")),
    ({"type": "partial", "last_layers": 9}, ("`last_layers` is 9", "at most 2")),
    ({"type": "partial"}, ("nothing would train", "`last_layers`")),
]  # fmt: skip


@pytest.mark.parametrize(("adapter", "needles"), TARGETS)
@pytest.mark.parametrize("verb", ["train", "plan"])
def test_a_target_that_matches_nothing_lists_what_exists(
    desk: Path, call: Call, write: Write, verb: str, adapter: dict[str, object], needles: tuple[str, ...]
) -> None:
    call(verb, write(adapter=adapter)).refuses(2, "recipe.yaml:", "[adapter", *needles)
    assert remains(desk) == []


def test_keys_found_wrong_late_are_named_by_line(desk: Path, call: Call, write: Write) -> None:
    (desk / "recipe.yaml").write_text(HEAD + "machine:\n  device: cuda\n", encoding="utf-8")
    said = call("plan", "recipe.yaml", "--json")
    if said.code == 0:
        pytest.skip("this machine has a GPU")
    said.refuses(3, "at recipe.yaml:6 [machine.device]")
    assert said.json["error"]["where"] == "recipe.yaml:6 [machine.device]"
    call("plan", write(), "training.precision=fp16").refuses(3, "at override training.precision")


@pytest.mark.parametrize("verb", ["plan", "train"])
def test_a_sink_that_is_not_installed(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr("tunesmith.workshop.sinks.find_spec", lambda name: None)
    said = call(verb, write(logging={"sinks": ["trackio"]}))
    said.refuses(2, "`trackio` is not installed", "at recipe.yaml:", "[logging.sinks]", "tunesmith[trackio]")
    assert not (desk / "runs").exists()


@pytest.mark.parametrize("validation", [0, 0.0001])
def test_early_stopping_without_validation_rows(desk: Path, call: Call, write: Write, validation: float) -> None:
    changes = {"data__validation": validation, "training__early_stopping": {"patience": 1}}
    recipe = write(**changes, evaluation={"tasks": [], "preserve": []})
    for verb in ("plan", "train") if validation == 0 else ("train", "plan"):  # the cache tells `plan` of empty splits
        call(verb, recipe).refuses(
            2, "there are none", "at recipe.yaml:", "[training.early_stopping]", "data.validation"
        )
    assert not (desk / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "missing.yaml"),
        ("plan", "missing.yaml"),
        ("data", "check", "missing.yaml"),
        ("data", "show", "missing.yaml", "--row", "0"),
        ("data", "show", "recipe.yaml", "--row", "99"),
        ("data", "show", "recipe.yaml", "--row", "many"),
        ("data", "show", "recipe.yaml"),
        ("data", "chek", "recipe.yaml"),
        ("eval", "nothing", "recipe.yaml"),
        ("eval", "tiny", "missing.yaml"),
        ("eval", "tiny"),
        ("generate", "nothing", "--prompt", "hello"),
        ("generate", "tiny", "--prompt", ""),
        ("export", "nothing", "out"),
        ("report", "nothing"),
        ("runs", "show", "nothing"),
        ("runs", "compare", "nothing", "nothing"),
        ("trian", "recipe.yaml"),
        ("train", "recipe.yaml", "--runn", "x"),
    ],
)
def test_json_is_one_object_for_every_mistake(desk: Path, call: Call, write: Write, arguments: tuple[str, ...]) -> None:
    write()
    said = call(*arguments, "--json").refuses(2)
    error = said.json["error"]
    assert set(error) == {"what", "where", "hint", "exit_code"}
    assert all(error.values())
    assert not (desk / "runs").exists()
    assert not (desk / "out").exists()


def test_a_process_says_it_the_same_way(desk: Path, write: Write) -> None:
    recipe = write(data__train=rows_of("row.jsonl"))
    command = [sys.executable, "-m", "tunesmith", "train", recipe, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=desk)
    assert done.returncode == 2
    assert done.stdout.count("\n") == 1
    assert '"exit_code": 2' in done.stdout
    assert done.stderr == (
        "error: there is no such file\n  at row.jsonl\n"
        "hint: did you mean `rows.jsonl`? . holds: recipe.yaml, rows.jsonl, tiny/\n"
    )
