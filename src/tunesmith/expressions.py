"""Regular expressions of strangers: whether one can take for ever. Torch-free.

An engine that tracks back tries every way in which the parts of an expression can share a text. A repeated group whose
inside can match in two ways has 2^n of them, k repeats in a row n^k. Neither is known by a time limit: the engine cannot be
interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_REPEATS = ("*", "+", "?", "{")


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


def slow(expression: str, most_repeats: int, most_characters: int) -> str:
    """What could make an expression slow, as words that follow its name; empty where nothing does.

    Characters and classes of them may be repeated. A group may be left out (``?``), or repeated where nothing in it can
    match in two ways.

    Args:
        expression: of any common dialect.
        most_repeats: allowed in a row, in one alternative with the groups around it.
        most_characters: allowed in all.
    """
    if len(expression) > most_characters:
        return f"has more than {most_characters:,} characters"
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
                return "repeats a group"
            # A sign behind a repeat makes it lazy or possessive; one that opens a group says what kind it is.
            group.here += before not in (*_REPEATS, "(")
        groups[-1].most = max(groups[-1].most, groups[-1].here)
        if groups[-1].most > most_repeats:
            return f"has more than {most_repeats} repeats in a row"
        before = sign
    return ""


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
