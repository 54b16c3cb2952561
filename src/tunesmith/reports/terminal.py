"""The headline for the terminal: the same numbers as the first screen of the page, as plain lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.reports.measures import Measure, changes, forgetting, like_for_like, show_interval, show_value
from tunesmith.reports.wording import as_mapping, count, duration, plain

Json = Mapping[str, Any]
_WHO = {"majority": "majority class", "base": "base", "tuned": "tuned"}


def headline(
    comparison: Json | None,
    scorecards: Mapping[str, Json | None],
    *,
    seconds: float | None = None,
    optimistic: bool = False,
) -> list[str]:
    """Lines that say whether it helped.

    Args:
        comparison: as in comparison.json; None where nothing was compared.
        scorecards: ``base`` and ``tuned``, as in base.json and tuned.json; either may be absent or None.
        seconds: time in training.
        optimistic: whether only validation rows were scored.

    Returns:
        The verdict, the like-for-like scores with their 95 % intervals, what was won and lost, what was forgotten, time.
    """
    paired = as_mapping(comparison)
    base, tuned = as_mapping(scorecards.get("base")), as_mapping(scorecards.get("tuned"))
    lines = [str(paired.get("sentence") or "Nothing was compared: base and tuned model were not both scored.")]
    if optimistic and "optimistic" not in lines[0]:
        lines.append("Optimistic: only validation rows were scored, which also served to stop or select.")
    lines += _table(like_for_like(base, tuned, paired))
    claim = next((change for change in changes(paired, "tasks") if change.claimed), None)
    if claim is not None and claim.won is not None and claim.lost is not None:
        lines.append(
            f"rows:       {count(claim.won)} won, {count(claim.lost)} lost by {plain(claim.task)}, paired on the same prompts ({claim.test})"
        )
    kept = forgetting(paired)
    lines += [f"{'forgotten:  ' if index == 0 else '            '}{words}" for index, words in enumerate(kept)]
    if not kept:
        lines.append("forgotten:  not measured")
    times = [f"{duration(seconds)} training"] if seconds is not None else []
    for name, card in (("base", base), ("tuned", tuned)):
        if isinstance(card.get("seconds"), int | float):
            times.append(f"{duration(card['seconds'])} scoring {name}")
    if times:
        lines.append(f"time:       {', '.join(times)}")
    return lines


def _table(measures: list[Measure]) -> list[str]:
    """One aligned line for each score; the claimed measure carries an arrow."""
    if not measures:
        return []
    names = [f"{_WHO[one.who]}{' ' if one.who == 'majority' else ', '}{one.label}" for one in measures]
    values = [show_value(one.metric, one.score) for one in measures]
    ranges = [show_interval(one.metric, one.score) for one in measures]
    wide, broad, far = max(map(len, names)), max(map(len, values)), max(map(len, ranges))
    lines = [""]
    for one, name, value, ranged in zip(measures, names, values, ranges, strict=True):
        rows = f"n = {count(one.score.n)}" if one.score.n else ""
        mark = "  <- claimed" if one.claimed else ""
        lines.append(f"  {name:<{wide}}  {value:>{broad}}  95 % {ranged:<{far}}  {rows}{mark}".rstrip())
    return [*lines, ""]
