"""What stands below the verdict: curves, classes, what was forgotten, samples, environment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tunesmith.reports.answers import Quote, is_right, quote
from tunesmith.reports.facts import Facts
from tunesmith.reports.figures import (
    DotChart,
    HeatMap,
    LineChart,
    Point,
    Reading,
    Series,
    dot_chart,
    heat_map,
    line_chart,
    log_chart,
    smooth,
)
from tunesmith.reports.framing import frame_of
from tunesmith.reports.measures import PROBE, Change, changes, claimed_on
from tunesmith.reports.wording import as_list, as_mapping, as_number, count, number, percent, plain

MOST_CLASSES = 30
TRAINED = "Trained parameters"
_MOST_PAIRS = 15
_FEW_PAIRS = 6
_SAMPLE_CHARACTERS = 600
_VITALS = ("update_norm", "weight_norm", "grad_norm", "ratio")
_USUAL = 1e-3
"""Update over weights that is usual where all parameters train."""
_OTHER = "(no label)"


@dataclass(frozen=True)
class ClassRow:
    """One class: its rows and its scores from 0 to 1; the base's F1 where it was scored."""

    label: str
    n: int
    precision: float | None
    recall: float | None
    f1: float | None
    base_f1: float | None


@dataclass(frozen=True)
class Classes:
    """Per-class scores of one task, worst first, with the confusion of the tuned model."""

    task: str
    rows: tuple[ClassRow, ...]
    heat: HeatMap | None
    pairs: tuple[tuple[str, str, int, int], ...]
    num_classes: int


@dataclass(frozen=True)
class Kind:
    """Completions of one kind: right answers of base and tuned, and how many there are."""

    name: str
    base: int
    tuned: int
    n: int


@dataclass(frozen=True)
class Forgotten:
    """Probes before and after."""

    changes: tuple[Change, ...]
    charts: tuple[tuple[str, DotChart], ...]
    kinds: tuple[Kind, ...]


@dataclass(frozen=True)
class Watched:
    """One prompt answered again and again while training."""

    prompt: Quote
    reference: Quote
    answers: tuple[tuple[str, Quote], ...]


@dataclass(frozen=True)
class Layers:
    """Vitals of the layers: their curves, and name, update, weights, gradient and ratio of each at the last step measured."""

    chart: LineChart
    step: str
    rows: tuple[tuple[str, ...], ...]


_PART = "nll_"
"""Beginning of the names of metrics that are the plain loss of one part."""


def curves(facts: Facts) -> tuple[LineChart, ...]:
    """Loss (raw, smoothed, validation), learning rate, gradient norm, speed, and what trained where that changed."""
    trained = _points(facts.metrics, "trained_parameters")
    raw = _points(facts.metrics, "nll") or _points(facts.metrics, "loss")  # beside validation stands the plain loss
    charts = (
        line_chart(
            "Loss",
            [
                Series("training, each step", "raw", raw),
                Series("training, smoothed", "tuned", smooth(raw) if len(raw) > 2 else []),
                Series("validation", "validation", _points(facts.metrics, "validation_loss"), dots=True),
            ],
            unit="nats per trained token",
        ),
        line_chart("Loss by part", _parts(facts.metrics), unit="nats per trained token"),
        line_chart("Learning rate", [Series("rate", "tuned", _points(facts.metrics, "learning_rate"))], from_zero=True),
        line_chart(
            "Gradient norm", [Series("before clipping", "tuned", _points(facts.metrics, "grad_norm"))], from_zero=True
        ),
        line_chart(
            "Speed",
            [Series("speed", "tuned", _points(facts.metrics, "tokens_per_second"))],
            unit="tokens per second",
            from_zero=True,
        ),
        line_chart(
            TRAINED,
            [Series("parameters", "tuned", _stairs(trained))] if len({size for _, size in trained}) > 1 else [],
            from_zero=True,
        ),
    )
    return tuple(chart for chart in charts if chart is not None)


