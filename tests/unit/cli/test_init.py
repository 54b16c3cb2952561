"""`init` and `schema`: what a newcomer starts from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.recipe import codec

Call = Callable[..., Any]


def test_init_writes_a_recipe_that_loads(call: Call) -> None:
    said = call("init", "new/place", "--json")
    assert said.code == 0
    assert said.json["files"] == ["new/place/recipe.yaml", "new/place/messages.jsonl"]
    recipe = codec.load("new/place/recipe.yaml")
    assert recipe.model.name == "tunesmith-base-8m"
    checked = call("data", "check", "new/place/recipe.yaml", "--json")
    assert checked.code == 0, checked.err
    assert checked.json["rejected"] == {}
    assert checked.json["trained"] >= 60
    assert checked.json["held_out"] >= 30


def test_commented_lines_are_keys_that_exist() -> None:
    """Every `# key: value` of the starter is a valid line, so uncommenting never fails."""
    text = (Path(codec.__file__).parents[1] / "cli" / "starter" / "recipe.yaml").read_text(encoding="utf-8")
    for line in text.splitlines():
        body = line.strip()
        if not body.startswith("# ") or ":" not in body or body.startswith("# Commented"):
            continue
        key = body[2:].split(":")[0]
        if key.isidentifier():
            assert any(
                key in section.get("properties", {}) for section in [codec.schema(), *codec.schema()["$defs"].values()]
            ), key


def test_sample_rows_are_distinct_and_balanced() -> None:
    path = Path(codec.__file__).parents[1] / "cli" / "starter" / "messages.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    labels = [row["category"] for row in rows]
    assert len({row["text"] for row in rows}) == len(rows)
    assert len(set(labels)) == 5
    assert min(labels.count(label) for label in set(labels)) >= 20


def test_init_into_the_current_folder(call: Call) -> None:
    said = call("init")
    assert said.code == 0
    assert Path("recipe.yaml").exists()
    assert "tunesmith train recipe.yaml" in said.out


def test_init_overwrites_nothing(call: Call) -> None:
    Path("messages.jsonl").write_text("mine\n", encoding="utf-8")
    said = call("init")
    assert said.code == 2
    assert "`messages.jsonl` exists already" in said.err
    assert Path("messages.jsonl").read_text(encoding="utf-8") == "mine\n"
    assert not Path("recipe.yaml").exists()


def test_init_into_a_file(call: Call) -> None:
    Path("place").write_text("", encoding="utf-8")
    assert call("init", "place").code == 2


def test_schema_is_one_object(call: Call) -> None:
    said = call("schema")
    assert said.code == 0
    assert said.json == codec.schema()
    assert call("schema", "--json").json == said.json
