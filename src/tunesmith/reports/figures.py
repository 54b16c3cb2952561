"""Geometry of the charts. Positions are percent of the plot, so that text keeps its size on every screen; templates draw.

numbers ──here──> positions and labels ──figures.jinja──> SVG shapes and HTML labels
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from tunesmith.reports.wording import MINUS, number

Point = tuple[float, float]
_MOST_POINTS = 400
_WINDOWS = 20
_SPIKE = 4.0
_SMALLEST = 1e-300
_DECADES_BELOW, _DECADES_ABOVE = 5, 3


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, in percent, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """A curve as an SVG path in a box of 1,000 by 1,000, with dots (percent, percent, words) where it has few points.

    ``mix`` is the place of a curve among its kin, in percent, which colours it; None where the class alone does.
    """

    name: str
    css: str
    path: str
    last: str
    dots: tuple[tuple[float, float, str], ...] = ()
    mix: float | None = None


@dataclass(frozen=True)
class LineChart:
    """A titled plot of curves over steps; the caption names ``keys``, and ``usual`` is a level to hold them against."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    summary: str
    note: str = ""
    keys: tuple[Line, ...] | None = None
    usual: Tick | None = None


@dataclass(frozen=True)
class Series:
    """Points of one curve before they are placed."""

    name: str
    css: str
    points: Sequence[Point]
    dots: bool = False


@dataclass(frozen=True)
class Whisker:
    """A value with its interval on a shared axis; positions in percent."""

    label: str
    css: str
    at: float
    low: float
    high: float
    value: str
    interval: str
    mark: str = ""


@dataclass(frozen=True)
class DotChart:
    """Values with intervals, one below the other."""

    whiskers: tuple[Whisker, ...]
    ticks: tuple[Tick, ...]
    unit: str


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix: rows of one class given one answer."""

    count: int
    shade: float
    right: bool
    words: str


@dataclass(frozen=True)
class HeatMap:
    """A confusion matrix: rows are what was right, columns what was answered."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class Part:
    """A part of a whole in a stacked bar; start and width in percent."""

    label: str
    css: str
    value: int
    start: float
    width: float


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    ticks: list[float] = field(default_factory=list)

    def at(self, value: float) -> float:
        return 100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) that cover ``low`` to ``high``; the ends lie outside or on them."""
    if high <= low:
        half = abs(low) * 0.1 or 0.5
        low, high = low - half, high + half
    rough = (high - low) / max(most - 1, 1)
    if rough < _SMALLEST:
        return [low, high]
    exponent = math.floor(math.log10(rough))
    power = 10.0**exponent
    stride = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if power * factor >= rough * 0.999)
    first, last = math.floor(low / stride + 1e-9), math.ceil(high / stride - 1e-9)
    return [round(index * stride, 12 - exponent) for index in range(first, last + 1)]


def tick_label(value: float) -> str:
    """A tick without trailing noughts: 0.002, 2.5, 1,000, 2e-5."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0').replace('-', MINUS)}e{int(exponent)}"
    return f"{value:,.6g}".replace("-", MINUS)


