"""Geometry of the charts."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tunesmith.reports import figures
from tunesmith.reports.figures import Reading, Series
from tunesmith.reports.framing import shared_frame


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 3.2), (-4, 9), (1e-6, 2.5e-3), (3980, 4150), (5, 5), (0, 0)])
def test_ticks_are_even_and_cover_the_values(low, high):
    marks = figures.ticks(low, high)
    strides = [after - before for before, after in pairwise(marks)]
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 2 <= len(marks) <= 7
    assert max(strides) == pytest.approx(min(strides))


def test_smoothing_keeps_a_straight_line_and_does_not_lag():
    line = [(float(x), 3.0 - 0.1 * x) for x in range(40)]
    smoothed = figures.smooth(line)
    assert [y for _, y in smoothed[:-1]] == pytest.approx([y for _, y in line[:-1]])
    assert [x for x, _ in smoothed] == [x for x, _ in line]


def test_thinning_keeps_ends_order_and_spikes():
    points = [(float(x), 1.0) for x in range(5000)]
    points[2718] = (2718.0, 99.0)
    thinned = figures.thin(points)
    assert len(thinned) <= 402
    assert thinned[0] == points[0]
    assert thinned[-1] == points[-1]
    assert (2718.0, 99.0) in thinned
    assert [x for x, _ in thinned] == sorted(x for x, _ in thinned)


def test_a_far_spike_is_cut_and_said():
    chart = figures.line_chart(
        "Loss", [Series("raw", "raw", [(float(x), 500.0 if x == 50 else 1.0) for x in range(100)])]
    )
    assert chart is not None
    assert chart.note == "1 point above the plot, up to 500"
    assert max(float(tick.label) for tick in chart.y_ticks) < 5


def test_a_curve_runs_from_corner_to_corner():
    chart = figures.line_chart("Loss", [Series("raw", "raw", [(0.0, 4.0), (10.0, 0.0)])])
    assert chart is not None
    assert chart.lines[0].path == "M0 0L1000 1000"
    assert figures.line_chart("Loss", [Series("raw", "raw", [])]) is None


def test_one_point_is_a_dot():
    chart = figures.line_chart("Loss", [Series("raw", "raw", [(1.0, 2.0)])])
    assert chart is not None
    assert chart.lines[0].path == ""
    assert len(chart.lines[0].dots) == 1


def test_shares_stand_where_they_belong():
    chart = figures.dot_chart(
        [Reading("tuned", "tuned", 0.75, 0.5, 1.0)], lambda v: f"{100 * v:.0f} %", unit="", share=True
    )
    assert chart is not None
    (one,) = chart.whiskers
    assert (one.low, one.at, one.high) == (50.0, 75.0, 100.0)
    assert one.interval == "50 to 100 %"


def test_a_reading_without_interval_has_no_whisker():
    chart = figures.dot_chart([Reading("a", "base", 3.0), Reading("b", "tuned", 1.0)], str, unit="", share=False)
    assert chart is not None
    assert [one.interval for one in chart.whiskers] == ["", ""]
    assert chart.whiskers[0].at > chart.whiskers[1].at


def test_the_matrix_is_shaded_by_row_and_drops_an_empty_last_column():
    heat = figures.heat_map(["a", "b"], [[3, 1, 0], [0, 2, 0]], ["(other)"])
    assert heat.columns == ("a", "b")
    label, cells = heat.rows[0]
    assert (label, [cell.shade for cell in cells], [cell.right for cell in cells]) == ("a", [0.75, 0.25], [True, False])
    assert figures.heat_map(["a"], [[1, 1]], ["(other)"]).columns == ("a", "(other)")


def test_parts_fill_the_bar():
    parts = figures.stacked([("trained", "tuned", 3), ("test", "test", 1), ("rejected", "worse", 0)])
    assert [(part.label, part.start, part.width) for part in parts] == [("trained", 0.0, 75.0), ("test", 75.0, 25.0)]
    assert figures.stacked([("trained", "tuned", 0)]) == ()


def test_the_template_is_the_frame_and_no_word_of_a_prompt_is():
    prompts = [
        f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in ("The cup broke", "The cap broke")
    ]
    frame = shared_frame(prompts)
    assert frame.before == "<|im_start|>user\n"
    assert frame.after == "<|im_end|>\n<|im_start|>assistant\n"
    assert [frame.strip(prompt) for prompt in prompts] == ["The cup broke", "The cap broke"]
    assert frame.strip("another") == "another"


@pytest.mark.parametrize("prompts", [[], ["<a>one</a>"], ["plain text", "plainer text"]])
def test_no_frame_where_nothing_looks_like_a_template(prompts):
    assert not shared_frame(prompts)


def test_decades_are_even_and_the_usual_level_is_marked():
    series = [Series(f"layers.{k}", "layer", [(10.0, 10.0 ** (k - 4)), (20.0, 1e-3)], dots=True) for k in range(3)]
    chart = figures.log_chart("Ratio", series, unit="", usual=1e-3)
    assert chart is not None
    assert [(tick.label, round(tick.at)) for tick in chart.y_ticks] == [("1e-4", 100), ("0.001", 50), ("0.01", 0)]
    assert chart.usual is not None
    assert (round(chart.usual.at), chart.usual.label) == (50, "usual, about 0.001")
    assert [line.path for line in chart.lines] == ["M0 1000L1000 500", "M0 500L1000 500", "M0 0L1000 500"]
    assert [line.mix for line in chart.lines] == [0.0, 50.0, 100.0]
    assert [line.name for line in chart.keys or ()] == ["layers.0", "layers.2"]
    assert [words for _, _, words in chart.lines[0].dots] == ["step 10: 0.0001000", "step 20: 0.001000"]
    assert figures.log_chart("Ratio", [], unit="", usual=1e-3) is None


def test_a_layer_that_stands_still_lies_at_the_edge_and_is_counted():
    still, wild = Series("a", "layer", [(1.0, 0.0), (2.0, 0.0)]), Series("b", "layer", [(1.0, 2e-3), (2.0, 1e37)])
    chart = figures.log_chart("Ratio", [still, wild], unit="", usual=1e-3)
    assert chart is not None
    assert chart.note == "2 curves lie beyond the edge"
    assert [(tick.label, round(tick.at)) for tick in (chart.y_ticks[0], chart.y_ticks[-1])] == [("1e-8", 100), ("1", 0)]
    assert (chart.lines[0].path, chart.lines[0].last) == ("M0 1000L1000 1000", "0")
    assert chart.lines[1].last == "1.00e37"
