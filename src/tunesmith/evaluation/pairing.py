"""Rows of two scorecards side by side, and the paired test of each kind of metric.

Differences are always after minus before; which sign is good stands in ``MEASURES`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import UserError
from tunesmith.evaluation.classification import macro_f1_difference
from tunesmith.evaluation.statistics import (
    Score,
    mcnemar_midp,
    paired_bootstrap,
    paired_proportions,
    ratio_difference,
)

RowPair = tuple[Mapping[str, Any], Mapping[str, Any]]

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
    changes = [measure.better * (float(b[measure.field]) - float(a[measure.field])) for a, b in pairs]
    equal = [float(a[measure.field]) for (a, _), change in zip(pairs, changes, strict=True) if change == 0]
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


_TESTS: dict[str, Callable[[str, Sequence[RowPair], int], tuple[Score, float]]] = {
    "share": _share_test,
    "mean": _mean_test,
    "macro_f1": _macro_f1_test,
    "loss": _loss_test,
    "perplexity": _perplexity_test,
}
