"""Text to plain values: YAML 1.2 meaning for people, JSON for machines, and the line of every key.

Aliases are expanded within limits, tags are refused: a recipe is data, and a small file stays a small recipe.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError

Place = tuple[str | int, ...]
Lines = dict[Place, int]

_START = "`tunesmith init` writes a recipe to start from"
MOST_BYTES = 1 << 18
"""Of a recipe, which is parsed in Python: this many take up to ten seconds. A long one has ten thousand."""

_LONGEST = 200
_TOO_DEEP = "the text nests too deeply to be a recipe"
_MOST_BITS = 1_024
_MAX_NODES = 20_000
_MAX_DEPTH = 40
_NUMBER = re.compile(
    r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
"""Numbers of YAML 1.2's core schema (YAML 1.2.2, §10.3.2)."""
_CORE_TAGS = {"str", "int", "float", "bool", "null", "map", "seq", "timestamp"}


@dataclass(frozen=True)
class Written:
    """Where the keys of a recipe stand: its file, the line of each key, and what the command line overrode.

    All are equal: where a recipe was written does not make it another recipe.
    """

    source: str = field(default="", compare=False)
    lines: Lines = field(default_factory=dict, compare=False)
    overridden: Sequence[str] = field(default=(), compare=False)

    def where(self, keys: Place) -> str:
        """A key with its file and line, or with the override that set it; the file alone for the recipe as a whole."""
        if not keys:
            return self.source
        dotted = ".".join(str(part) for part in keys)
        for name in self.overridden:
            if (
                dotted == name
                or dotted.startswith(f"{name}.")
                or (name.startswith(f"{dotted}.") and keys not in self.lines)
            ):
                return f"override {name}"
        line = self.line(keys)
        return f"{self.source}:{line} [{dotted}]" if line else f"{self.source} [{dotted}]"

    def line(self, keys: Place) -> int | None:
        """Line of a key, or of the nearest section around it that has one."""
        return next((self.lines[keys[:end]] for end in range(len(keys), 0, -1) if keys[:end] in self.lines), None)


def parse_text(text: str, source: str) -> tuple[Any, Lines]:
    """Values and lines of a recipe's text; a ``source`` that ends in ``.json`` is read as JSON.

    Raises:
        RecipeError: syntax, repeated keys, tags, too much or too deep nesting.
    """
    try:
        return _parse_json(text, source) if Path(source).suffix == ".json" else parse_yaml(text, source)
    except RecursionError:
        raise RecipeError(_TOO_DEEP, where=source, hint=_START) from None


def parse_yaml(text: str, source: str) -> tuple[Any, Lines]:
    """Values as YAML 1.2 types them (``1e-4`` is a number, ``no`` is text) and the line of each key.

    Raises:
        RecipeError: as ``parse_text``.
    """
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        tree = _loader().load(text)
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = str(error.problem).partition(" with value ")[0]
        raise RecipeError(
            f"not valid YAML: {problem}", where=f"{source}{line}", hint="check indentation, quotes and repeated keys"
        ) from None
    except YAMLError as error:
        raise RecipeError(f"not valid YAML: {str(error).splitlines()[0]}", where=source, hint=_START) from None
    except RecursionError:
        raise RecipeError(_TOO_DEEP, where=source, hint=_START) from None
    except Exception as error:  # ruamel lets malformed scalars, merges and anchors fail in whatever they meet
        raise RecipeError(f"not valid YAML: {str(error)[:_LONGEST]}", where=source, hint=_START) from None
    reader = _Plain(source)
    return reader.convert(tree, ()), reader.lines


