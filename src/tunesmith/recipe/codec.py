"""Files and overrides to recipes: YAML 1.2 or JSON, strict, with file, line and key in every message.

text ──syntax──> plain values + lines ──overrides──> values ──pydantic──> Recipe   (explain: its complaints, in words)
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith.errors import RecipeError
from tunesmith.foreign import read_object
from tunesmith.recipe.explain import explain
from tunesmith.recipe.root import Recipe
from tunesmith.recipe.syntax import MOST_BYTES, Lines, Written, parse_text, parse_yaml

_NUMBER = re.compile(r"[0-9]{1,6}")
_MOST_PARTS = 20


def load(path: str | Path, *overrides: str, **sections: Any) -> Recipe:
    """Read a recipe file and apply overrides.

    Args:
        path: ``.yaml``, ``.yml`` or ``.json``.
        overrides: ``section.key=value`` strings; values are read as YAML 1.2; a key is given once.
        sections: the same by keyword, dots as double underscores: ``training__epochs=1``.

    Raises:
        RecipeError: missing file, syntax, unknown key, wrong type; names file, line and key.
    """
    path = Path(path)
    values, lines = read(path)
    given = list(overrides)
    for key, value in sections.items():
        name = key.replace("__", ".")
        try:
            given.append(f"{name}={json.dumps(value)}")
        except TypeError as error:
            raise RecipeError(
                f"a value is not plain data: {error}",
                where=f"override {name}",
                hint="give numbers, text, lists or mappings",
            ) from None
    values = apply_overrides(values, given)
    names = [item.split("=", 1)[0] for item in given]
    return parse(values, source=str(path), lines=lines, overridden=names).placed(_home(path))


def _home(path: Path) -> Path:
    """Folder that a recipe's paths start from: its own, or for a run's recipe.json the one it was written in."""
    beside = path.parent / "environment.json"
    if path.name != "recipe.json" or not beside.is_file():
        return path.parent
    folder = read_object(beside, kind=RecipeError).get("recipe_folder", str(path.parent))
    if not isinstance(folder, str):
        raise RecipeError(
            "environment.json of the run does not say where its recipe stood",
            where=f"{beside} [recipe_folder]",
            hint="copy recipe.json to another folder, from where its paths start then",
        )
    return Path(folder)


def read(path: Path) -> tuple[dict[str, Any], Lines]:
    """Parse a recipe file into plain values and the line of each key."""
    try:
        with path.open("rb") as stream:
            payload = stream.read(MOST_BYTES + 1)
        if len(payload) > MOST_BYTES:
            raise RecipeError(
                f"the file is larger than {MOST_BYTES >> 10} KiB, which no recipe is",
                where=str(path),
                hint="name data by folders and globs instead of file by file",
            )
        text = payload.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise RecipeError("there is no such recipe file", where=str(path), hint=_nearby(path)) from error
    except IsADirectoryError as error:
        raise RecipeError("a recipe is a file, this is a folder", where=str(path), hint=_nearby(path / "x")) from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"the recipe is not UTF-8 text (byte {error.start})", where=str(path), hint="save it as UTF-8"
        ) from error
    except OSError as error:
        raise RecipeError(
            f"the recipe cannot be read: {error.strerror}", where=str(path), hint="check its permissions"
        ) from error
    values, lines = parse_text(text, str(path))
    if not isinstance(values, dict):
        holds = (
            "the recipe is empty"
            if values is None
            else "a recipe is a mapping of sections, this file holds something else"
        )
        raise RecipeError(holds, where=str(path), hint="`tunesmith init` writes one to start from")
    return values, lines


def parse(
    values: Mapping[str, Any], *, source: str = "recipe", lines: Lines | None = None, overridden: Sequence[str] = ()
) -> Recipe:
    """Validate plain values; errors carry ``source``, the line, the dotted key and a suggestion."""
    written = Written(source, lines or {}, tuple(overridden))
    _refuse_half_characters(values, source)
    try:
        return Recipe.model_validate_json(json.dumps(values)).written_as(written)
    except ValidationError as error:
        raise explain(error, values, written, Recipe) from None
    except TypeError as error:
        raise RecipeError(
            f"a value is not plain data: {error}", where=source, hint="write numbers, text, lists and mappings only"
        ) from error


def _refuse_half_characters(values: Mapping[str, Any], source: str) -> None:
    """Refuse text with half a surrogate pair, which no file and no terminal can hold."""
    try:
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecipeError(
            f"a text holds half a surrogate pair ({error.object[error.start]!r})",
            where=source,
            hint="write the character itself, or both halves",
        ) from None
    except TypeError:
        return


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set ``section.key=value`` pairs; list items by number from 0. Values are typed as YAML 1.2 types them.

    Raises:
        RecipeError: one is no such pair, its key is no place in the recipe, or was given before.
    """
    result: dict[str, Any] = json.loads(json.dumps(values))
    given: dict[str, str] = {}
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not all(key.split(".")) or key.count(".") > _MOST_PARTS:
            raise RecipeError(
                f"`{item}` is not an override",
                where="command line",
                hint="write section.key=value, for example training.epochs=1",
            )
        if key in given:
            raise RecipeError(
                f"the override `{key}` is given twice: `{given[key]}` and `{text}`",
                where=f"override {key}",
                hint="keep one of them",
            )
        given[key] = text
        value = parse_yaml(text, f"override {key}")[0] if text.strip() else ""
        _set(result, tuple(key.split(".")), value)
    return result


def _set(target: dict[str, Any], parts: tuple[str, ...], value: Any) -> None:
    node: Any = target
    where = f"override {'.'.join(parts)}"
    for depth, part in enumerate(parts):
        at: Any = _index(node, part, where) if isinstance(node, list) else part
        if depth == len(parts) - 1:
            node[at] = value
            return
        inner = node[at] if isinstance(node, list) else node.get(at)
        node[at] = _opened(inner, parts[: depth + 1], parts[depth + 1])
        node = node[at]


def _opened(inner: Any, place: tuple[str, ...], following: str) -> Any:
    """A value that an override goes into, with the recipe's short forms written out so that nothing of them is lost."""
    is_split = place[0] == "data" and len(place) >= 2
    if isinstance(inner, str):
        inner = {"name": inner} if place == ("model",) else {"path": inner} if is_split else {}
    if is_split and isinstance(inner, int | float) and not isinstance(inner, bool):
        inner = {"fraction": inner}
    if is_split and len(place) == 2 and _NUMBER.fullmatch(following) and isinstance(inner, dict) and inner:
        return [inner]
    return inner if isinstance(inner, dict | list) else {}


def _index(target: list[Any], part: str, where: str) -> int:
    if not _NUMBER.fullmatch(part) or int(part) >= len(target):
        raise RecipeError(f"`{part}` is not an item of this list of {len(target)}", where=where, hint="count from 0")
    return int(part)


def _nearby(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path()
    names = sorted(item.name for pattern in ("*.y*ml", "*.json") for item in folder.glob(pattern))[:8]
    close = difflib.get_close_matches(path.name, names, n=1)
    if close:
        return f"did you mean `{folder / close[0]}`?"
    return f"recipes here: {', '.join(names)}" if names else "`tunesmith init` writes one to start from"


def schema() -> dict[str, Any]:
    """JSON schema of a recipe, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
