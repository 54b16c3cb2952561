"""Run folders of strangers: every verb that reads one answers, or says what is wrong with which file."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.bounds import TELL, measured, within
from tests.hostile.conftest import call
from tunesmith.files import MOST_BYTES, MOST_JSON_BYTES

RUN = Path("runs/desk")
LIGHT = (
    ("runs", "list", "--json"), ("runs", "show", RUN), ("runs", "show", RUN, "--json"), ("runs", "compare", RUN, "runs/other"),
    ("runs", "compare", "runs/other", RUN, "--json"), ("report", RUN),
)  # fmt: skip
HEAVY = (
    ("generate", RUN, "--prompt", "hello", "--max-new-tokens", "2"), ("eval", RUN, "recipe.yaml"), ("export", RUN, "out"),
    ("eval", "tiny", RUN / "recipe.json"), ("train", "recipe.yaml"), ("runs", "reproduce", RUN),
)  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 1.5, "x", "", [], {}, [1], {"a": 1}, ["x"], {"a": {"b": [1]}}, 10**18, -(10**18), 1e308, 5e-324,
    "\x1b[2J<script>", [[]], [{}], {"value": "x"}, "NaN", "../../x", "/etc/passwd", "a\0b",
]  # fmt: skip
TEXTS = [
    "", "{", "[]", "null", '"x"', "5", "[" * 5_000, '{"a":' * 5_000, '{"step":' + "9" * 5_000 + "}", '{"step": 1e999}', '{"a": NaN}',
    "\ud800",
]  # fmt: skip
LINES = [
    "x",
    "[]",
    "null",
    '{"step": "x"}',
    '{"step": 1e999, "loss": 1}',
    "[" * 5_000,
    '{"loss": 1}',
    '{"step": 1, "loss": []}',
    "5",
]


def _files() -> list[Path]:
    found = [path for path in RUN.rglob("*.json*") if path.is_file() and "checkpoints" not in path.parts]
    assert len(found) > 12
    return sorted(found)


def _spoil(path: Path, chance: random.Random) -> None:
    """Replace a value somewhere in a file of JSON, or a line, or all of it."""
    text = path.read_text(encoding="utf-8", errors="surrogatepass")
    if path.suffix == ".json":
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return
        kind = chance.random()
        if kind < 0.1:
            path.write_text(chance.choice(TEXTS), encoding="utf-8", errors="surrogatepass")
        elif kind < 0.15:
            path.unlink()
        else:
            path.write_text(json.dumps(_changed(values, chance)), encoding="utf-8")
        return
    lines = text.splitlines()
    if not lines or chance.random() < 0.3:
        path.write_text(f"{chance.choice(LINES)}\n" * 2, encoding="utf-8")
        return
    at = chance.randrange(len(lines))
    try:
        lines[at] = json.dumps(_changed(json.loads(lines[at]), chance))
    except (ValueError, RecursionError):
        return
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _changed(values: Any, chance: random.Random) -> Any:
    node = values
    while isinstance(node, dict | list) and node:
        key = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
        if isinstance(node[key], dict | list) and node[key] and chance.random() < 0.75:
            node = node[key]
            continue
        kind = chance.random()
        if kind < 0.8:
            node[key] = chance.choice(VALUES)
        elif isinstance(node, dict):
            del node[key]
        else:
            node.append(chance.choice(VALUES))
        return values
    return chance.choice(VALUES)


def _listing(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if "runs" not in path.parts and "cache" not in path.parts
    }


def _ask(verbs: tuple[tuple[object, ...], ...], seconds: float) -> Iterator[str]:
    """Call verbs and yield what any said that is no answer and no error of three parts."""
    for verb in verbs:
        with within(seconds):
            said = call(*verb)
        lines = said.err.splitlines()
        whole = said.code == 0 or all(
            any(line.startswith(part) for line in lines) for part in ("error: ", "  at ", "hint: ")
        )
        if said.code not in (0, 2, 3, 4) or not whole or "Traceback" in said.err:
            yield f"{verb} ends with {said.code}: {said.err[-800:]}"


def _tried(desk: Path, verbs: tuple[tuple[object, ...], ...], seeds: range, seconds: float) -> None:
    kept = desk / "kept"
    shutil.copytree(RUN, kept)
    before = _listing(desk) | {"out"}
    for seed in seeds:
        chance = random.Random(seed)
        shutil.rmtree(RUN)
        shutil.copytree(kept, RUN)
        for path in chance.sample(_files(), chance.choice([1, 1, 2])):
            _spoil(path, chance)
        assert list(_ask(verbs, seconds)) == [], f"seed {seed}"
        shutil.rmtree(desk / "out", ignore_errors=True)
        assert {name for name in _listing(desk) if not name.startswith("out/")} <= before, (
            f"seed {seed} wrote beside the run"
        )


def test_a_whole_run_is_read_by_all(desk: Path) -> None:
    assert list(_ask(LIGHT, 20)) == []
    assert all(call(*verb).code == 0 for verb in LIGHT)


def test_spoilt_files_are_named_by_every_reader(desk: Path) -> None:
    _tried(desk, LIGHT, range(120), 10)


@pytest.mark.slow
def test_spoilt_files_are_named_by_every_reader_again_and_again(desk: Path) -> None:
    _tried(desk, LIGHT, range(1_000, 1_600), 10)


@pytest.mark.slow
def test_spoilt_files_are_named_by_the_verbs_that_load_models(desk: Path) -> None:
    _tried(desk, HEAVY, range(2_000, 2_040), 60)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
def test_files_that_are_no_files(desk: Path, kind: str) -> None:
    for path in _files():
        if path.parts[-2] == "adapter":
            continue  # test_adapters
        kept = path.read_bytes()
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero" if kind == "device" else path.absolute())
        assert list(_ask(LIGHT, 20)) == [], f"{kind} {path}"
        path.rmdir() if kind == "folder" else path.unlink()
        path.write_bytes(kept)


def test_files_of_a_run_have_a_largest_size(desk: Path) -> None:
    for name, most in (("metrics.jsonl", MOST_BYTES), ("status.json", MOST_JSON_BYTES), ("plan.json", MOST_JSON_BYTES)):
        path = RUN / name
        kept = path.read_bytes()
        with path.open("wb") as stream:
            stream.truncate(most + 1)
        code = (
            TELL
            + "from tunesmith.cli.main import run\nfor verb in (['runs', 'show', 'runs/desk'], ['runs', 'list'], ['report', 'runs/desk']): run(verb)"
        )
        _, peak = measured(code, seconds=60, mebibytes=4096)
        assert peak < 300
        path.write_bytes(kept)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("status.json", "[" + "[]," * (MOST_JSON_BYTES // 3 - 8) + "[]]"),
        ("environment.json", "[" + "[]," * 20_000_000 + "[]]"),
        ("metrics.jsonl", '{"step":41}\n' * 2_000_000),
        ("metrics.jsonl", '{"step":41,"x":"' + "x" * (17 << 20) + '"}\n'),
    ],
    ids=["as large as it may be", "too large", "very many lines", "a very long line"],
)
def test_files_of_a_run_are_read_in_bounded_memory(desk: Path, name: str, text: str) -> None:
    (RUN / name).write_text(text)
    code = (
        TELL
        + "from tunesmith.cli.main import run\nfor verb in (['runs', 'list'], ['runs', 'show', 'runs/desk']): run(verb)"
    )
    _, peak = measured(code, seconds=120, mebibytes=4096)
    assert peak < 450


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "..", ".", "a/b", "a\0b", "-x", "", "CON\n"])
def test_a_name_of_a_run_that_leads_elsewhere(desk: Path, name: str) -> None:
    """The folder of a run is named after its recipe: a name is letters, digits, dots and dashes."""
    values = json.loads(Path("recipe.yaml").read_text(encoding="utf-8"))
    Path("evil.yaml").write_text(json.dumps(values | {"name": name}), encoding="utf-8")
    before = _listing(desk.parent)
    said = call("train", "evil.yaml")
    assert said.code == 2, said.err
    assert "name" in said.err
    assert _listing(desk.parent) == before