def _parts(lines: list[dict[str, Any]]) -> list[Series]:
    """Plain training loss of each part of a sum, smoothed; none where the objective is no sum."""
    names = dict.fromkeys(key for line in lines for key in line if key.startswith(_PART))
    found = [(name.removeprefix(_PART), _points(lines, name)) for name in names]
    looks = ("tuned", "validation")
    return [Series(name, looks[place % 2], smooth(points)) for place, (name, points) in enumerate(found) if points]


def _stairs(points: list[Point]) -> list[Point]:
    """Of a curve that stays level until it jumps, its ends and the points on both sides of each jump."""
    inner = range(1, len(points) - 1)
    jumps = [
        place for place in inner if points[place - 1][1] != points[place][1] or points[place][1] != points[place + 1][1]
    ]
    return [points[place] for place in (0, *jumps, len(points) - 1)]


def _points(lines: list[dict[str, Any]], key: str) -> list[Point]:
    found = []
    for line in lines:
        step, value = as_number(line.get("step")), as_number(line.get(key))
        if step is not None and value is not None:
            found.append((step, value))
    return found


def layers(facts: Facts) -> Layers | None:
    """How far each layer moved beside its size, over steps, and the last norms of each; None where nothing was measured."""
    points: dict[str, list[Point]] = {}
    last: dict[str, tuple[str, ...]] = {}
    at = 0.0
    for line in facts.metrics:
        step = as_number(line.get("step"))
        for name, fields in as_mapping(line.get("layers")).items() if step is not None else ():
            vitals = as_mapping(fields)
            if (ratio := as_number(vitals.get("ratio"))) is not None and step is not None:
                points.setdefault(str(name), []).append((step, ratio))
            last[str(name)] = tuple(number(as_number(vitals.get(key))) for key in _VITALS)
            at = step or at
    series = [Series(name, "layer", found, dots=True) for name, found in points.items()]
    chart = log_chart(
        "Update to weights, by layer", series, unit="norm of the update over norm of the weights", usual=_USUAL
    )
    return None if chart is None else Layers(chart, count(at), tuple((name, *norms) for name, norms in last.items()))


def lost_points(facts: Facts) -> int:
    """Steps whose loss was not a finite number."""
    return sum(as_number(line.get("loss")) is None for line in facts.training)


def classes(facts: Facts) -> Classes | None:
    """Per-class table of the claimed task, else of the first task that has one."""
    tables = as_mapping(facts.tuned.get("tables"))
    claim, _ = claimed_on(facts.comparison, facts.tuned)
    task = claim if claim in tables else next(iter(tables), "")
    table = as_mapping(tables.get(task))
    labels = [str(label) for label in as_list(table.get("labels"))]
    if not labels:
        return None
    before = as_mapping(as_mapping(facts.base.get("tables")).get(task))
    base_f1 = {
        str(row.get("label")): as_number(row.get("f1")) for row in map(as_mapping, as_list(before.get("per_class")))
    }
    rows = [
        ClassRow(
            label=str(row.get("label")),
            n=int(as_number(row.get("n")) or 0),
            precision=as_number(row.get("precision")),
            recall=as_number(row.get("recall")),
            f1=as_number(row.get("f1")),
            base_f1=base_f1.get(str(row.get("label"))),
        )
        for row in map(as_mapping, as_list(table.get("per_class")))
    ]
    rows.sort(key=lambda row: (row.f1 if row.f1 is not None else -1.0, row.label))
    matrix = [[int(as_number(cell) or 0) for cell in as_list(line)] for line in as_list(table.get("confusion"))]
    names = _column_names(labels, matrix, [str(name) for name in as_list(table.get("columns"))])
    small = len(labels) <= MOST_CLASSES
    pairs = _confused(labels, matrix, names, _FEW_PAIRS if small else _MOST_PAIRS)
    heat = heat_map(labels, matrix, names[len(labels) :]) if small and matrix else None
    return Classes(plain(task), tuple(rows), heat, pairs, len(labels))


