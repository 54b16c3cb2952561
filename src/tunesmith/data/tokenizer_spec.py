"""What a tokenizer.json may ask for: no expression that takes for ever, no text that grows without bound. Torch-free.

The library that runs it is fast and trusts its file: a normaliser that repeats itself fills the memory and ends the
process, which nothing can catch. So the file is read first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MOST_GROWTH = 4
"""Characters that the replacements of a file may make of one; those of known tokenizers make one of one."""

MOST_PREFIX = 64
"""Longest text that is put before or between pieces; known ones are a character or two."""

MOST_QUANTIFIERS = 6
"""Repeats in one alternative of an expression, the groups around it included; the most of known tokenizers is five."""

MOST_EXPRESSION = 4_000
MOST_SPECIALS = 64
"""Special tokens that are put around a text; known ones are four at most."""

_PREFIXES = (
    "prepend",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "prefix",
    "suffix",
    "replacement",
    "unk_token",
)
_MOST_WORD = 10_000
_REPEATS = ("*", "+", "?", "{")


class Dangerous(Exception):
    """The file asks for something that no tokenizer needs."""


def check(spec: Any) -> None:
    """Read a tokenizer.json before it is run.

    Raises:
        Dangerous: says what it asks for.
        ValueError, TypeError, AttributeError: it is no tokenizer.
    """
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        _check_part(name, spec.get(name))
    model = spec["model"]
    _check_prefixes("model", model)
    longest = model.get("max_input_chars_per_word")
    if isinstance(longest, int) and longest > _MOST_WORD:
        raise Dangerous(f"its model takes words of {longest:,} characters, whose pieces are searched one by one")
    _check_specials(spec)


def _check_part(name: str, part: Any) -> None:
    growth = 1
    for item in _mappings(part):
        _check_prefixes(name, item)
        pattern = item.get("pattern")
        if isinstance(pattern, Mapping) and isinstance(pattern.get("Regex"), str):
            _check_expression(name, pattern["Regex"])
        if item.get("type") == "Replace":
            content = item.get("content", item.get("replacement", ""))
            if isinstance(pattern, Mapping) and pattern.get("String") == "":
                raise Dangerous(f"its {name} replaces the empty text, which stands everywhere")
            growth *= max(1, len(content))
            if growth > MOST_GROWTH:
                raise Dangerous(f"its {name} makes more than {MOST_GROWTH} characters of one")


def _check_prefixes(name: str, item: Mapping[str, Any]) -> None:
    for key in _PREFIXES:
        if isinstance(item.get(key), str) and len(item[key]) > MOST_PREFIX:
            raise Dangerous(f"its {name} has a `{key}` of more than {MOST_PREFIX} characters")


def _check_specials(spec: Mapping[str, Any]) -> None:
    """Ids that are put around a text must be in the vocabulary: the embedding has no row for others."""
    vocabulary = spec["model"]["vocab"]
    ids = vocabulary.values() if isinstance(vocabulary, Mapping) else range(len(vocabulary))
    size = max([max(ids, default=-1), *(item["id"] for item in spec.get("added_tokens") or [])]) + 1
    for item in _mappings(spec.get("post_processor")):
        given = [pair[1] for key in ("sep", "cls") if isinstance(pair := item.get(key), list) and len(pair) == 2]
        given += item["ids"] if isinstance(item.get("ids"), list) else []
        if any(not isinstance(number, int) or not 0 <= number < size for number in given):
            raise Dangerous("its post_processor adds tokens that the vocabulary does not have")
        for key in ("single", "pair", "ids"):
            if isinstance(item.get(key), list) and len(item[key]) > MOST_SPECIALS:
                raise Dangerous(f"its post_processor adds more than {MOST_SPECIALS} tokens to a text")


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every JSON object within a value."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


@dataclass
class _Group:
    """Repeats in a row: at the start of a group, here, and in the longest of its alternatives so far."""

    start: int = 0
    here: int = 0
    most: int = 0
    alternatives: int = 1

    @property
    def is_plain(self) -> bool:
        """Whether it matches in one way and one length only."""
        return self.alternatives == 1 and self.most == self.start


def _check_expression(name: str, expression: str) -> None:
    """Refuse what can take more than a polynomial of a small degree: repeated groups, and many repeats in a row.

    Known tokenizers repeat characters and classes of them. A group may be left out (``?``), or repeated where nothing in
    it can match in two ways.
    """
    if len(expression) > MOST_EXPRESSION:
        raise Dangerous(f"its {name} has an expression of more than {MOST_EXPRESSION:,} characters")
    groups = [_Group()]
    closed, before = _Group(), ""
    for sign in _signs(expression):
        group = groups[-1]
        if sign == "(":
            groups.append(_Group(group.here, group.here, group.here))
        elif sign == ")" and len(groups) > 1:
            closed = groups.pop()
            groups[-1].here = closed.most
        elif sign == "|":
            group.here = group.start
            group.alternatives += 1
        elif sign in _REPEATS:
            if before == ")" and sign != "?" and not closed.is_plain:
                raise Dangerous(f"its {name} repeats a group of an expression: {expression[:60]!r}")
            # A sign behind a repeat makes it lazy or possessive; one that opens a group says what kind it is.
            group.here += before not in (*_REPEATS, "(")
        groups[-1].most = max(groups[-1].most, groups[-1].here)
        if groups[-1].most > MOST_QUANTIFIERS:
            raise Dangerous(f"its {name} has more than {MOST_QUANTIFIERS} repeats in a row: {expression[:60]!r}")
        before = sign


def _signs(expression: str) -> Iterator[str]:
    r"""Signs of an expression; ``x`` for anything that stands for one character, ``{`` for ``{1,3}``."""
    at, length = 0, len(expression)
    while at < length:
        sign = expression[at]
        if sign == "\\":
            at = _behind_escape(expression, at)
            yield "x"
        elif sign == "[":
            at = _behind_class(expression, at)
            yield "x"
        elif (
            sign == "{"
            and (end := expression.find("}", at)) > 0
            and expression[at + 1 : end].replace(",", "").isdigit()
        ):
            at = end + 1
            yield "{"
        else:
            at += 1
            yield sign if sign in "()|*+?" else "x"


def _behind_escape(expression: str, at: int) -> int:
    r"""Where an escape ends; of ``\p{L}`` and ``\x{..}`` the braces belong to it."""
    if expression[at + 1 : at + 2] in ("p", "P", "x", "u", "k", "g") and expression[at + 2 : at + 3] in ("{", "<"):
        end = expression.find("}" if expression[at + 2] == "{" else ">", at)
        return end + 1 if end > 0 else len(expression)
    return at + 2


def _behind_class(expression: str, at: int) -> int:
    """Where a class of characters ends, inner classes included."""
    depth, at = 1, at + 1
    if expression[at : at + 1] == "^":
        at += 1
    if expression[at : at + 1] == "]":
        at += 1
    while at < len(expression) and depth:
        if expression[at] == "\\":
            at += 1
        elif expression[at] == "[":
            depth += 1
        elif expression[at] == "]":
            depth -= 1
        at += 1
    return at
