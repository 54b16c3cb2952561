"""Every error made for a user says where it is and how to mend it."""

from __future__ import annotations

import ast

import pytest

from tests.architecture.source_tree import PACKAGE, shown, source_files, tree_of
from tunesmith import errors

OWN = {
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.TunesmithError)
}
NAMES = OWN | {
    node.name
    for path in source_files()
    for node in ast.walk(tree_of(path))
    if isinstance(node, ast.ClassDef) and OWN & {base.id for base in node.bases if isinstance(base, ast.Name)}
}


def lacking(tree: ast.AST) -> list[str]:
    """``line: parts`` of each call of a named error class that leaves a part out, or gives it as an empty text."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or _name(node.func) not in NAMES:
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        parts = [part for part in ("where", "hint") if part not in given or _may_be_empty(given[part])]
        if parts:
            found.append(f"{node.lineno}: {' and '.join(parts)}")
    return found


def _name(function: ast.expr) -> str:
    return (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )


def _may_be_empty(value: ast.expr) -> bool:
    if isinstance(value, ast.Constant):
        return not value.value
    return isinstance(value, ast.IfExp) and (_may_be_empty(value.body) or _may_be_empty(value.orelse))


@pytest.mark.parametrize("path", [path for path in source_files() if path != PACKAGE / "errors.py"], ids=shown)
def test_errors_have_their_three_parts(path):
    assert lacking(tree_of(path)) == []


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ('RunError("torn", where=path, hint="copy it")', []),
        ('RunError("torn", where=path)', ["1: hint"]),
        ('errors.DataError("torn")', ["1: where and hint"]),
        ('ModelError("torn", where="", hint=hint if near else "")', ["1: where and hint"]),
        ('ValueError("torn")', []),
    ],
)
def test_what_is_lacking_is_found(source, parts):
    assert lacking(ast.parse(source)) == parts
