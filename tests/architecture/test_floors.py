"""Imports run down: never up, never sideways between rooms, never inside a function of ours."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.source_tree import (
    PACKAGE,
    ROOT,
    imports,
    is_ours,
    room_of,
    room_of_module,
    shown,
    source_files,
    tree_of,
)

FLOORS = {
    1: {
        "types",
        "errors",
        "disk",
        "files",
        "expressions",
        "foreign",
        "json_values",
        "records",
        "embedded",
        "launcher",
        "progress",
        "visible",
        "signals",
        "tags",
    },
    2: {"recipe"},
    3: {"data", "models", "registry", "engine", "evaluation"},
    4: {"adapters", "objectives", "planning"},
    5: {"reports"},
    6: {"workshop"},
    7: {"cli", ROOT},
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
NEIGHBOURS = {
    ("files", "errors"),
    ("files", "disk"),
    ("foreign", "errors"),
    ("foreign", "json_values"),
    ("files", "json_values"),
    ("cli", ROOT),
    (ROOT, "cli"),
}
"""The only steps sideways: durable writes raise our errors; the command line is the package's other face."""

ONLY_FLOORS_1_AND_2 = {"engine", "evaluation"}
LAZY_DOORS = {"src/tunesmith/__init__.py", "src/tunesmith/cli/command.py", "src/tunesmith/cli/doors.py"}
"""Where modules of ours may be loaded late: the public face, the verb table and its use cases."""

THIRD_PARTY_DOORS = {"src/tunesmith/workshop/sinks.py"}
"""Where optional third parties are loaded by name from a table."""

LIGHT = (
    "errors", "disk", "files", "expressions", "foreign", "json_values", "records", "embedded", "launcher", "progress", "visible", "signals", "tags", "types", "recipe", "planning", "registry", "cli",
    "models/facts.py", "models/locate.py", "workshop/prepare.py", "workshop/planning.py", "workshop/doctor.py",
)  # fmt: skip
HEAVY_DATA = {"loader.py", "head_batches.py", "masked_batches.py", "part_batches.py"}
HEAVY = ("torch", "transformers")


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in source_files()}
    assert rooms - FLOOR_OF.keys() == set()


@pytest.mark.parametrize("path", source_files(), ids=shown)
def test_imports_run_down(path: Path) -> None:
    here = room_of(path)
    wrong = []
    for item in imports(path):
        there = room_of_module(item.module)
        if not is_ours(item.module) or there == here or (here, there) in NEIGHBOURS:
            continue
        limit = 3 if here in ONLY_FLOORS_1_AND_2 else FLOOR_OF[here]
        if here != ROOT and FLOOR_OF[there] >= limit:
            wrong.append(f"{shown(path)}:{item.line}: {here} imports {item.module}")
    assert wrong == []


@pytest.mark.parametrize("path", source_files(), ids=shown)
def test_own_code_is_imported_at_the_top(path: Path) -> None:
    late = [
        f"{shown(path)}:{item.line}: {item.module}" for item in imports(path) if is_ours(item.module) and item.is_late
    ]
    assert late == []


@pytest.mark.parametrize("path", source_files(), ids=shown)
def test_modules_are_loaded_by_name_only_at_the_doors(path: Path) -> None:
    if shown(path) in LAZY_DOORS | THIRD_PARTY_DOORS:
        return
    calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call) and _loads(node)]
    assert [f"{shown(path)}:{call.lineno}" for call in calls if not _names_a_third_party(call)] == []


def _loads(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in ("import_module", "__import__")


def _names_a_third_party(call: ast.Call) -> bool:
    first = call.args[0] if call.args else None
    return isinstance(first, ast.Constant) and not is_ours(str(first.value))


def test_a_room_without_circles() -> None:
    """Modules of one room may use each other, in one direction."""
    edges: dict[str, set[str]] = {}
    modules = {_module_of(path) for path in source_files()}
    for path in source_files():
        named = {item.module for item in imports(path) if is_ours(item.module)}
        edges[_module_of(path)] = {name for name in named if name in modules and name != _module_of(path)}
    assert _circle(edges) == []


def _module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _circle(edges: dict[str, set[str]]) -> list[str]:
    """Remove what imports nothing left, until nothing can be removed; what stays is in a circle or needs one."""
    left = {name: set(targets) for name, targets in edges.items()}
    while leaves := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in leaves:
            del left[name]
    return sorted(left)


def _light_files() -> list[Path]:
    rooms = [path for path in source_files() if room_of(path) == "data" and path.name not in HEAVY_DATA]
    for item in LIGHT:
        place = PACKAGE / item
        rooms += (
            sorted(place.rglob("*.py")) if place.is_dir() else [place if place.suffix else place.with_suffix(".py")]
        )
    return sorted({path for path in rooms if path.is_file()})


@pytest.mark.parametrize("path", _light_files(), ids=shown)
def test_light_rooms_do_not_name_torch(path: Path) -> None:
    checking = {
        node.lineno
        for test in ast.walk(tree_of(path))
        if _is_type_checking(test)
        for node in ast.walk(test)
        if hasattr(node, "lineno")
    }
    named = [
        f"{shown(path)}:{item.line}: {item.module}"
        for item in imports(path)
        if item.module.split(".")[0] in HEAVY and item.line not in checking
    ]
    assert named == []


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


def test_light_rooms_load_no_torch() -> None:
    """The same, of everything they import in turn: every verb starts without torch."""
    modules = sorted(_module_of(path) for path in _light_files() if path.name != "__main__.py")
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"    for heavy in {HEAVY!r}:\n"
        "        assert heavy not in sys.modules, f'{name} loads {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.splitlines()[-1]
