"""One idea a file: sizes that keep every piece readable in one sitting."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.architecture.source_tree import REPOSITORY, shown, source_files, tree_of

MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 60
MOST_ARGUMENTS = 8
VAGUE = {"utils", "util", "common", "misc", "helpers", "manager", "managers"}

FILES = (
    *source_files(),
    *sorted((REPOSITORY / "tools").rglob("*.py")),
    *sorted((REPOSITORY / "examples").rglob("*.py")),
)


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_files_are_short(path: Path) -> None:
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= MOST_FILE_LINES


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_functions_are_short(path: Path) -> None:
    functions = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    sizes = {
        f"{shown(path)}:{item.lineno} {item.name}": (item.end_lineno or item.lineno) - item.lineno + 1
        for item in functions
    }
    assert {name: size for name, size in sizes.items() if size > MOST_FUNCTION_LINES} == {}


@pytest.mark.parametrize("path", source_files(), ids=shown)
def test_functions_take_few_arguments(path: Path) -> None:
    """Signatures that a third party asks for say so on their line: ``# noqa: PLR0913 - transformers calls it``."""
    functions = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lines = path.read_text(encoding="utf-8").splitlines()
    own = [item for item in functions if "noqa: PLR0913" not in lines[item.lineno - 1]]
    counts = {f"{shown(path)}:{item.lineno} {item.name}": _num_arguments(item) for item in own}
    assert {name: count for name, count in counts.items() if count > MOST_ARGUMENTS} == {}


def _num_arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = function.args
    names = [item.arg for item in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_files_have_a_subject(path: Path) -> None:
    assert path.stem not in VAGUE
    assert path.parent.name not in VAGUE


@pytest.mark.parametrize(
    "path", [path for path in source_files() if path.read_text(encoding="utf-8").strip()], ids=shown
)
def test_files_say_what_they_are(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))
