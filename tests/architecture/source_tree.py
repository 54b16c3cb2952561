"""The source as syntax trees: rooms, imports, sizes. Shared by the tests of this folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "tunesmith"
ROOT = "tunesmith"


@dataclass(frozen=True)
class Import:
    """One imported module, with every name a room of ours could hide in."""

    module: str
    line: int
    is_late: bool


@cache
def source_files() -> tuple[Path, ...]:
    return tuple(sorted(PACKAGE.rglob("*.py")))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def shown(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def room_of(path: Path) -> str:
    """The package or module directly below ``tunesmith``; the package's own files are ``tunesmith``."""
    parts = path.relative_to(PACKAGE).parts
    name = parts[0].removesuffix(".py")
    return ROOT if name in ("__init__", "__main__") else name


def room_of_module(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ROOT


def imports(path: Path) -> Iterator[Import]:
    """Every import; those inside functions, or under a function's classes, are late."""
    yield from _imports(tree_of(path), is_late=False)


def _imports(node: ast.AST, *, is_late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(name.name, child.lineno, is_late) for name in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from _from(child, is_late)
        else:
            inside = is_late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, is_late=inside)


def _from(node: ast.ImportFrom, is_late: bool) -> Iterator[Import]:
    assert node.level == 0, f"relative import in line {node.lineno}"
    module = node.module or ""
    for name in node.names:
        inner = f"{module}.{name.name}"
        yield Import(inner if is_module_of_ours(inner) else module, node.lineno, is_late)


def is_module_of_ours(module: str) -> bool:
    place = PACKAGE.parent.joinpath(*module.split("."))
    return is_ours(module) and (place.with_suffix(".py").is_file() or (place / "__init__.py").is_file())


def is_ours(module: str) -> bool:
    return module == ROOT or module.startswith(f"{ROOT}.")
