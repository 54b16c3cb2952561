"""Two scorecards compared: refused where they were not measured alike, else paired row by row, with a verdict."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import UserError
from tunesmith.evaluation.pairing import MEASURES, PROMPT_CHANGES, Paired, RowPair, pair_rows, paired
from tunesmith.evaluation.scorecard import PROBE_PREFIX, Scorecard
from tunesmith.evaluation.statistics import Score
from tunesmith.evaluation.verdict import Verdict, forgetting_of, verdict_of


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed between two models, the verdict, and the words for it.

    ``declared`` shows by task the differences that were declared and are there; ``not_compared`` gives the reason for
    each metric or task that one side lacks.
    """

    before: str
    after: str
    tasks: dict[str, dict[str, Paired]]
    probes: dict[str, dict[str, Paired]]
    verdict: Verdict
    claimed_on: str
    sentence: str
    forgetting: str
    declared: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_compared: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "before": self.before,
            "after": self.after,
            "tasks": _nested_json(self.tasks),
            "probes": _nested_json(self.probes),
            "verdict": self.verdict,
            "claimed_on": self.claimed_on,
            "sentence": self.sentence,
            "forgetting": self.forgetting,
            "declared": self.declared,
            "not_compared": self.not_compared,
        }


def compare(
    before: Scorecard, after: Scorecard, declared: Collection[str] = (), seed: int = 0, name: str = "Tuned"
) -> Comparison:
    """Compare two scorecards over the same questions.

    Args:
        before: usually the base.
        after: usually the tuned model.
        declared: names of settings that may differ (``template``, ``decoding``, …); those of ``PROMPT_CHANGES`` also
            let the prompts differ, and rows are then paired by question alone.
        seed: keys the bootstrap.
        name: what the sentence calls ``after``.

    Raises:
        UserError: prompts, settings or questions differ undeclared, or no task is on both cards.
    """
    work = _Work(frozenset(declared), seed)
    tasks = {
        task: work.compared(task, before, after, before.tasks[task], after.tasks[task])
        for task in work.shared(list(before.tasks), list(after.tasks), "")
    }
    probes = {
        probe: work.compared(PROBE_PREFIX + probe, before, after, before.probes[probe], after.probes[probe])
        for probe in work.shared(list(before.probes), list(after.probes), PROBE_PREFIX)
    }
    optimistic = {task for task in tasks if after.settings[task].get("data") == "validation"}
    verdict, claimed_on, sentence = verdict_of(tasks, optimistic, name)
    return Comparison(
        before=before.model,
        after=after.model,
        tasks=tasks,
        probes={probe: metrics for probe, metrics in probes.items() if metrics},
        verdict=verdict,
        claimed_on=claimed_on,
        sentence=sentence,
        forgetting=forgetting_of(probes),
        declared=work.seen,
        not_compared=work.not_compared,
    )


class _Work:
    """One comparison: what may differ, and what was seen to differ."""

    def __init__(self, declared: frozenset[str], seed: int) -> None:
        self.declared = declared
        self.seed = seed
        self.seen: dict[str, dict[str, Any]] = {}
        self.not_compared: dict[str, str] = {}

    def shared(self, before: Sequence[str], after: Sequence[str], prefix: str) -> list[str]:
        """Names on both sides in the order of ``before``; the others are noted."""
        for name in sorted(set(before) ^ set(after)):
            self.not_compared[prefix + name] = "only measured before" if name in before else "only measured after"
        return [name for name in before if name in after]

    def compared(
        self,
        task: str,
        before: Scorecard,
        after: Scorecard,
        old: Mapping[str, Score],
        new: Mapping[str, Score],
    ) -> dict[str, Paired]:
        """Every metric of a task that both sides have."""
        self._check_settings(task, before.settings.get(task, {}), after.settings.get(task, {}))
        pairs = pair_rows(before.rows_of(task), after.rows_of(task), task, self.declared)
        compared: dict[str, Paired] = {}
        for metric in self.shared(list(old), list(new), f"{task}."):
            measure = MEASURES.get(metric)
            if measure is None:
                self.not_compared[f"{task}.{metric}"] = "it is not known whether more is better"
            elif measure.field == "nats" and self._other_tokens(task, metric, pairs):
                continue
            else:
                compared[metric] = paired(measure, pairs, old[metric], new[metric], self.seed)
        return compared

    def _check_settings(self, task: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        differ = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        if undeclared := [key for key in differ if key not in self.declared]:
            key = undeclared[0]
            raise UserError(
                f"the two sides were not measured alike: {', '.join(undeclared)} differ "
                f"({key}: {old.get(key)!r} against {new.get(key)!r})",
                where=task,
                hint="Score both alike, or declare what differs.",
            )
        if differ:
            self.seen[task] = {key: {"before": old.get(key), "after": new.get(key)} for key in differ}

    def _other_tokens(self, task: str, metric: str, pairs: Sequence[RowPair]) -> bool:
        """Whether rows count other tokens, so that losses per token are not alike."""
        if all(a["num_tokens"] == b["num_tokens"] for a, b in pairs):
            return False
        if not PROMPT_CHANGES & self.declared:
            raise UserError(
                "rows have another number of scored tokens on either side",
                where=f"{task}.{metric}",
                hint="Losses per token compare under one tokenizer and one mask only.",
            )
        self.not_compared[f"{task}.{metric}"] = "rows have another number of scored tokens on either side"
        return True


def _nested_json(groups: Mapping[str, Mapping[str, Paired]]) -> dict[str, dict[str, Any]]:
    return {name: {metric: paired.to_json() for metric, paired in metrics.items()} for name, metrics in groups.items()}
