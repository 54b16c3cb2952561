"""Pictures of named points."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from tunesmith.reports.scatter import Axes, Spot, scatter

AXES = Axes("title <&>", "parameters", "accuracy")
_NAMESPACE = "{http://www.w3.org/2000/svg}"


def _drawn(spots: list[Spot], axes: Axes = AXES) -> ET.Element:
    return ET.fromstring(scatter(spots, axes))


def _dots(root: ET.Element) -> list[tuple[float, float]]:
    return [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in root.iter(f"{_NAMESPACE}circle")]


def test_places_are_logarithmic_across_and_linear_up() -> None:
    spots = [Spot(f"{x:g}", x, y, y - 0.05, y + 0.05) for x, y in ((10, 0.2), (100, 0.4), (1000, 0.6))]
    (a, b, c) = _dots(_drawn(spots))
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.2)
    assert a[1] > b[1]


def test_a_whisker_holds_its_point() -> None:
    root = _drawn([Spot("a", 10, 0.5, 0.4, 0.7), Spot("b", 20, 0.6, 0.6, 0.6)])
    whiskers = [line for line in root.iter(f"{_NAMESPACE}line") if line.attrib.get("class") == "whisk"]
    assert [float(whiskers[0].attrib["y2"]) < y < float(whiskers[0].attrib["y1"]) for _, y in _dots(root)[:1]] == [True]
    assert whiskers[1].attrib["y1"] == whiskers[1].attrib["y2"]


def test_names_of_crowded_points_do_not_cover_each_other() -> None:
    spots = [Spot(f"strategy-{n}", 100 + n, 0.5 + n / 1000, 0.45, 0.55) for n in range(8)]
    root = _drawn([*spots, Spot("far", 1e6, 0.9, 0.85, 0.95)])
    names = {spot.name for spot in spots}
    boxes = [
        (float(text.attrib["x"]), float(text.attrib["y"]), 6.6 * len(text.text or ""))
        for text in root.iter(f"{_NAMESPACE}text")
        if text.text in names
    ]
    assert len(boxes) == len(spots)
    for index, (x, y, width) in enumerate(boxes):
        for a, b, other in boxes[:index]:
            assert x + width <= a + 0.2 or a + other <= x + 0.2 or abs(y - b) >= 13.8


def test_one_point_and_equal_heights_are_drawn() -> None:
    assert len(_dots(_drawn([Spot("only", 5, 0.5, 0.5, 0.5, marked=True)]))) == 1


def test_words_are_escaped_and_values_shown_plainly() -> None:
    text = scatter([Spot("a<b", 5, 2.0, 1.0, 3.0)], Axes("t", "x", "loss", percent=False))
    assert "a&lt;b" in text
    assert " %" not in text


@pytest.mark.parametrize("x", [0.0, -1.0])
def test_places_that_have_no_logarithm_are_refused(x: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        scatter([Spot("a", x, 0.5, 0.4, 0.6)], AXES)
    with pytest.raises(ValueError, match="needs points"):
        scatter([], AXES)


def test_the_marked_point_is_drawn_over_the_others() -> None:
    text = scatter([Spot("first", 5, 0.5, 0.5, 0.5, marked=True), Spot("second", 5, 0.5, 0.5, 0.5)], AXES)
    assert text.index('class="marked"') > text.index(">second<")
