"""What a tagging head says of the words of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.data.words import NO_TOKEN
from tunesmith.evaluation.headed import log_shares
from tunesmith.tags import OUTSIDE
from tunesmith.workshop.headed import HeadedMachine, Ids, Logits


@dataclass(frozen=True)
class WordTags:
    """A text's words as the head sees them; W words, K labels in the order of its outputs.

    Attributes:
        tags: the likeliest label of each word; of a word that no token answers for the one that is outside.
        read: the token that answers for each word, or ``NO_TOKEN``.
        logprob_WK: log-probability of each label, zeros where no token answers.
    """

    tags: tuple[str, ...]
    read: tuple[int, ...]
    logprob_WK: Logits


def tags_of(head: HeadedMachine, reads: Sequence[Sequence[int]], texts: Sequence[Ids]) -> list[WordTags]:
    """Tags of the words of some texts.

    Args:
        head: the model at work.
        reads: of each text, the token that answers for each word, or ``NO_TOKEN``.
        texts: ids of each, perhaps cut to the context.
    """
    described = head.described
    said = head.word_logits(texts, [[token for token in read if token != NO_TOKEN] for read in reads])
    outside = described.outside if described.outside in described.labels else OUTSIDE
    found = []
    for read, logits_AK in zip(reads, said, strict=True):
        has_token = np.asarray(read) != NO_TOKEN
        logprob_WK = np.zeros((len(read), len(described.labels)))
        logprob_WK[has_token] = log_shares(logits_AK) if len(logits_AK) else logits_AK
        tags = [outside] * len(read)
        for place in np.flatnonzero(has_token):
            tags[place] = described.labels[int(logprob_WK[place].argmax())]
        found.append(WordTags(tuple(tags), tuple(read), logprob_WK))
    return found


def spans_of(words: Sequence[dict[str, Any]], chunks: Sequence[Any], text: str) -> list[dict[str, Any]]:
    """Spans of characters with their type and how sure the head is of the least sure of their words.

    Args:
        words: with ``start``, ``end`` and ``probability``.
        chunks: of the words' tags.
        text: that the words are of.
    """
    found = []
    for chunk in chunks:
        inside = words[chunk.start : chunk.end]
        start, end = inside[0]["start"], inside[-1]["end"]
        sure = min(word["probability"] for word in inside)
        found.append({"type": chunk.type, "start": start, "end": end, "text": text[start:end], "probability": sure})
    return found


def marked(text: str, spans: Sequence[dict[str, Any]]) -> str:
    """The text with its spans in brackets, each with its type behind it: ``[4711](order)``."""
    parts, at = [], 0
    for span in spans:
        parts += [text[at : span["start"]], f"[{span['text']}]({span['type'] or 'span'})"]
        at = span["end"]
    return "".join([*parts, text[at:]])
