"""The verdict and its words: one sentence on what was gained, one on what was forgotten."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from tunesmith.errors import UserError
from tunesmith.evaluation.pairing import MEASURES, Paired

Verdict = Literal["better", "worse", "no evidence"]

_LEVEL = 0.05
_MINUS = "−"


@dataclass(frozen=True, slots=True)
class _Claim:
    """A measure on which a gain may be claimed: tasks that have ``marker`` have it in the meaning of ``words``."""

    metric: str
    marker: str
    words: str
    describe: Callable[[Paired], str]


def _share(paired: Paired) -> str:
    return (
        f"{_percent(paired.after.value)} against {_percent(paired.before.value)} "
        f"({_signed(100 * paired.difference.value, 1)} points, "
        f"95 % {_plain(100 * paired.difference.low, 1)} to {_plain(100 * paired.difference.high, 1)}"
    )


def _nats(paired: Paired) -> str:
    return (
        f"{paired.after.value:.3f} against {paired.before.value:.3f} nats per token "
        f"({_signed(paired.difference.value, 3)}, "
        f"95 % {_plain(paired.difference.low, 3)} to {_plain(paired.difference.high, 3)}"
    )


def _plainly(paired: Paired) -> str:
    return (
        f"{paired.after.value:.3g} against {paired.before.value:.3g} "
        f"({_signed(paired.difference.value, 3)}, "
        f"95 % {_plain(paired.difference.low, 3)} to {_plain(paired.difference.high, 3)}"
    )


# Label ranking first: it asks tuned and untuned models the same thing, where a generated answer also asks for a form
# that only tuning teaches.
_CLAIMS = (
    _Claim("accuracy", "mean_reciprocal_rank", "label ranking", _share),
    _Claim("accuracy", "brier", "classification", _share),
    _Claim("micro_f1", "micro_f1", "micro F1", _share),
    _Claim("span_f1", "span_f1", "span F1", _share),
    _Claim("word_accuracy", "word_accuracy", "word accuracy", _share),
    _Claim("mse", "pearson", "squared error", _plainly),
    _Claim("exact_match", "exact_match", "exact match", _share),
    _Claim("loss", "loss", "loss", _nats),
)


def judge(metric: str, paired: Paired) -> Verdict:
    """Better or worse where the interval of the difference excludes 0 and p < 0.05, else no evidence."""
    better = MEASURES[metric].better
    gains = sorted((better * paired.difference.low, better * paired.difference.high))
    if paired.p_value < _LEVEL and gains[0] > 0:
        return "better"
    if paired.p_value < _LEVEL and gains[1] < 0:
        return "worse"
    return "no evidence"


def verdict_of(
    tasks: Mapping[str, Mapping[str, Paired]], optimistic: Collection[str], name: str
) -> tuple[Verdict, str, str]:
    """Verdict, the ``task.metric`` it is claimed on, and the sentence.

    Label ranking before exact match before loss; tasks in ``optimistic`` (scored on rows that may have stopped or
    chosen the training) only where there is no other, which the sentence then says.

    Raises:
        UserError: neither side of any task has a measure to claim on.
    """
    for allowed in (False, True):
        for claim in _CLAIMS:
            for task, metrics in tasks.items():
                if claim.metric not in metrics or claim.marker not in metrics or (task in optimistic) is not allowed:
                    continue
                verdict = judge(claim.metric, metrics[claim.metric])
                sentence = _sentence(verdict, claim, metrics[claim.metric], name)
                if allowed:
                    sentence += " (optimistic: measured on validation rows)"
                return verdict, f"{task}.{claim.metric}", sentence
    raise UserError(
        "the scorecards have no task in common on which a gain could be claimed",
        where=f"tasks in common: {', '.join(tasks) or 'none'}",
        hint="Score both models on the same tasks: label_ranking, exact_match or loss.",
    )


def forgetting_of(probes: Mapping[str, Mapping[str, Paired]]) -> str:
    """What the probes say was kept or lost; says so where nothing was measured."""
    parts = []
    if paired := probes.get("general", {}).get("perplexity"):
        old, new = paired.before.value, paired.after.value
        change = f"{_signed(100 * (new / old - 1), 0)} %{_unless_evident('perplexity', paired)}"
        parts.append(f"general text: perplexity {old:.1f} → {new:.1f} ({change})")
    if paired := probes.get("completions", {}).get("accuracy"):
        old, new = paired.before.value, paired.after.value
        change = f"{_signed(100 * paired.difference.value, 1)} points{_unless_evident('accuracy', paired)}"
        parts.append(f"simple completions: {_percent(old)} → {_percent(new)} ({change})")
    return "; ".join(parts) or "what was forgotten was not measured"


def _sentence(verdict: Verdict, claim: _Claim, paired: Paired, name: str) -> str:
    opening = "No evidence of a difference" if verdict == "no evidence" else f"{name} is {verdict}"
    chance = "p < 0.001" if paired.p_value < 0.001 else f"p = {paired.p_value:.{2 if paired.p_value >= 0.1 else 3}f}"
    return f"{opening}: {claim.words} {claim.describe(paired)}, n = {paired.difference.n}, {chance})"


def _unless_evident(metric: str, paired: Paired) -> str:
    return ", no evidence of change" if judge(metric, paired) == "no evidence" else ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", _MINUS)  # adding 0.0 turns -0.0 into 0.0


def _plain(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", _MINUS)
