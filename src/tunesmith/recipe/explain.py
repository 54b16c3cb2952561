"""Pydantic's complaints in a person's words: what is wrong, file, line and key, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tunesmith.errors import RecipeError
from tunesmith.recipe.syntax import Place, Written

_CONTAINER_KINDS = {"list_type", "dict_type", "model_type", "model_attributes_type", "dataclass_type"}
_LONGEST_SHOWN = 60


def explain(error: ValidationError, values: Mapping[str, Any], written: Written, root: type[BaseModel]) -> RecipeError:
    """The first complaint worth reading: unknown keys first, then in the order of the file.

    Args:
        error: pydantic's complaints.
        values: what was validated, as plain values.
        written: where its keys stand.
        root: the section that it was to become.
    """
    details = [(detail, _keys(detail, values)) for detail in error.errors()]
    first, keys = min(
        _relevant(details), key=lambda item: (item[0]["type"] != "extra_forbidden", written.line(item[1]) or 0)
    )
    what, hint = _message(first, keys, root)
    unknown = {place for detail, place in details if detail["type"] == "extra_forbidden"} - {keys}
    if first["type"] == "extra_forbidden" and unknown:
        hint += f" ({len(unknown)} more unknown after this one)"
    return RecipeError(what, where=written.where(keys), hint=hint)


def _relevant(details: list[tuple[ErrorDetails, Place]]) -> list[tuple[ErrorDetails, Place]]:
    """Drop what the union members that were not meant complain about: "not a list" where a mapping was given."""
    deeper = [
        (detail, keys)
        for detail, keys in details
        if detail["type"] not in _CONTAINER_KINDS
        or not any(other[: len(keys)] == keys and other != keys for _, other in details)
    ]
    return deeper or details


def _keys(detail: ErrorDetails, values: Any) -> Place:
    """The path as the user wrote it: without names that pydantic adds for union members and validators."""
    location = detail["loc"]
    keep: list[str | int] = []
    node: Any = values
    for position, part in enumerate(location):
        is_last = position == len(location) - 1
        if isinstance(node, dict) and part in node:
            node = node[str(part)]
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        elif not (is_last and detail["type"] in ("missing", "extra_forbidden")):
            continue
        keep.append(part)
    return tuple(keep)


def _message(detail: ErrorDetails, keys: Place, root: type[BaseModel]) -> tuple[str, str]:
    key = _shown(keys)
    kind = detail["type"]
    if kind == "extra_forbidden":
        return f"unknown key `{key}`", _known(key, detail["loc"], root)
    if kind == "missing":
        return f"`{key}` is missing", "add it; `tunesmith init` writes a complete recipe"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _unknown_type(detail, key, root)
    given = detail["input"]
    if kind in _CONTAINER_KINDS:
        return f"`{key}` is {'a list' if kind == 'list_type' else 'a mapping of keys'}", _container(
            given, kind, key, _tags(key, root)
        )
    message = str(detail["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    named = message if not keys or f"`{key}`" in message else f"`{key}`: {message}"
    if kind == "value_error" and isinstance(given, Mapping):  # several keys that do not go together
        return named, "change one of the keys that it names" + (f"; given: {_short(given)}" if keys else "")
    return named, _given(given, kind, detail)


def _known(key: str, location: tuple[str | int, ...], root: type[BaseModel]) -> str:
    """The key that was meant, of the section itself or of another variant of it; else the keys there are."""
    allowed = _fields_of(_models_at(location[:-1], root))
    variants = _models_at(location[:-2], root)
    here = f"known keys here: {', '.join(allowed)}"
    name = key.replace("-", "_")
    is_elsewhere = key in _fields_of(variants)
    close = [] if is_elsewhere else difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    if close:
        return f"did you mean `{close[0]}`?"
    close = [key] if is_elsewhere else difflib.get_close_matches(name, _fields_of(variants), n=1, cutoff=0.8)
    if not close:
        return here
    owners = [tag for model in variants if close[0] in model.model_fields and (tag := _tag(model))]
    if owners:
        meant = f"`{key}` belongs" if is_elsewhere else f"did you mean `{close[0]}`? It belongs"
        *first, last = [f"`type: {tag}`" for tag in owners]
        return f"{meant} to {', '.join(first)}{' and ' if first else ''}{last}; {here}"
    if not is_elsewhere:
        return f"did you mean `{close[0]}`?"
    if location[-2] in _fields_of(variants):
        return f"`{key}` stands one level up, beside `{location[-2]}`"
    return f"`{key}` does not go with the other keys; {here}"


def _shown(keys: Place) -> str:
    """The last key, with the list it is an item of."""
    if keys and isinstance(keys[-1], int):
        return ".".join(str(part) for part in keys[-2:])
    return str(keys[-1]) if keys else "recipe"


def _container(given: Any, kind: str, key: str, tags: list[str]) -> str:
    if given is None:
        return "nothing is given: remove the line, or write its keys below it"
    if isinstance(given, str) and tags:
        close = difflib.get_close_matches(given, tags, n=1)
        return f"write `{key}: {{type: {close[0] if close else tags[0]}}}`"
    example = "[a, b]" if kind == "list_type" else "{key: value}"
    return f"given: {_short(given)}; write `{key}: {example}`"


def _short(given: Any) -> str:
    shown = repr(given)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[: _LONGEST_SHOWN - 1]}…"


def _unknown_type(detail: ErrorDetails, key: str, root: type[BaseModel]) -> tuple[str, str]:
    context = detail.get("ctx", {})
    expected = str(context.get("expected_tags", "")).replace("'", "").split(", ")
    given = context.get("tag")
    if given is None:
        return f"`{key}` needs a `type`", _members(_tags(key, root))
    close = difflib.get_close_matches(str(given), expected, n=1)
    known = ", ".join(f"`{name}`" for name in expected)
    return f"`type: {given}` is not known in `{key}`", f"did you mean `{close[0]}`?" if close else f"one of: {known}"


def _members(tags: list[str]) -> str:
    return f"one of: {', '.join(f'`type: {tag}`' for tag in tags)}" if tags else "for example `type: exact_match`"


def _tags(key: str, root: type[BaseModel]) -> list[str]:
    field = root.model_fields.get(key)
    return [tag for model in _models_in(field.annotation) if (tag := _tag(model))] if field else []


def _given(given: Any, kind: str, detail: ErrorDetails) -> str:
    hint = f"given: {_short(given)}"
    if kind == "bool_type":
        return f"{hint}; write true or false without quotes (in YAML 1.2 `yes`, `no`, `on` and `off` are text)"
    if kind in ("float_type", "int_type") and isinstance(given, str):
        if "_" in given and _is_number(given.replace("_", "")):
            return f"{hint}; `_` in it makes it text (YAML 1.2): write {given.replace('_', '')}"
        return f"{hint}; {'it is text here: remove the quotes' if _is_number(given) else 'write a number, such as 3 or 1e-4'}"
    if kind == "int_type" and isinstance(given, float):
        return f"{hint}; write a whole number"
    if kind == "string_type" and isinstance(given, int | float):
        return f'{hint}; it is a number or a boolean here: write it in quotes, "{str(given).lower()}"'
    if kind == "literal_error" and isinstance(given, str):
        choices = str(detail.get("ctx", {}).get("expected", "")).replace(" or ", ", ").replace("'", "").split(", ")
        close = difflib.get_close_matches(given, choices, n=1)
        return f"{hint}; did you mean `{close[0]}`?" if close else hint
    return hint


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _models_at(location: tuple[str | int, ...], root: type[BaseModel]) -> list[type[BaseModel]]:
    """The sections that pydantic knows at an error's location; several where it names no variant."""
    models: list[type[BaseModel]] = [root]
    for part in location:
        if isinstance(part, int):
            continue
        step: list[type[BaseModel]] = []
        for model in models:
            if part in model.model_fields:
                step += _models_in(model.model_fields[part].annotation)
        if step:
            models = step
        else:
            narrowed = [model for model in models if _tag(model) == part or model.__name__ in str(part)]
            models = narrowed or models
    return models


def _fields_of(models: list[type[BaseModel]]) -> list[str]:
    return sorted({name for model in models for name in model.model_fields})


def _tag(model: type[BaseModel]) -> str | None:
    item = model.model_fields.get("type")
    return str(item.default) if item is not None else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
