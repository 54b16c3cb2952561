"""Recipes, overrides and data paths of strangers: a recipe or an error with file and key, quickly, and nothing run or opened."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.hostile.bounds import GENTLE, TELL, answer, measured, refusal
from tests.hostile.test_model_files import JSON
from tunesmith.data.sources import expand
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.codec import apply_overrides, load, parse
from tunesmith.recipe.data import SourceSection
from tunesmith.recipe.root import Recipe
from tunesmith.recipe.syntax import MOST_BYTES

GOOD = """\
name: desk   # a comment
model: tunesmith-base-8m
data:
  train: {path: rows.jsonl, format: prompt-completion, columns: {prompt: text, completion: label}}
  validation: 0.1
adapter: {type: lora, rank: 8}
training: {epochs: 2, learning_rate: 1e-4}
seed: 3
"""
VALUES = {
    "name": "desk",
    "model": "m",
    "data": {"train": [{"path": "rows.jsonl"}]},
    "adapter": {"type": "lora"},
    "training": {},
    "evaluation": {},
    "machine": {},
    "logging": {},
    "objective": {"type": "sft"},
}


def _laughs() -> str:
    """A billion laughs: nine lines, each nine times the one before."""
    names = "abcdefghi"
    lines = ['a: &a ["lol"]']
    lines += [f"{name}: &{name} [{','.join(f'*{before}' for _ in range(9))}]" for before, name in pairwise(names)]
    return "\n".join(lines)


EVIL = {
    "billion laughs": _laughs(),
    "merges of merges": "a: &a {x: 1}\n" + "".join(f"{n}: &{n} {{<<: [{','.join('*' + p for _ in range(9))}]}}\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)),
    "an alias of itself": "a: &a [*a]\n",
    "a merge of itself": "a: &a {<<: *a}\n",
    "python object": "a: !!python/object/apply:os.system [ls]",
    "python name": "a: !!python/name:os.system",
    "unknown tag": "a: !thing {b: 1}",
    "binary": "a: !!binary aGVsbG8=",
    "set": "a: !!set {b, c}",
    "lists": "[" * 100_000,
    "mappings": "{a: " * 20_000,
    "dashes": "- " * 50_000,
    "questions": "? " * 50_000,
    "anchors": "".join(f"&a{number} " for number in range(10_000)),
    "a long hexadecimal": GOOD + "evaluation: {limit: 0x" + "f" * 100_000 + "}",
    "a long octal": GOOD.replace("seed: 3", "seed: 0o" + "7" * 100_000),
    "a long number": GOOD.replace("seed: 3", "seed: " + "9" * 10_000),
    "a long underlined number": GOOD.replace("seed: 3", "seed: " + "1_" * 100_000),
    "an infinity": GOOD.replace("1e-4", "1e999"),
    "no number": GOOD.replace("1e-4", ".nan"),
    "half a character": GOOD.replace("desk", '"\\ud800"'),
    "half a character in a path": GOOD.replace("rows.jsonl", '"\\udfff"'),
    "a key of a long number": "0x" + "f" * 100_000 + ": 1",
    "a key of a list of long numbers": "? [0x" + "f" * 100_000 + "]\n: 1",
    "a key of a mapping": "? {a: 1}\n: 1",
    "a directive": "%YAML " + "1" * 100_000 + ".2\n---\na: 1",
    "many documents": "---\n" * 50_000,
    "a traversal as a name": GOOD.replace("desk", "../../etc/x"),
    "an absolute name": GOOD.replace("desk", "/etc/x"),
    "dots as a name": GOOD.replace("desk", ".."),
    "a name with a line": GOOD.replace("desk", '"a\\nb"'),
    "a name with a null": GOOD.replace("desk", '"a\\0b"'),
    "a long name": GOOD.replace("desk", "x" * 65),
    "keys of other types": "1: 2\ntrue: 3\nnull: 4\n[a]: 5\n{a: b}: 6\n",
}  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_evil_recipes(tmp_path: Path, name: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(EVIL[name], encoding="utf-8", errors="surrogatepass")
    refused = refusal(lambda: load(path), 12)
    assert isinstance(refused, RecipeError)
    assert len(refused.what) < 600


def test_a_recipe_has_a_largest_size(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("#" * (MOST_BYTES + 1), encoding="utf-8")
    assert "KiB" in refusal(lambda: load(path)).what
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "KiB" in refusal(lambda: load(path)).what


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece", ["a: 1\n", "- ", "[", "&a *a ", "'", "k: {", "? a\n", "|\n  x\n", "# x\n", "\t", "!a "]
)
def test_a_recipe_of_the_largest_size_takes_seconds(tmp_path: Path, piece: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(piece * (MOST_BYTES // len(piece)), encoding="utf-8")
    code = TELL + "from tunesmith.recipe.codec import load\ntell(lambda: load(sys.argv[1]))"
    said, peak = measured(code, str(path), seconds=60, mebibytes=2048)
    assert said.startswith("RecipeError")
    assert peak < 600


@settings(GENTLE, max_examples=100)
@given(payload=st.binary(max_size=120), suffix=st.sampled_from([".yaml", ".json"]))
def test_any_bytes(tmp_path: Path, payload: bytes, suffix: str) -> None:
    path = tmp_path / f"recipe{suffix}"
    path.write_bytes(payload)
    assert isinstance(refusal(lambda: load(path)), RecipeError)


@settings(GENTLE, max_examples=100)
@given(text=st.text(alphabet="ab01:-[]{}&*!|>'\"\\%#?,<~ \n\t_.x", max_size=80))
@example(text="- - -\n - : :")
@example(text="a: *b")
@example(text="<<: 1")
def test_any_yaml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    refusal(lambda: load(path))


@settings(GENTLE, max_examples=100)
@given(data=st.data())
def test_good_recipes_with_pieces_changed_lost_or_doubled(tmp_path: Path, data: st.DataObject) -> None:
    text = GOOD
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 20)))
        text = (
            text[:start]
            + data.draw(
                st.sampled_from(["", text[start:end] * 2, "&a ", "*a", "!!t ", "{", "]", "\x00", "\u2028", ": "])
            )
            + text[end:]
        )
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    assert isinstance(answer(lambda: load(path)), Recipe | RecipeError)


@settings(GENTLE, max_examples=150)
@given(data=st.data())
def test_any_value_at_any_key(data: st.DataObject) -> None:
    values: dict[str, Any] = json.loads(json.dumps(VALUES))
    section = data.draw(st.sampled_from([None, *(key for key, value in VALUES.items() if isinstance(value, dict))]))
    target = values if section is None else values[section]
    fields = {
        "data": ["train", "validation", "test", "overlong"],
        "training": ["epochs", "learning_rate", "guards", "early_stopping", "batch_size"],
        "evaluation": ["tasks", "preserve", "limit"],
        "machine": ["device", "threads", "memory_gib"],
        "adapter": ["type", "rank", "targets"],
        "objective": ["type", "loss_on"],
        "logging": ["sinks"],
        None: list(VALUES),
    }
    target[data.draw(st.sampled_from([*fields[section], "unknown", "__class__"]))] = data.draw(JSON)
    assert isinstance(answer(lambda: parse(values)), Recipe | RecipeError)


@settings(GENTLE, max_examples=100)
@given(items=st.lists(st.text(alphabet="abdt.=0123[]{}:²٣ \\\"'&*!", max_size=24), max_size=3))
@example(items=["data.train.²=1"])
@example(items=["data.train." + "9" * 5_000 + "=1"])
@example(items=["a." * 100_000 + "b=1"])
@example(items=["a=" + "[" * 700])
@example(items=["a=&a [*a]"])
@example(items=["name=!!python/name:os.system"])
def test_any_override(items: list[str]) -> None:
    answer(lambda: parse(apply_overrides(VALUES, items)), 12)


@pytest.mark.parametrize(
    "facts", ["[", "[]", "{}", '{"recipe_folder": 5}', '{"recipe_folder": null}', "[" * 100_000, "\xff"]
)
def test_what_lies_beside_the_recipe_of_a_run(tmp_path: Path, facts: str) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(VALUES), encoding="utf-8")
    (tmp_path / "environment.json").write_bytes(facts.encode("latin-1"))
    assert isinstance(answer(lambda: load(tmp_path / "recipe.json")), Recipe | RecipeError)


@pytest.mark.parametrize(
    "path",
    ["a\0b", "*\0", "x" * 5_000, "*" + "x" * 5_000, "/" * 5_000, "~nobody-of-this-name/*", "**/" * 200 + "*", "[", "[]*", "../" * 500 + "*", "\ud800*", "", " ", "."],
)  # fmt: skip
def test_any_path_of_data(tmp_path: Path, path: str) -> None:
    refusal(lambda: expand(SourceSection(path=path), tmp_path))


def test_links_that_lead_back_do_not_make_a_glob_endless(tmp_path: Path) -> None:
    """Two links to the folder itself make 2^40 paths of what lies in it."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "rows.jsonl").write_text('{"text": "x"}\n', encoding="utf-8")
    for name in ("a", "b", "inner/c", "inner/d"):
        (tmp_path / name).symlink_to(tmp_path)
    for pattern in ("**/*.jsonl", ".", "**/**/**/*.jsonl", f"{tmp_path}/**/rows.*"):
        found = answer(lambda pattern=pattern: expand(SourceSection(path=pattern), tmp_path))
        assert found == [tmp_path / "inner" / "rows.jsonl"]


def test_data_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    for name in ("zero.jsonl", "loop.jsonl"):
        assert isinstance(refusal(lambda name=name: expand(SourceSection(path=name), tmp_path)), DataError)
