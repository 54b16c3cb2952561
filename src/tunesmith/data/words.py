"""Words of a text, tags of spans, and which token a head reads for a word. Torch-free."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from tunesmith.data.tokenizer import Offsets

Span = tuple[int, int]
"""Characters of a text, first and one past the last."""

NO_TOKEN = -1
"""In place of a token's number where a word has none."""

_WORD = re.compile(r"\w+|[^\w\s]")


def words_of(text: str, borders: Iterable[int] = ()) -> list[Span]:
    """Words of a text: stretches of letters, digits and ``_``; every other sign by itself. No word crosses a border.

    Args:
        text: any.
        borders: characters at which a word ends and another begins, in any order.
    """
    cuts = sorted(set(borders))
    found: list[Span] = []
    for match in _WORD.finditer(text):
        start, end = match.span()
        for cut in cuts[bisect_right(cuts, start) :]:
            if cut >= end:
                break
            found.append((start, cut))
            start = cut
        found.append((start, end))
    return found


def tokens_of_words(words: Sequence[Span], offsets: Offsets) -> list[range]:
    """Tokens that a word's characters are in, for each word; an empty range where there is none.

    Args:
        words: in order and apart.
        offsets: characters of each token, in order; special tokens have none.
    """
    found: list[range] = []
    at = 0
    for start, end in words:
        while at < len(offsets) and offsets[at][1] <= start:
            at += 1
        last = at
        while last < len(offsets) and (offsets[last][0] < end or offsets[last][0] == offsets[last][1]):
            last += 1
        inside = [token for token in range(at, last) if max(start, offsets[token][0]) < min(end, offsets[token][1])]
        found.append(range(inside[0], inside[-1] + 1) if inside else range(0))
    return found
