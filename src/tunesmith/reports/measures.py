"""Which scores to set side by side: like with like, the majority class for scale, the claimed measure marked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.reports.wording import as_mapping, as_number, number, percent, plain, points, signed

Json = Mapping[str, Any]
Who = Literal["majority", "base", "tuned"]
_LOWER_IS_BETTER = ("loss", "perplexity", "nats", "bits", "brier", "calibration", "mse")
_CORRELATIONS = ("pearson", "spearman")
_PRIMARY = ("accuracy", "exact_match")
PROBE = "probes."
_LEVEL = 0.05


@dataclass(frozen=True)
class Score:
    """A value with its 95 % interval and the number of rows behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Measure:
    """One score of one model on one task."""

    who: Who
    label: str
    task: str
    metric: str
    score: Score
    claimed: bool = False


@dataclass(frozen=True)
class Change:
    """A metric before and after, paired on the same rows."""

    task: str
    metric: str
    before: Score | None
    after: Score | None
    difference: Score | None
    p_value: float | None
    test: str
    won: int | None
    lost: int | None
    both_right: int | None
    both_wrong: int | None
    claimed: bool = False

    @property
    def name(self) -> str:
        """Task and metric in words, once where they are the same."""
        return plain(self.task) if self.task == self.metric else f"{plain(self.task)}, {plain(self.metric)}"

    @property
    def is_share(self) -> bool:
        """Whether the metric runs from 0 to 1."""
        return is_share(self.metric)

    @property
    def clear(self) -> bool | None:
        """Whether the interval of the difference leaves out zero and p < 0.05, where there is a p; None without an interval."""
        if self.difference is None or self.difference.low is None or self.difference.high is None:
            return None
        apart = self.difference.low > 0 or self.difference.high < 0
        return apart and (self.p_value is None or self.p_value < _LEVEL)

    @property
    def improved(self) -> bool:
        """Whether the difference points the good way, clear or not."""
        value = self.difference.value if self.difference else 0.0
        return value < 0 if any(word in self.metric for word in _LOWER_IS_BETTER) else value > 0

    def show(self, score: Score | None) -> str:
        """A value of this metric as text."""
        return show_value(self.metric, score)

    def show_difference(self) -> str:
        """The difference as text: points for shares."""
        value = self.difference.value if self.difference else None
        return points(value) if self.is_share else signed(value)

    def show_range(self) -> str:
        """The interval of the difference as text, or nothing."""
        if self.difference is None or self.difference.low is None or self.difference.high is None:
            return ""
        if self.is_share:
            return f"{points(self.difference.low).removesuffix(' points')} to {points(self.difference.high)}"
        return f"{signed(self.difference.low)} to {signed(self.difference.high)}"


def is_share(metric: str) -> bool:
    """Whether a metric is a share from 0 to 1, by its name."""
    return not any(word in metric for word in (*_LOWER_IS_BETTER, *_CORRELATIONS))


def read_score(value: Any) -> Score | None:
    """A score of a scorecard, or None where there is none."""
    fields = as_mapping(value)
    at = as_number(fields.get("value"))
    if at is None:
        return None
    n = as_number(fields.get("n"))
    return Score(at, as_number(fields.get("low")), as_number(fields.get("high")), None if n is None else int(n))


def show_value(metric: str, score: Score | None) -> str:
    """A score of a metric as text."""
    value = score.value if score else None
    return percent(value) if is_share(metric) else number(value)


def show_interval(metric: str, score: Score | None) -> str:
    """The 95 % interval of a score as text, or nothing."""
    if score is None or score.low is None or score.high is None:
        return ""
    if is_share(metric):
        return f"{percent(score.low).removesuffix(' %')} to {percent(score.high)}"
    return f"{number(score.low)} to {number(score.high)}"


def claimed_on(comparison: Json, tuned: Json) -> tuple[str, str]:
    """Task and metric that the verdict stands on; what the comparison says, else label ranking, exact match, loss."""
    said = comparison.get("claimed_on")
    if isinstance(said, str) and "." in said:
        task, _, metric = said.rpartition(".")
        return task, metric
    tasks = as_mapping(tuned.get("tasks")) or as_mapping(comparison.get("tasks"))
    for wanted in ("label_ranking", "exact_match", "loss", ""):
        for task, metrics in tasks.items():
            if str(task).startswith(wanted) and as_mapping(metrics):
                return str(task), primary_metric(as_mapping(metrics))
    return "", ""


def primary_metric(metrics: Json) -> str:
    """The metric a task is known by: accuracy, exact match, else its first."""
    return next((name for name in _PRIMARY if name in metrics), next(iter(metrics), ""))


