"""What a tokenizer.json may ask for: no expression that takes for ever, no text that grows without bound. Torch-free.

The library that runs it is fast and trusts its file: a normaliser that repeats itself fills the memory and ends the
process, which nothing can catch. So the file is read first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.expressions import slow

MOST_GROWTH = 4
"""Characters that the replacements of a file may make of one; those of known tokenizers make one of one."""

MOST_PREFIX = 64
"""Longest text that is put before or between pieces; known ones are a character or two."""

MOST_REPEATS = 6
"""In one alternative of an expression, the groups around it included; the most of known tokenizers is five."""

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
            fault = slow(pattern["Regex"], MOST_REPEATS, MOST_EXPRESSION)
            if fault:
                raise Dangerous(f"an expression of its {name} {fault}: {pattern['Regex'][:60]!r}")
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