def _loader() -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import RoundTripConstructor

    class CoreScalars(RoundTripConstructor):
        """The core schema of YAML 1.2: no dates, and no numbers with `_` or in binary. What looks like one is text, unchanged."""

        def construct_number(self, node: Any) -> Any:
            if not _NUMBER.fullmatch(node.value):
                return self.construct_yaml_str(node)
            is_whole = node.tag.endswith(":int")
            return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)

    CoreScalars.add_constructor("tag:yaml.org,2002:timestamp", RoundTripConstructor.construct_yaml_str)
    for kind in ("int", "float"):
        CoreScalars.add_constructor(f"tag:yaml.org,2002:{kind}", CoreScalars.construct_number)
    loader = YAML(typ="rt", pure=True)
    loader.Constructor = CoreScalars
    loader.version = (1, 2)
    loader.allow_duplicate_keys = False
    return loader


def _parse_json(text: str, source: str) -> tuple[Any, Lines]:
    try:
        values = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, source), parse_constant=_not_a_number)
    except json.JSONDecodeError as error:
        raise RecipeError(
            f"not valid JSON: {error.msg[0].lower()}{error.msg[1:]}",
            where=f"{source}:{error.lineno}",
            hint=f"look at column {error.colno}",
        ) from None
    except ValueError as error:
        raise RecipeError(str(error), where=source, hint="write a finite number") from None
    try:
        _, lines = parse_yaml(text, source)
    except RecipeError:
        lines = {}  # JSON that YAML reads otherwise (tabs, surrogate escapes): messages go without line numbers
    return values, lines


def _unique(pairs: list[tuple[str, Any]], source: str) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise RecipeError(f"the key `{repeated}` stands twice in one section", where=source, hint="keep one of them")
    return values


def _not_a_number(name: str) -> float:
    raise ValueError(f"`{name}` is not a JSON value")


class _Plain:
    """Strips ruamel's round-trip types and collects the line of each key."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: Lines = {}
        self.num_nodes = 0

    def convert(self, node: Any, place: Place) -> Any:
        """The same value as dict, list, str, int, float, bool or None."""
        self.num_nodes += 1
        if self.num_nodes > _MAX_NODES or len(place) > _MAX_DEPTH:
            raise RecipeError(
                "the text is too large or nests too deeply to be a recipe",
                where=self.source,
                hint="check its aliases (`*name`)",
            )
        self._refuse_tag(node, place)
        positions = getattr(getattr(node, "lc", None), "data", None) or {}
        if isinstance(node, dict):
            result = {}
            for key, value in node.items():
                name = self._name(key, place)
                if key in positions:
                    self.lines[(*place, name)] = positions[key][0] + 1
                result[name] = self.convert(value, (*place, name))
            return result
        if isinstance(node, list):
            for index in positions:
                self.lines[(*place, index)] = positions[index][0] + 1
            return [self.convert(value, (*place, index)) for index, value in enumerate(node)]
        if isinstance(node, bool) or node is None:
            return node
        for kind in (int, float, str):
            if isinstance(node, kind):
                is_anchored_boolean = type(node).__name__ == "ScalarBoolean"  # an int subclass of ruamel's
                if kind is int and int(node).bit_length() > _MOST_BITS:
                    raise self._refusal("a number of hundreds of digits", place)
                return bool(node) if is_anchored_boolean else kind(node)
        raise self._refusal(f"a value of the kind `{type(node).__name__}`", place)

    def _name(self, key: Any, place: Place) -> str:
        if isinstance(key, int) and key.bit_length() > _MOST_BITS:
            raise self._refusal("a number of hundreds of digits", place)
        if key is None or isinstance(key, str | int | float):
            return str(key)
        raise self._refusal("a key of several values", place)

    def _refuse_tag(self, node: Any, place: Place) -> None:
        tag = str(getattr(getattr(node, "tag", None), "value", None) or "")
        if tag and tag.removeprefix("tag:yaml.org,2002:") not in _CORE_TAGS:
            raise self._refusal(f"the tag `{tag}`", place)

    def _refusal(self, what: str, place: Place) -> RecipeError:
        line = next((self.lines[place[:end]] for end in range(len(place), 0, -1) if place[:end] in self.lines), 1)
        return RecipeError(
            f"{what} is not allowed in a recipe", where=f"{self.source}:{line}", hint="write plain values only"
        )