def task_kind(task: str, scorecard: Json) -> str:
    """``label_ranking``, ``exact_match`` or ``loss``, from the settings of the task, else from its name."""
    settings = as_mapping(as_mapping(scorecard.get("settings")).get(task))
    said = settings.get("type") or settings.get("kind")
    if isinstance(said, str):
        return said
    return next((kind for kind in ("label_ranking", "exact_match", "loss") if task.startswith(kind)), task)


def like_for_like(base: Json, tuned: Json, comparison: Json) -> list[Measure]:
    """Majority class, then base and tuned on the claimed measure, then base and tuned on every other task.

    Only one metric of each task, and shares and losses alike; a chart takes those that share its axis.
    """
    claim_task, claim_metric = claimed_on(comparison, tuned or base)
    cards = {"base": base, "tuned": tuned}
    tasks = list(as_mapping(tuned.get("tasks"))) + [
        one for one in as_mapping(base.get("tasks")) if one not in as_mapping(tuned.get("tasks"))
    ]
    tasks.sort(key=lambda task: (task != claim_task, _rank(task_kind(task, tuned or base))))
    found = [majority] if (majority := _majority(base, tuned, claim_task)) else []
    for task in tasks:
        metrics = as_mapping(as_mapping(tuned.get("tasks")).get(task)) or as_mapping(
            as_mapping(base.get("tasks")).get(task)
        )
        metric = claim_metric if task == claim_task else primary_metric(metrics)
        for who, card in cards.items():
            score = read_score(as_mapping(as_mapping(card.get("tasks")).get(task)).get(metric))
            if score is not None:
                claimed = (task, metric) == (claim_task, claim_metric)
                label = _label(task, metric)
                found.append(Measure("base" if who == "base" else "tuned", label, task, metric, score, claimed))
    return found


def _rank(kind: str) -> int:
    order = ("label_ranking", "exact_match", "loss")
    return order.index(kind) if kind in order else len(order)


def _label(task: str, metric: str) -> str:
    words = plain(task)
    return words if metric in ("accuracy", "exact_match", task, "loss") else f"{words}, {plain(metric)}"


def _majority(base: Json, tuned: Json, claim_task: str) -> Measure | None:
    for card in (tuned, base):
        baselines = as_mapping(card.get("baselines"))
        for task in sorted(baselines, key=lambda name: name != claim_task):
            fields = as_mapping(as_mapping(baselines[task]).get("majority"))
            if score := read_score(fields):
                label = fields.get("label")
                words = f"“{label}”" if label else "the commonest answer"
                return Measure("majority", words, str(task), "accuracy", score)
    return None


def changes(comparison: Json, part: Literal["tasks", "probes"]) -> list[Change]:
    """Every paired metric of the comparison, the claimed one first. Exact match is its task's accuracy, shown once."""
    claim = claimed_on(comparison, {}) if part == "tasks" else ("", "")
    found: list[Change] = []
    for task, metrics in as_mapping(comparison.get(part)).items():
        for metric, value in as_mapping(metrics).items():
            if metric == "accuracy" and "exact_match" in metrics:
                continue
            fields = as_mapping(value)
            whole = {name: _whole(fields.get(name)) for name in ("won", "lost", "both_right", "both_wrong")}
            found.append(
                Change(
                    task=str(task),
                    metric=str(metric),
                    before=read_score(fields.get("before")),
                    after=read_score(fields.get("after")),
                    difference=read_score(fields.get("difference")),
                    p_value=as_number(fields.get("p_value")),
                    test=str(fields.get("test") or ""),
                    claimed=(str(task), str(metric)) == claim,
                    **whole,
                )
            )
    return sorted(found, key=lambda change: not change.claimed)


def _whole(value: Any) -> int | None:
    found = as_number(value)
    return None if found is None else int(found)


def forgetting(comparison: Json) -> list[str]:
    """One sentence for each probe's main measure, saying whether the change is clear."""
    sentences = []
    for change in changes(comparison, "probes"):
        if change.before is None or change.after is None:
            continue
        if change.metric not in ("perplexity", "accuracy"):
            continue
        words = (
            f"{plain(change.task)} {plain(change.metric)} {change.show(change.before)} → {change.show(change.after)}"
        )
        ranged = change.show_range()
        amount = f"{change.show_difference()}, 95 % {ranged}" if ranged else change.show_difference()
        sentences.append(f"{words} ({amount}): {_judged(change)}")
    return sentences


def _judged(change: Change) -> str:
    if change.clear is None:
        return "no interval"
    if not change.clear:
        return "no clear change"
    return "improved" if change.improved else "worse"