def _column_names(labels: list[str], matrix: list[list[int]], said: list[str]) -> list[str]:
    """Names of the columns; those beyond the labels hold answers that are none of them."""
    wide = max((len(line) for line in matrix), default=len(labels))
    return said if len(said) >= wide else [*labels, *[_OTHER] * (wide - len(labels))]


def _confused(
    labels: list[str], matrix: list[list[int]], names: list[str], most: int
) -> tuple[tuple[str, str, int, int], ...]:
    found = [
        (labels[row], names[column], value, sum(line))
        for row, line in enumerate(matrix[: len(labels)])
        for column, value in enumerate(line)
        if value and row != column
    ]
    found.sort(key=lambda pair: (-pair[2], -pair[2] / pair[3], pair[0], pair[1]))
    return tuple(found[:most])


def forgotten(facts: Facts) -> Forgotten:
    """Probes from the comparison; completions by kind from their rows."""
    found = changes(facts.comparison, "probes")
    charts: list[tuple[str, DotChart]] = []
    for change in found:
        if change.before is None or change.after is None or change.metric not in ("perplexity", "accuracy"):
            continue
        readings = [
            Reading(name, css, score.value, score.low, score.high)
            for name, css, score in (("Base", "base", change.before), ("Tuned", "tuned", change.after))
        ]
        unit = "share right" if change.is_share else "lower is better"
        chart = dot_chart(readings, percent if change.is_share else number, unit=unit, share=change.is_share)
        if chart is not None:
            charts.append((f"{plain(change.task)}, {plain(change.metric)}".capitalize(), chart))
    return Forgotten(tuple(found), tuple(charts), _kinds(facts))


def _kinds(facts: Facts) -> tuple[Kind, ...]:
    totals: dict[str, list[int]] = {}
    task = PROBE + "completions"
    base = {str(row.get("id")): row for row in facts.base_rows if row.get("task") == task}
    for row in facts.tuned_rows:
        before = base.get(str(row.get("id")))
        if row.get("task") != task or before is None:
            continue
        tally = totals.setdefault(plain(str(row.get("group") or "all kinds")), [0, 0, 0])
        tally[0] += is_right(before)
        tally[1] += is_right(row)
        tally[2] += 1
    return tuple(Kind(name, *tally) for name, tally in sorted(totals.items()))


def watched(facts: Facts) -> tuple[Watched, ...]:
    """Samples by prompt, each with its answers in the order of the steps."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for sample in facts.samples:
        by_prompt.setdefault(str(sample.get("prompt")), []).append(sample)
    frame = frame_of(facts)
    found = []
    for prompt, samples in by_prompt.items():
        samples.sort(key=lambda sample: as_number(sample.get("step")) or 0.0)
        found.append(
            Watched(
                quote(frame.strip(prompt), _SAMPLE_CHARACTERS),
                quote(samples[0].get("reference"), _SAMPLE_CHARACTERS),
                _stretches(samples),
            )
        )
    return tuple(found)


def _stretches(samples: list[dict[str, Any]]) -> tuple[tuple[str, Quote], ...]:
    """Answers in order, with equal neighbours as one stretch of steps."""
    found: list[tuple[str, Quote]] = []
    for said, group in groupby(samples, key=lambda sample: sample.get("answer")):
        steps = [count(as_number(sample.get("step"))) for sample in group]
        label = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
        found.append((label, quote(said, _SAMPLE_CHARACTERS)))
    return tuple(found)


def flatten(value: Any, path: str = "") -> list[tuple[str, str]]:
    """A nested mapping as ``key.inner`` and text; lists of plain values on one line."""
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in flatten(inner, f"{path}.{key}" if path else str(key))]
    if isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        return [pair for index, inner in enumerate(value) for pair in flatten(inner, f"{path}.{index}")]
    if isinstance(value, list):
        return [(path, ", ".join(map(str, value)) or "none")]
    return [(path, value if isinstance(value, str) else json.dumps(value))]
