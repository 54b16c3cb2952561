"""The top of the page: did it help, said once, on the like measure, with the scores that stand around it."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.registry.standing import AGAIN
from tunesmith.reports.facts import Facts
from tunesmith.reports.figures import DotChart, Reading, dot_chart
from tunesmith.reports.measures import (
    Change,
    Measure,
    Score,
    changes,
    claimed_on,
    is_share,
    like_for_like,
    show_interval,
)
from tunesmith.reports.wording import as_mapping, as_number, chance, count, duration, number, percent, plain

_WORDS = {"better": "Better", "worse": "Worse", "no evidence": "No evidence of a difference"}
_STATUS = {"running": "still running", "interrupted": "interrupted", "stopped": "stopped by a guard", "lost": "lost"}
_WHO = {"majority": "Majority class", "base": "Base", "tuned": "Tuned"}


@dataclass(frozen=True)
class Tile:
    """One number of the first screen: what, how much, and on what it stands."""

    title: str
    value: str
    note: str


@dataclass(frozen=True)
class Verdict:
    """The answer, its evidence, and what weakens it."""

    word: str
    css: str
    sentence: str
    banners: tuple[str, ...]
    tiles: tuple[Tile, ...]
    chart: DotChart | None
    others: DotChart | None
    changes: tuple[Change, ...]
    claimed: str
    caveats: tuple[str, ...]


def verdict(facts: Facts) -> Verdict:
    """Build the verdict from the comparison and the scorecards; without a comparison it says that there is none."""
    said = str(facts.comparison.get("verdict") or "")
    word = _WORDS.get(said, "Not compared")
    found = changes(facts.comparison, "tasks")
    measures = like_for_like(facts.base, facts.tuned, facts.comparison)
    task, metric = claimed_on(facts.comparison, facts.tuned or facts.base)
    return Verdict(
        word=word,
        css={"better": "better", "worse": "worse"}.get(said, "unclear"),
        sentence=sentence(facts, found),
        banners=_banners(facts),
        tiles=tuple(_tiles(facts, found)),
        chart=_chart([one for one in measures if is_share(one.metric)], share=True),
        others=_chart([one for one in measures if not is_share(one.metric)], share=False),
        changes=tuple(found),
        claimed=f"{plain(task)} ({plain(metric)})" if task else "",
        caveats=tuple(_caveats(facts)),
    )


def sentence(facts: Facts, found: list[Change]) -> str:
    """The comparison's own sentence, else one made from its numbers, else why there is none."""
    said = facts.comparison.get("sentence")
    if isinstance(said, str) and said.strip():
        return said.strip()
    claim = next((change for change in found if change.claimed), None)
    if claim is not None and claim.difference is not None:
        ranged = claim.show_range()
        interval = f", 95 % interval {ranged}" if ranged else ""
        return f"{plain(claim.task).capitalize()} went from {claim.show(claim.before)} to {claim.show(claim.after)} ({claim.show_difference()}{interval})."
    if facts.tuned and not facts.base:
        return "Only the tuned model was scored: without the base on the same rows nothing can be said about a gain."
    if facts.base and not facts.tuned:
        return "Only the base model was scored so far."
    return "Neither model has been scored: this page shows the training only."


def _banners(facts: Facts) -> tuple[str, ...]:
    found = []
    status = str(facts.status.get("status") or "")
    if status in _STATUS:
        step, steps = as_number(facts.status.get("step")), as_number(facts.status.get("steps"))
        place = f" at step {count(step)} of {count(steps)}" if step is not None and steps is not None else ""
        message = str(facts.status.get("message") or "").strip()
        if status == "lost":
            message = f"{message}; {AGAIN}"
        found.append(f"This run is {_STATUS[status]}{place}" + (f": {message}" if message else ""))
    if facts.optimistic:
        found.append(
            "Optimistic: only validation rows were scored. They also served to stop or select, so the true gain is likely smaller. "
            "Give the recipe a test split for an honest verdict."
        )
    return tuple(found)


def _caveats(facts: Facts) -> list[str]:
    """What differs between the two sides by declaration, and what could not be compared."""
    found = []
    for task, keys in as_mapping(facts.comparison.get("declared")).items():
        found.append(
            f"{plain(str(task))}: the two sides differ, as declared, in {', '.join(map(str, as_mapping(keys)))}"
        )
    for name, why in as_mapping(facts.comparison.get("not_compared")).items():
        found.append(f"{plain(str(name))} is not compared: {why}")
    return found


def _tiles(facts: Facts, found: list[Change]) -> list[Tile]:
    tiles = []
    claim = next((change for change in found if change.claimed), None)
    if claim is not None and claim.difference is not None:
        ranged = claim.show_range()
        tiles.append(
            Tile(f"Gain, {plain(claim.task)}", claim.show_difference(), f"95 % {ranged}" if ranged else "no interval")
        )
        if claim.won is not None and claim.lost is not None:
            n = claim.difference.n
            rows = f"of {count(n)} rows" if n else "rows"
            tiles.append(
                Tile(
                    "Won and lost",
                    f"{count(claim.won)} : {count(claim.lost)}",
                    ", ".join(filter(None, (rows, chance(claim.p_value)))),
                )
            )
    for change in changes(facts.comparison, "probes"):
        if change.metric == "perplexity" and change.before and change.after:
            ratio = change.after.value / change.before.value - 1 if change.before.value else None
            grown = "" if ratio is None else f"{'+' if ratio > 0 else ''}{percent(ratio)}, "
            tiles.append(
                Tile(
                    f"{plain(change.task).capitalize()} perplexity",
                    f"{change.show(change.before)} → {change.show(change.after)}",
                    f"{grown}lower is better",
                )
            )
            break
    if facts.seconds is not None:
        last = facts.training[-1] if facts.training else {}
        steps = as_number(facts.status.get("step")) or as_number(last.get("step"))
        tokens = as_number(facts.status.get("tokens")) or as_number(last.get("tokens"))
        words = [f"{count(steps)} steps" if steps else "", f"{count(tokens)} tokens" if tokens else ""]
        tiles.append(Tile("Training time", duration(facts.seconds), ", ".join(filter(None, words))))
    return tiles


def _chart(measures: list[Measure], *, share: bool) -> DotChart | None:
    readings = [
        Reading(
            label=_reading_label(one),
            css=one.who,
            value=one.score.value,
            low=one.score.low,
            high=one.score.high,
            mark="claimed" if one.claimed else "",
        )
        for one in measures
    ]
    rows = {one.score.n for one in measures if one.score.n}
    of = f" of {count(rows.pop())} rows" if len(rows) == 1 else ""
    unit = (
        f"share right{of}"
        if share
        else f"nats per token{of}, lower is better"
        if all(one.metric == "loss" for one in measures)
        else "lower is better"
    )
    return dot_chart(readings, percent if share else number, unit=unit, share=share)


def _reading_label(measure: Measure) -> str:
    return (
        f"{_WHO[measure.who]}, {measure.label}" if measure.who != "majority" else f"{_WHO['majority']} {measure.label}"
    )


def score_text(metric: str, score: Score | None) -> str:
    """Interval and n of a score, for the small print."""
    interval = show_interval(metric, score)
    rows = f"n = {count(score.n)}" if score and score.n else ""
    return ", ".join(filter(None, (interval, rows)))
