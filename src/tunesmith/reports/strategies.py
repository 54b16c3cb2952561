"""A comparison of strategies as a table, two pictures and one page. Torch-free.

comparison (plain values) ──rows──> terminal, Markdown, HTML   ──scatter──> two SVG
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tunesmith.files import write_json, write_text
from tunesmith.reports.render import environment
from tunesmith.reports.scatter import Axes, Spot, scatter
from tunesmith.reports.wording import DASH, MINUS, count, duration, number, percent, size

HEAD = (
    "strategy", "score (95 %)", "over seeds", "against {reference}", "rate", "trained", "peak", "time", "stored", "a token",
    "general perplexity", "completions",
)  # fmt: skip
PARAMETERS_PICTURE, FORGETTING_PICTURE = "score-by-parameters.svg", "score-by-forgetting.svg"


def write_comparison(folder: Path, found: Mapping[str, Any]) -> list[Path]:
    """Write ``strategies.json``, ``strategies.md``, ``strategies.html`` and the pictures; return their paths, the page first."""
    pictures = {name: picture for name, picture in pictures_of(found).items() if picture is not None}
    page = folder / "strategies.html"
    write_json(folder / "strategies.json", dict(found))
    write_text(folder / "strategies.md", markdown(found))
    for name, picture in pictures.items():
        write_text(folder / name, picture)
    write_text(page, render_page(found, list(pictures.values())))
    return [page, folder / "strategies.md", folder / "strategies.json", *(folder / name for name in pictures)]


def head_of(found: Mapping[str, Any]) -> list[str]:
    """Names of the columns."""
    return [name.format(reference=found["reference"]) for name in HEAD]


def table_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """One row a strategy, the best first."""
    better = found["measure"]["better"]
    ordered = sorted(found["strategies"], key=lambda item: -better * item["score"]["value"])
    return [_row(item, found) for item in ordered]


def _row(item: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    show = _shower(found)
    score, against = item["score"], item.get("against")
    interval = f"{show(score['low']).removesuffix(' %')} to {show(score['high'])}"
    forgetting = item.get("forgetting") or {}
    return [
        item["name"],
        f"{show(score['value'])} ({interval})",
        DASH if item["spread"] is None else f"± {show(item['spread'])}",
        "reference" if against is None else _against(against, found),
        number(item["rate"], 3) + (" (edge)" if item["at_edge"] else ""),
        count(_trained(item)),
        size(item["peak_memory_bytes"]),
        duration(item["seconds"]),
        size(item["stored_bytes"]),
        _latency(item.get("latency")),
        _change(forgetting.get("perplexity"), lambda value: number(value, 3)),
        _change(forgetting.get("completions"), lambda value: percent(value, 0)),
    ]


def _trained(item: Mapping[str, Any]) -> float:
    """Trained parameters on average over the steps; those at the first step where no step tells."""
    average = item.get("parameters_on_average")
    return float(item["parameters"] if average is None else average)


def _against(against: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    difference = against["difference"]
    is_share = found["measure"]["kind"] == "share"
    factor, digits = (100, 1) if is_share else (1, 3)
    value, low, high = (
        f"{factor * difference[key]:+.{digits}f}".replace("-", MINUS) for key in ("value", "low", "high")
    )
    return f"{value} ({low} to {high}): {against['verdict']}"


def _latency(latency: Mapping[str, float] | None) -> str:
    return DASH if latency is None else f"{1000 * latency['added']:+.2f} ms".replace("-", MINUS)


def _change(change: Mapping[str, float] | None, show: Any) -> str:
    return DASH if change is None else f"{show(change['before'])} → {show(change['after'])}"


def _shower(found: Mapping[str, Any]) -> Any:
    return percent if found["measure"]["kind"] == "share" else lambda value: number(value, 4)


def markdown(found: Mapping[str, Any]) -> str:
    """The table for a document."""
    head = head_of(found)
    lines = [head, ["---"] * len(head), *table_rows(found)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n\n".join([table, *(f"{sentence}" for sentence in sentences(found))]) + "\n"


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What the numbers are, and what was left out."""
    measure, seeds = found["measure"], found["seeds"]
    said = [
        f"Score: {measure['metric'].replace('_', ' ')} of {measure['task'].replace('_', ' ')} on {count(found['rows'])} test rows, mean of "
        f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'} ({', '.join(map(str, seeds))}). Each strategy has the rate that was best on "
        f"validation rows with seed {seeds[0]}; intervals hold rows and seeds (crossed bootstrap), differences are paired by row and seed, "
        f"and a verdict is corrected for {_comparisons(len(found['strategies']) - 1)} (Holm). Over seeds: the standard deviation; "
        "time: of training alone; a token: what the adapter adds to it while it is not merged."
    ]
    said += found.get("notes", [])
    said += [f"{name} is left out: {why}" for name, why in found["left_out"].items()]
    at_edge = [item["name"] for item in found["strategies"] if item["at_edge"]]
    if at_edge:
        said.append(
            f"The best rate of {', '.join(at_edge)} is at the edge of those tried: a better one may lie beyond."
        )
    return said


