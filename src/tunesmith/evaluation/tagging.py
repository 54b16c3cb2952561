"""Tags of words against those that are right: word accuracy, and precision, recall and F1 of whole spans.

A span is right where its type and both its borders are (Tjong Kim Sang and De Meulder 2003); precision, recall and F1 are
those of all spans together, and a share of nothing is 0. Intervals resample rows: words of one row are not independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.errors import DataError
from tunesmith.evaluation.classification import confusion, table
from tunesmith.evaluation.questions import Question, check_questions
from tunesmith.evaluation.resampling import f1_of_counts, score_of_sums, share_of_counts
from tunesmith.evaluation.statistics import Floats, Score, proportion, ratio_score
from tunesmith.evaluation.tasks import TaskResult, check_finite, row_of
from tunesmith.tags import chunks

_SHARE = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Scheme:
    """The labels that a head has, whether they mark spans, and what the data calls nothing."""

    labels: tuple[str, ...]
    spans: bool
    outside: str = "O"


@dataclass(frozen=True, slots=True)
class TaggedAnswer:
    """What was said of one row.

    Attributes:
        right: the tag of each word that is right.
        said: the tag of each word that the head gave.
        nats: loss summed over the words that it was asked for and that have a class.
        num_asked: number of those words.
    """

    right: tuple[str, ...]
    said: tuple[str, ...]
    nats: float
    num_asked: int


def tagging(
    questions: Sequence[Question],
    answers: Sequence[TaggedAnswer],
    scheme: Scheme,
    *,
    label_counts: Mapping[str, int] | None = None,
    seed: int = 0,
) -> TaskResult:
    """Word accuracy, the share of rows that are right whole, log loss, and for span schemes precision, recall and F1.

    Args:
        questions: in the order of the answers.
        answers: tags of each row's words.
        scheme: of the labels.
        label_counts: training words of each label, for the majority baseline.
        seed: keys the bootstrap.

    Raises:
        DataError: no questions, an id twice, or another number of answers.
        ModelError: a loss that is not finite.
    """
    check_questions(questions, "tagging")
    if len(questions) != len(answers):
        raise DataError(
            f"{len(answers)} answers to {len(questions)} questions",
            where="tagging",
            hint="Give one answer for each row.",
        )
    check_finite([answer.nats for answer in answers], "tagging")
    rows = [_row(question, answer, scheme) for question, answer in zip(questions, answers, strict=True)]
    words = _columns(rows, "words_right", "words")
    metrics: dict[str, Score] = {}
    if scheme.spans:
        metrics = span_scores(_columns(rows, "span_hits", "spans_said", "spans_right"), seed)
    metrics["word_accuracy"] = score_of_sums(words, share_of_counts, _SHARE, seed)
    metrics["exact_match"] = proportion(sum(row["score"] for row in rows), len(rows))
    if all(row["num_tokens"] for row in rows):
        metrics["loss"] = ratio_score([row["nats"] for row in rows], [row["num_tokens"] for row in rows], seed)
    baselines = {"majority": _majority(answers, label_counts, scheme)}
    if scheme.spans:
        baselines["by_type"] = _by_type(answers, scheme.outside)
    settings = {
        "type": "tagging", "labels": sorted(scheme.labels), "spans": scheme.spans, "outside": scheme.outside,
    }  # fmt: skip
    return TaskResult(metrics, rows, settings, _confusion(scheme.labels, answers), baselines)


def span_scores(counts_N3: Floats, seed: int = 0) -> dict[str, Score]:
    """F1, precision and recall from each row's hits, spans said and spans that are right."""
    hits, said, right = counts_N3.T
    return {
        "span_f1": score_of_sums(np.stack([hits, said + right], axis=1), f1_of_counts, _SHARE, seed),
        "span_precision": score_of_sums(np.stack([hits, said], axis=1), share_of_counts, _SHARE, seed),
        "span_recall": score_of_sums(np.stack([hits, right], axis=1), share_of_counts, _SHARE, seed),
    }


def _row(question: Question, answer: TaggedAnswer, scheme: Scheme) -> dict[str, Any]:
    hits = sum(one == other for one, other in zip(answer.right, answer.said, strict=True))
    row = row_of(question, " ".join(answer.said), int(hits == len(answer.right)))
    row |= {"words_right": hits, "words": len(answer.right), "nats": answer.nats, "num_tokens": answer.num_asked}
    if scheme.spans:
        right, said = (set(chunks(tags, scheme.outside)) for tags in (answer.right, answer.said))
        row |= {"span_hits": len(right & said), "spans_said": len(said), "spans_right": len(right)}
        row["span_size"] = len(said) + len(right)
    return row


def _by_type(answers: Sequence[TaggedAnswer], outside: str) -> dict[str, Any]:
    """Precision, recall and F1 of each type of span, with the number of right spans."""
    hits, said, right = Counter[str](), Counter[str](), Counter[str]()
    for answer in answers:
        ours, theirs = set(chunks(answer.said, outside)), set(chunks(answer.right, outside))
        hits.update(chunk.type for chunk in ours & theirs)
        said.update(chunk.type for chunk in ours)
        right.update(chunk.type for chunk in theirs)
    types = sorted({*said, *right})
    return {
        "types": types,
        "precision": [hits[kind] / said[kind] if said[kind] else 0.0 for kind in types],
        "recall": [hits[kind] / right[kind] if right[kind] else 0.0 for kind in types],
        "f1": [2 * hits[kind] / (said[kind] + right[kind]) for kind in types],
        "n": [right[kind] for kind in types],
    }


def _confusion(labels: Sequence[str], answers: Sequence[TaggedAnswer]) -> dict[str, Any]:
    """The table of words by right and given tag; tags that the head does not have come last."""
    pairs = [pair for answer in answers for pair in zip(answer.right, answer.said, strict=True)]
    unseen = sorted({right for right, _ in pairs} - set(labels))
    names = [*labels, *unseen]
    place = {name: number for number, name in enumerate(names)}
    truth, said = [place[right] for right, _ in pairs], [place.get(given, len(names)) for _, given in pairs]
    return table(names, confusion(truth, said, len(names))) | {"unseen_labels": unseen}


def _majority(
    answers: Sequence[TaggedAnswer], label_counts: Mapping[str, int] | None, scheme: Scheme
) -> dict[str, Any]:
    """Scores of giving every word the commonest tag: of spans where labels mark them, else of words."""
    source = "training words" if label_counts else "references"
    counts = label_counts or Counter(tag for answer in answers for tag in answer.right)
    label = min(counts, key=lambda name: (-counts[name], name))
    nobody = Question.of("", (), "", "")
    always = [TaggedAnswer(answer.right, (label,) * len(answer.right), 0.0, 0) for answer in answers]
    rows = [_row(nobody, answer, scheme) for answer in always]
    share = score_of_sums(_columns(rows, "words_right", "words"), share_of_counts, _SHARE)
    if not scheme.spans:
        return {"label": label, **share.to_json(), "from": source}
    f1 = span_scores(_columns(rows, "span_hits", "spans_said", "spans_right"))["span_f1"]
    return {"label": label, **f1.to_json(), "word_accuracy": share.to_json(), "from": source}


def _columns(rows: Sequence[Mapping[str, Any]], *names: str) -> Floats:
    return np.asarray([[row[name] for name in names] for row in rows], dtype=np.float64)
