"""Scorecards and comparisons as lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.cli.terminal import table
from tunesmith.reports.measures import changes, forgetting, read_score, show_interval, show_value
from tunesmith.reports.wording import as_mapping, chance, count, percent, plain

Json = Mapping[str, Any]


def scorecard_lines(card: Json) -> list[str]:
    """Every metric of every task and probe with its interval, and the majority class for scale."""
    rows = []
    for part in ("tasks", "probes"):
        for task, metrics in as_mapping(card.get(part)).items():
            for metric, value in as_mapping(metrics).items():
                score = read_score(value)
                if score is not None:
                    interval = show_interval(metric, score)
                    rows.append((plain(task), plain(metric), show_value(metric, score), interval, _rows(score.n)))
    for task, baselines in as_mapping(card.get("baselines")).items():
        majority = as_mapping(as_mapping(baselines).get("majority"))
        if score := read_score(majority):
            name = f"always “{majority.get('label')}”"
            rows.append((plain(task), name, percent(score.value), show_interval("accuracy", score), _rows(score.n)))
    return table(rows, head=("task", "metric", "value", "95 % interval", "rows"), right=(2,))


def comparison_lines(comparison: Json) -> list[str]:
    """The sentence of the verdict, every metric before and after, and what was forgotten."""
    lines = []
    sentence = comparison.get("sentence")
    if isinstance(sentence, str) and sentence:
        lines.append(sentence)
    rows = []
    for change in changes(comparison, "tasks"):
        ranged = change.show_range()
        detail = ", ".join(filter(None, (f"95 % {ranged}" if ranged else "", chance(change.p_value))))
        name = measure_name(change.task, change.metric) + (" *" if change.claimed else "")
        before, after = change.show(change.before), change.show(change.after)
        rows.append((name, before, after, change.show_difference(), detail))
    lines += table(rows, head=("measure", "before", "after", "difference", ""), right=(1, 2, 3))
    if any(change.claimed for change in changes(comparison, "tasks")):
        lines.append("  * the measure that the verdict stands on")
    kept = forgetting(comparison)
    if kept:
        lines += ["what was kept:", *table([(sentence,) for sentence in kept])]
    return lines


def measure_name(task: str, metric: str) -> str:
    """``exact match, macro f1``; a metric of the task's own name is not said twice."""
    return plain(task) if metric == task else f"{plain(task)}, {plain(metric)}"


def _rows(n: int | None) -> str:
    return "" if n is None else count(n)