def _comparisons(number: int) -> str:
    return f"{count(number)} {'comparison' if number == 1 else 'comparisons'}"


def pictures_of(found: Mapping[str, Any]) -> dict[str, str | None]:
    """Score against trained parameters, and against what was forgotten; None where nothing has both."""
    measure = f"{found['measure']['metric'].replace('_', ' ')}"
    is_share = found["measure"]["kind"] == "share"
    by_size = [_spot(item, found, _trained(item)) for item in found["strategies"] if _trained(item) > 0]
    kept = [
        _spot(item, found, change["after"] / change["before"])
        for item in found["strategies"]
        if (change := (item.get("forgetting") or {}).get("perplexity"))
    ]
    title = f"{found['recipe']}: {measure}"
    return {
        PARAMETERS_PICTURE: _drawn(by_size, Axes(f"{title} by trained parameters", "trained parameters", measure, is_share)),
        FORGETTING_PICTURE: _drawn(
            kept,
            Axes(f"{title} by what was forgotten", "perplexity of general text, after over before (1 is nothing forgotten)", measure, is_share),
        ),
    }  # fmt: skip


def _drawn(spots: Sequence[Spot], axes: Axes) -> str | None:
    return scatter(spots, axes) if spots else None


def _spot(item: Mapping[str, Any], found: Mapping[str, Any], x: float) -> Spot:
    score = item["score"]
    return Spot(item["name"], x, score["value"], score["low"], score["high"], item["name"] == found["reference"])


def render_page(found: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The page: verdicts, table, pictures, rates, and how it was made."""
    show = _shower(found)
    rates = [
        (item["name"], [(number(one["rate"], 3), DASH if one["selection"] is None else show(one["selection"]), one["rate"] == item["rate"]) for one in item["rates"]])
        for item in found["strategies"]
    ]  # fmt: skip
    return environment().get_template("strategies.html.jinja").render(
        found=found, head=head_of(found), rows=table_rows(found), sentences=sentences(found), rates=rates,
        pictures=[Markup(picture) for picture in pictures],  # noqa: S704 - drawn here, names escaped
        does={item["name"]: item["does"] for item in found["strategies"]},
        values={item["name"]: json.dumps(item["values"], ensure_ascii=False) for item in found["strategies"]},
        verdicts=verdict_lines(found),
    )  # fmt: skip


def verdict_lines(found: Mapping[str, Any]) -> list[str]:
    """Which strategies are better, worse, and neither, than the reference."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "no evidence": []}
    for item in found["strategies"]:
        if "against" in item:
            groups[item["against"]["verdict"]].append(item["name"])
    words = {
        "better": "Better than {}: ",
        "worse": "Worse than {}: ",
        "no evidence": "No evidence of a difference from {}: ",
    }
    return [words[key].format(found["reference"]) + ", ".join(names) for key, names in groups.items() if names]
