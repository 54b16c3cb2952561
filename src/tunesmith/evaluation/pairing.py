"""Rows of two scorecards side by side, and the paired test of each kind of metric.

Differences are always after minus before; which sign is good stands in ``MEASURES`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tunesmith.errors import UserError
from tunesmith.evaluation.classification import macro_f1_difference
from tunesmith.evaluation.resampling import (
    Statistic,
    calibration_error,
    confidence_columns,
    correlation,
    correlation_columns,
    difference_of_sums,
    f1_of_counts,
    ranks,
    share_of_counts,
)
from tunesmith.evaluation.statistics import (
    Floats,
    Score,
    mcnemar_midp,
    paired_bootstrap,
    paired_proportions,
    ratio_difference,
)

RowPair = tuple[Mapping[str, Any], Mapping[str, Any]]

_OF_ALL_ROWS = frozenset({"calibration", "pearson", "spearman"})
"""Kinds of metrics that no row has by itself: none is won or lost."""

PROMPT_CHANGES = frozenset({"template", "tokenizer", "system_prompt", "examples", "retrieval", "prompts"})
"""Declared differences under which a question may have another prompt on either side."""


@dataclass(frozen=True, slots=True)
class Paired:
    """One metric on both sides of the same rows.

    ``won`` and ``lost`` count the rows that became better and worse. Rows equal on both sides are ``both_right`` and
    ``both_wrong`` for 0/1 metrics, and only ``tied`` for the others.
    """

    before: Score
    after: Score
    difference: Score
    p_value: float
    test: str
    won: int
    lost: int
    both_right: int
    both_wrong: int
    tied: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        scores = {name: getattr(self, name).to_json() for name in ("before", "after", "difference")}
        counts = {name: getattr(self, name) for name in ("won", "lost", "both_right", "both_wrong", "tied")}
        return {**scores, "p_value": self.p_value, "test": self.test, **counts}


@dataclass(frozen=True, slots=True)
class Measure:
    """How a metric is compared: ``better`` is +1 where more is better, -1 where less; ``field`` of a row holds it."""

    better: int
    kind: str
    field: str


MEASURES: dict[str, Measure] = {
    "accuracy": Measure(+1, "share", "score"),
    "exact_match": Measure(+1, "share", "score"),
    "normalised_accuracy": Measure(+1, "share", "normalised_score"),
    "accuracy_per_token": Measure(+1, "share", "per_token_score"),
    "mean_reciprocal_rank": Measure(+1, "mean", "reciprocal_rank"),
    "macro_f1": Measure(+1, "macro_f1", "score"),
    "loss": Measure(-1, "loss", "nats"),
    "perplexity": Measure(-1, "perplexity", "nats"),
    "micro_f1": Measure(+1, "words_f1", "word_hits"),
    "span_f1": Measure(+1, "span_f1", "span_hits"),
    "span_precision": Measure(+1, "span_precision", "span_hits"),
    "span_recall": Measure(+1, "span_recall", "span_hits"),
    "word_accuracy": Measure(+1, "words", "words_right"),
    "brier": Measure(-1, "mean", "brier"),
    "calibration_error": Measure(-1, "calibration", "score"),
    "mse": Measure(-1, "mean", "squared_error"),
    "pearson": Measure(+1, "pearson", "said"),
    "spearman": Measure(+1, "spearman", "said"),
}


def pair_rows(
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    task: str,
    declared: Collection[str] = (),
) -> list[RowPair]:
    """Pair rows by id, in order of id.

    Raises:
        UserError: an id is on one side only, references differ, or prompts differ undeclared.
    """
    old, new = ({row["id"]: row for row in rows} for rows in (before, after))
    if alone := sorted(old.keys() ^ new.keys()):
        raise UserError(
            f"{len(alone)} rows are on one side only, such as {alone[0]!r}",
            where=task,
            hint="Score both models on the same rows: the same data, split and limit.",
        )
    pairs = [(old[id], new[id]) for id in sorted(old)]
    changed = [a["id"] for a, b in pairs if a["prompt_hash"] != b["prompt_hash"]]
    if changed and not PROMPT_CHANGES & set(declared):
        raise UserError(
            f"{len(changed)} prompts are not the same on both sides, such as that of row {changed[0]!r}",
            where=task,
            hint="Score both with the same template and tokenizer, or declare what differs.",
        )
    if other := [a["id"] for a, b in pairs if a["reference"] != b["reference"]]:
        raise UserError(
            f"{len(other)} references are not the same on both sides, such as that of row {other[0]!r}",
            where=task,
            hint="The data changed between the two scorings: score both again.",
        )
    return pairs


def paired(measure: Measure, pairs: Sequence[RowPair], old: Score, new: Score, seed: int) -> Paired:
    """Test one metric over paired rows; ``old`` and ``new`` are its scores. Raises UserError without rows."""
    if not pairs:
        raise UserError(
            "the scorecards hold scores without rows", where="rows of the scorecards", hint="Score both again."
        )
    difference, p_value = _TESTS[measure.kind](measure.field, pairs, seed)
    by_row = [] if measure.kind in _OF_ALL_ROWS else pairs
    changes = [measure.better * (float(b[measure.field]) - float(a[measure.field])) for a, b in by_row]
    equal = [float(a[measure.field]) for (a, _), change in zip(by_row, changes, strict=True) if change == 0]
    binary = measure.kind in ("share", "macro_f1")
    return Paired(
        before=old,
        after=new,
        difference=difference,
        p_value=p_value,
        test="mid-p McNemar" if measure.kind == "share" else "paired bootstrap",
        won=sum(change > 0 for change in changes),
        lost=sum(change < 0 for change in changes),
        both_right=sum(value == 1 for value in equal) if binary else 0,
        both_wrong=sum(value == 0 for value in equal) if binary else 0,
        tied=len(equal),
    )


def _share_test(field: str, pairs: Sequence[RowPair], seed: int) -> tuple[Score, float]:
    both = sum(a[field] and b[field] for a, b in pairs)
    won = sum(b[field] and not a[field] for a, b in pairs)
    lost = sum(a[field] and not b[field] for a, b in pairs)
    return paired_proportions(both, won, lost, len(pairs) - both - won - lost), mcnemar_midp(won, lost)


def _mean_test(field: str, pairs: Sequence[RowPair], seed: int) -> tuple[Score, float]:
    return paired_bootstrap([b[field] - a[field] for a, b in pairs], seed)


def _loss_test(field: str, pairs: Sequence[RowPair], seed: int) -> tuple[Score, float]:
    return _ratio_test(pairs, seed, exponentiate=False)


def _perplexity_test(field: str, pairs: Sequence[RowPair], seed: int) -> tuple[Score, float]:
    return _ratio_test(pairs, seed, exponentiate=True)


def _ratio_test(pairs: Sequence[RowPair], seed: int, exponentiate: bool) -> tuple[Score, float]:
    sides = [([row["nats"] for row in side], [row["num_tokens"] for row in side]) for side in zip(*pairs, strict=True)]
    return ratio_difference(sides[0], sides[1], seed, exponentiate)


def _macro_f1_test(field: str, pairs: Sequence[RowPair], seed: int) -> tuple[Score, float]:
    answered = {row["answer_label"] for pair in pairs for row in pair} - {None}
    labels = sorted({a["true_label"] for a, _ in pairs} | answered)
    index: dict[str | None, int] = {label: k for k, label in enumerate(labels)}
    index[None] = len(labels)
    truth = [index[a["true_label"]] for a, _ in pairs]
    before, after = ([index[row["answer_label"]] for row in side] for side in zip(*pairs, strict=True))
    return macro_f1_difference(truth, before, after, len(labels), seed)


def _calibration_test(field: str, pairs: Sequence[RowPair], seed: int) -> tuple[Score, float]:
    sides = [
        confidence_columns(_column(side, "confidence"), _column(side, "score")) for side in zip(*pairs, strict=True)
    ]
    return difference_of_sums(sides[0], sides[1], calibration_error, seed)


def _correlation_test(field: str, pairs: Sequence[RowPair], seed: int, *, ranked: bool = False) -> tuple[Score, float]:
    order = ranks if ranked else np.asarray
    sides = [
        correlation_columns(order(_column(side, field)), order(_column(side, "value")))
        for side in zip(*pairs, strict=True)
    ]
    return difference_of_sums(sides[0], sides[1], correlation, seed)


def _counts_test(
    field: str, pairs: Sequence[RowPair], seed: int, *, size: str, statistic: Statistic
) -> tuple[Score, float]:
    sides = [np.stack([_column(side, field), _column(side, size)], axis=1) for side in zip(*pairs, strict=True)]
    return difference_of_sums(sides[0], sides[1], statistic, seed)


def _words_test(field: str, pairs: Sequence[RowPair], seed: int) -> tuple[Score, float]:
    sides = [([row[field] for row in side], [row["words"] for row in side]) for side in zip(*pairs, strict=True)]
    return ratio_difference(sides[0], sides[1], seed)


def _column(rows: Sequence[Mapping[str, Any]], field: str) -> Floats:
    return np.asarray([row[field] for row in rows], dtype=np.float64)


_TESTS: dict[str, Callable[[str, Sequence[RowPair], int], tuple[Score, float]]] = {
    "share": _share_test,
    "mean": _mean_test,
    "macro_f1": _macro_f1_test,
    "loss": _loss_test,
    "perplexity": _perplexity_test,
    "calibration": _calibration_test,
    "pearson": _correlation_test,
    "spearman": partial(_correlation_test, ranked=True),
    "words": _words_test,
    "words_f1": partial(_counts_test, size="word_size", statistic=f1_of_counts),
    "span_f1": partial(_counts_test, size="span_size", statistic=f1_of_counts),
    "span_precision": partial(_counts_test, size="spans_said", statistic=share_of_counts),
    "span_recall": partial(_counts_test, size="spans_right", statistic=share_of_counts),
}
