"""A picture of named points with intervals over a logarithmic axis, as one SVG that stands alone or in a page.

Names are put beside their points where they cover no other name, point or whisker; where no place is free a line leads to one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tunesmith.reports.figures import tick_label, ticks

_WIDE, _HIGH = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 40, 52
_LETTER, _LINE = 6.6, 14
_DOT = 5
_STYLE = """
  .chart { font: 12px system-ui, "Liberation Sans", sans-serif; background: #fcfcfa }
  .chart text { fill: #1c1d1f } .chart .soft { fill: #5f6267 } .chart .title { font-size: 14px; font-weight: 600 }
  .chart .grid { stroke: #e1e0da } .chart .whisk { stroke: #1f5fbf; stroke-width: 2; opacity: .45 }
  .chart .dot { fill: #1f5fbf } .chart .marked .dot { fill: #b9541a } .chart .marked .whisk { stroke: #b9541a }
  .chart .lead { stroke: #98958e; stroke-width: .8 }
"""


@dataclass(frozen=True)
class Spot:
    """A point: its name, place, the interval of its height, and whether it is the one the others are held against."""

    name: str
    x: float
    y: float
    low: float
    high: float
    marked: bool = False


@dataclass(frozen=True)
class Axes:
    """What the picture and its axes say; ``percent`` shows heights as percent of 1."""

    title: str
    x: str
    y: str
    percent: bool = True


Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Plane:
    """Where values lie in the picture."""

    left: float
    right: float
    marks: Sequence[float]

    def across(self, log: float) -> float:
        return _LEFT + (log - self.left) / (self.right - self.left) * (_WIDE - _LEFT - _RIGHT)

    def up(self, value: float) -> float:
        share = (value - self.marks[0]) / (self.marks[-1] - self.marks[0])
        return _HIGH - _BOTTOM - share * (_HIGH - _TOP - _BOTTOM)


def scatter(spots: Sequence[Spot], axes: Axes) -> str:
    """Draw points over a logarithmic horizontal axis.

    Raises:
        ValueError: no points, or a place on the horizontal axis that is not above 0.
    """
    if not spots or any(spot.x <= 0 for spot in spots):
        raise ValueError("a logarithmic axis needs points, and places above 0")
    logs = [math.log10(spot.x) for spot in spots]
    room = 0.06 * (max(logs) - min(logs)) or 0.5
    marks = ticks(min(spot.low for spot in spots), max(spot.high for spot in spots), 6)
    plane = _Plane(min(logs) - room, max(logs) + room, marks)
    places = [(plane.across(log), plane.up(spot.y)) for log, spot in zip(logs, spots, strict=True)]
    whiskers = [(plane.up(spot.low), plane.up(spot.high)) for spot in spots]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {_WIDE} {_HIGH}" role="img" '
        f'aria-label="{escape(axes.title)}"><style>{_STYLE}</style>',
        f'<text class="title" x="{_LEFT}" y="20">{escape(axes.title)}</text>',
        *_grid(axes, plane),
    ]
    names = _beside(spots, places, whiskers)
    drawn = zip(spots, places, whiskers, names, strict=True)
    for spot, (x, y), (low, high), name in sorted(drawn, key=lambda item: item[0].marked):
        css = ' class="marked"' if spot.marked else ""
        parts.append(
            f'<g{css}><line class="whisk" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{_DOT}"/>{name}</g>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _grid(axes: Axes, plane: _Plane) -> list[str]:
    parts = []
    for mark in plane.marks:
        y = plane.up(mark)
        label = f"{100 * mark:.4g} %" if axes.percent else tick_label(mark)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDE - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="soft" text-anchor="end" x="{_LEFT - 8}" y="{y + 4:.1f}">{label}</text>')
    for log in _decades(plane.left, plane.right):
        x, label = plane.across(log), tick_label(float(f"{10**log:.3g}"))
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HIGH - _BOTTOM}"/>')
        parts.append(f'<text class="soft" text-anchor="middle" x="{x:.1f}" y="{_HIGH - _BOTTOM + 18}">{label}</text>')
    middle = (_LEFT + _WIDE - _RIGHT) / 2
    turned = f'transform="translate(14 {_HIGH / 2}) rotate(-90)"'
    parts.append(f'<text class="soft" text-anchor="middle" x="{middle}" y="{_HIGH - 10}">{escape(axes.x)}</text>')
    parts.append(f'<text class="soft" text-anchor="middle" {turned}>{escape(axes.y)}</text>')
    return parts


def _decades(left: float, right: float) -> list[float]:
    """Places of ticks: whole decades, with 2 and 5 between them where there are fewer than three."""
    steps = (0.0,) if right - left > 2 else (0.0, math.log10(2), math.log10(5))
    found = [power + step for power in range(math.floor(left), math.ceil(right) + 1) for step in steps]
    return [log for log in found if left <= log <= right]


def _beside(
    spots: Sequence[Spot], places: Sequence[tuple[float, float]], whiskers: Sequence[tuple[float, float]]
) -> list[str]:
    """The name of each point, the crowded ones last, with a line where it had to move away."""
    taken: list[Box] = [(x - _DOT, y - _DOT, x + _DOT, y + _DOT) for x, y in places]
    taken += [(x - 1.5, high, x + 1.5, low) for (x, _), (low, high) in zip(places, whiskers, strict=True)]
    names = [""] * len(spots)
    for index in sorted(range(len(spots)), key=lambda i: (_neighbours(places, i), i)):
        x, y = places[index]
        width = _LETTER * len(spots[index].name)
        box, far = min(
            ((box, far) for box, far in _boxes(x, y, width)), key=lambda found: (_covered(found[0], taken), found[1])
        )
        taken.append(box)
        end = min(max(x, box[0]), box[2])
        line = f'<line class="lead" x1="{x:.1f}" y1="{y:.1f}" x2="{end:.1f}" y2="{box[1] + _LINE / 2:.1f}"/>'
        text = f'<text x="{box[0]:.1f}" y="{box[3] - 3:.1f}">{escape(spots[index].name)}</text>'
        names[index] = (line if far > 1 else "") + text
    return names


def _neighbours(places: Sequence[tuple[float, float]], index: int) -> int:
    x, y = places[index]
    return sum(abs(x - a) < 90 and abs(y - b) < 40 for a, b in places) - 1


def _boxes(x: float, y: float, width: float) -> list[tuple[Box, float]]:
    """Places for a name of this width, nearest first: right, left, and further and further off above and below."""
    found = []
    for far in (1, 2, 3, 4, 5):
        for shift in (0, -0.55, 0.55, -1.1, 1.1, -2, 2):
            top = y - _LINE / 2 + shift * _LINE * far
            gap = _DOT + 4 * far
            found += [
                ((start, top, start + width, top + _LINE), far + abs(shift) / 10)
                for start in (x + gap, x - gap - width)
            ]
    return found


def _covered(box: Box, taken: Sequence[Box]) -> float:
    """Area that a box shares with those taken, or lies outside the picture."""
    outside = (
        max(0.0, _LEFT - box[0])
        + max(0.0, box[2] - _WIDE + 4)
        + max(0.0, _TOP - box[1])
        + max(0.0, box[3] - _HIGH + _BOTTOM)
    )
    shared = sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in taken
    )
    return round(shared + 1_000 * outside, 3)