def smooth(points: Sequence[Point]) -> list[Point]:
    """Mean over a window around each point, a twentieth of the curve; narrower at its steep start, so that it does not lag."""
    half = max(1, len(points) // _WINDOWS // 2)
    sums = [0.0, *accumulate(y for _, y in points)]
    result: list[Point] = []
    for place, (x, _) in enumerate(points):
        before = min(half, place)
        after = min(before, len(points) - 1 - place)
        result.append((x, (sums[place + after + 1] - sums[place - before]) / (before + after + 1)))
    return result


def thin(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """At most about ``most`` points: of each stretch its lowest and its highest, so that spikes stay."""
    if len(points) <= most:
        return list(points)
    stretches = max(most // 2, 1)
    kept: list[Point] = []
    for index in range(stretches):
        part = points[index * len(points) // stretches : (index + 1) * len(points) // stretches]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return [points[0], *kept, points[-1]]


def line_chart(title: str, series: Sequence[Series], *, unit: str = "", from_zero: bool = False) -> LineChart | None:
    """Place curves on shared axes; None when there is nothing to draw.

    A few points more than four times above nearly all others would flatten the rest: they are cut at the top, and counted in ``note``.
    """
    drawn = [one for one in series if one.points]
    if not drawn:
        return None
    ys = sorted(y for one in drawn for _, y in one.points)
    top, note = ys[-1], ""
    usual = ys[min(int(0.98 * len(ys)), len(ys) - 1)]
    if usual > 0 and top > _SPIKE * usual:
        top = usual * 1.25
        above = sum(y > top for y in ys)
        note = f"{above} {'point' if above == 1 else 'points'} above the plot, up to {number(ys[-1])}"
    y_marks = ticks(min(0.0, ys[0]) if from_zero else ys[0], top)
    scale_x, x_ticks = _steps([x for one in drawn for x, _ in one.points])
    scale_y = _Scale(y_marks[0], y_marks[-1])
    return LineChart(
        title=title,
        unit=unit,
        lines=tuple(_line(one, scale_x, scale_y) for one in drawn),
        x_ticks=x_ticks,
        y_ticks=tuple(Tick(100 - scale_y.at(mark), tick_label(mark)) for mark in y_marks),
        summary=_summary(title, drawn),
        note=note,
    )


def _steps(xs: Sequence[float]) -> tuple[_Scale, tuple[Tick, ...]]:
    """The axis of steps: from 0 where the first is near it."""
    left, right = min(xs), max(xs)
    if 0 < left <= 0.05 * right:
        left = 0.0
    if left == right:
        left, right = left - 1, right + 1
    scale = _Scale(left, right)
    marks = [mark for mark in ticks(left, right, 6) if left <= mark <= right and float(mark).is_integer()]
    return scale, tuple(Tick(scale.at(mark), tick_label(mark)) for mark in marks)


def log_chart(title: str, series: Sequence[Series], *, unit: str, usual: float) -> LineChart | None:
    """Kindred curves on a logarithmic axis, coloured in their order, around the level ``usual``; None without points.

    What lies more than five decades below that level or three above it is drawn at the edge, and counted in ``note``; the
    caption names the first curve and the last.
    """
    drawn = [one for one in series if one.points]
    if not drawn:
        return None
    middle = math.log10(usual)
    lowest, highest = middle - _DECADES_BELOW, middle + _DECADES_ABOVE
    placed, beyond = [], 0
    for one in drawn:
        logs = [(x, math.log10(y) if y > 0 else -math.inf) for x, y in one.points]
        beyond += not all(lowest <= y <= highest for _, y in logs)
        placed.append([(x, min(max(y, lowest), highest)) for x, y in logs])
    ys = [y for points in placed for _, y in points]
    decades = range(math.floor(min(*ys, middle)), math.ceil(max(*ys, middle)) + 1)
    scale_x, x_ticks = _steps([x for points in placed for x, _ in points])
    scale_y = _Scale(decades[0], decades[-1] if len(decades) > 1 else decades[0] + 1)
    lines = []
    for place, (one, points) in enumerate(zip(drawn, placed, strict=True)):
        line = _line(replace(one, points=points), scale_x, scale_y)
        mix = round(100 * place / max(len(drawn) - 1, 1), 1)
        dots = tuple((x, y, _at_step(*point)) for (x, y, _), point in zip(line.dots, one.points, strict=False))
        lines.append(replace(line, last=number(one.points[-1][1]), dots=dots, mix=mix))
    ends = [one.points[-1][1] for one in drawn]
    many = "curve lies" if beyond == 1 else "curves lie"
    return LineChart(
        title=title,
        unit=unit,
        lines=tuple(lines),
        x_ticks=x_ticks,
        y_ticks=tuple(
            Tick(100 - scale_y.at(power), tick_label(10.0**power)) for power in decades[:: 1 + len(decades) // 6]
        ),
        summary=f"{title}: {len(drawn)} curves, at last from {number(min(ends))} to {number(max(ends))}; usual is about {number(usual, 1)}",
        note=f"{beyond} {many} beyond the edge" if beyond else "",
        keys=(lines[0], lines[-1]) if len(lines) > 1 else (lines[0],),
        usual=Tick(100 - scale_y.at(middle), f"usual, about {number(usual, 1)}"),
    )


def _line(series: Series, scale_x: _Scale, scale_y: _Scale) -> Line:
    placed = [(scale_x.at(x), 100 - scale_y.at(y)) for x, y in thin(series.points)]
    path = "M" + "L".join(f"{10 * x:.0f} {10 * y:.0f}" for x, y in placed) if len(placed) > 1 else ""
    dots: list[tuple[float, float, str]] = []
    if len(series.points) == 1 or (series.dots and len(series.points) <= 60):
        for x, y in series.points:
            dots.append((round(scale_x.at(x), 2), round(100 - scale_y.at(y), 2), _at_step(x, y)))
    return Line(series.name, series.css, path, number(series.points[-1][1]), tuple(dots))


def _at_step(step: float, value: float) -> str:
    return f"step {step:,.0f}: {number(value, 4)}"


def _summary(title: str, series: Sequence[Series]) -> str:
    parts = [f"{one.name} from {number(one.points[0][1])} to {number(one.points[-1][1])}" for one in series]
    return f"{title}: {'; '.join(parts)}"


@dataclass(frozen=True)
class Reading:
    """A value to be placed in a dot chart; ``low`` and ``high`` are its interval where there is one."""

    label: str
    css: str
    value: float
    low: float | None = None
    high: float | None = None
    mark: str = ""


def dot_chart(readings: Sequence[Reading], show: Callable[[float], str], *, unit: str, share: bool) -> DotChart | None:
    """Values with their intervals on one axis: from 0 to 1 for shares, else from what the values span."""
    if not readings:
        return None
    if share:
        marks = [0.0, 0.25, 0.5, 0.75, 1.0]
    else:
        marks = ticks(
            min(one.value if one.low is None else one.low for one in readings),
            max(one.value if one.high is None else one.high for one in readings),
        )
    scale = _Scale(marks[0], marks[-1])
    labels = [f"{100 * mark:.0f} %" for mark in marks] if share else [tick_label(mark) for mark in marks]
    return DotChart(
        whiskers=tuple(_whisker(one, scale, show) for one in readings),
        ticks=tuple(Tick(round(scale.at(mark), 2), label) for mark, label in zip(marks, labels, strict=True)),
        unit=unit,
    )


def _whisker(reading: Reading, scale: _Scale, show: Callable[[float], str]) -> Whisker:
    low = reading.value if reading.low is None else reading.low
    high = reading.value if reading.high is None else reading.high
    known = reading.low is not None and reading.high is not None
    return Whisker(
        label=reading.label,
        css=reading.css,
        at=round(scale.at(reading.value), 2),
        low=round(scale.at(low), 2),
        high=round(scale.at(high), 2),
        value=show(reading.value),
        interval=f"{show(low).removesuffix(' %')} to {show(high)}" if known else "",
        mark=reading.mark,
    )


def heat_map(labels: Sequence[str], confusion: Sequence[Sequence[int]], extra: Sequence[str] = ()) -> HeatMap:
    """Shade each cell by its share of the row's class.

    Args:
        labels: the classes, one for each row of ``confusion``.
        confusion: counts, ``[right class][answered class]``.
        extra: the name of a column beyond the classes, for answers that are no label; left out where it is empty.
    """
    answered = [
        name
        for place, name in enumerate(extra, len(labels))
        if any(line[place] for line in confusion if place < len(line))
    ]
    columns = (*labels, *answered)
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for place, (label, counts) in enumerate(zip(labels, confusion, strict=False)):
        total = sum(counts)
        cells = tuple(
            Cell(
                count=count,
                shade=round(count / total, 3) if total else 0.0,
                right=place == column,
                words=f"{count} of {total} {label} answered as {columns[column]}",
            )
            for column, count in enumerate(counts[: len(columns)])
        )
        rows.append((label, cells))
    return HeatMap(columns, tuple(rows))


def stacked(parts: Sequence[tuple[str, str, int]]) -> tuple[Part, ...]:
    """Parts of a whole (label, css, value), one after another; empty ones are left out of the bar."""
    total = sum(value for _, _, value in parts)
    start, result = 0.0, []
    for label, css, value in parts:
        if value > 0:
            width = 100 * value / total
            result.append(Part(label, css, value, round(start, 3), round(width, 3)))
            start += width
    return tuple(result)
