"""Prompt and answer as one sequence of tokens that begins with the prompt's own. Torch-free."""

from __future__ import annotations

from tunesmith.data.tokenizer import Offsets, Tokenizer

_LEADS = ("\n", "a", " ", ".")


class NoBorder(Exception):
    """The tokenizer leaves no border between a prompt and its answer."""


def join(tokenizer: Tokenizer, prompt: str, rest: str) -> tuple[list[int], Offsets, int]:
    """Ids and offsets of ``prompt + rest``, and how many of them are the prompt's.

    The text is encoded whole where that keeps the prompt's ids, as it nearly always does. Where a token would span the
    border, prompt and rest are encoded apart: a server, too, sees the prompt alone.

    Raises:
        NoBorder: no way to encode the rest by itself gives the same text.
    """
    ids, offsets = tokenizer.encode_with_offsets(prompt + rest)
    head, head_offsets = tokenizer.encode_with_offsets(prompt)
    border = len(prompt)
    if ids[: len(head)] == head and (len(ids) == len(head) or offsets[len(head)][0] >= border):
        return ids, offsets, len(head)
    tail, tail_offsets = _encode_after(tokenizer, head, rest, tokenizer.decode(ids))
    return head + tail, head_offsets + [(start + border, end + border) for start, end in tail_offsets], len(head)


def _encode_after(tokenizer: Tokenizer, head: list[int], rest: str, expected: str) -> tuple[list[int], Offsets]:
    """Encode text that follows a prompt. Tokenizers that put a space before text get a lead, which is cut off again."""
    tail, offsets = tokenizer.encode_with_offsets(rest)
    if tokenizer.decode(head + tail) == expected:
        return tail, offsets
    for lead in _LEADS:
        first = tokenizer.encode(lead)
        ids, places = tokenizer.encode_with_offsets(lead + rest)
        cut = ids[len(first) :]
        if ids[: len(first)] == first and tokenizer.decode(head + cut) == expected:
            return cut, [(start - len(lead), end - len(lead)) for start, end in places[len(first) :]]
    raise NoBorder
