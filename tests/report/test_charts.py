"""Chart geometry: round ticks that enclose the data, lines where the axes say, histograms that lose nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scantling.report.charts import line_chart, nice_ticks, size_chart, thin
from scantling.report.content import Series, SizeHistogram
from scantling.report.dataset_facts import histogram


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 3.7, [0, 1, 2, 3, 4]),
        (0, 430, [0, 100, 200, 300, 400, 500]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_nice_ticks(low, high, expected):
    assert nice_ticks(low, high, 5) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_enclose_the_data(low, span, count):
    ticks = nice_ticks(low, low + span, count)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= low + span - 1e-6 * step
    assert len(ticks) <= count + 3


def test_a_line_lies_where_its_axes_say():
    chart = line_chart("t", [Series(name="a", points=((0, 0), (50, 2), (100, 4)))], x_max=100)
    (line,) = chart.lines
    frame = chart.frame
    middle = ((frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2)
    assert line.positions == (
        (frame.left, frame.bottom),
        pytest.approx(middle, abs=0.06),
        (frame.right, frame.top),
    )
    assert line.path == "M" + "L".join(f"{x:g} {y:g}" for x, y in line.positions)
    assert [tick.label for tick in chart.y_ticks] == ["0", "1", "2", "3", "4"]
    assert [tick.label for tick in chart.x_ticks] == ["0", "20", "40", "60", "80", "100"]


def test_one_point_and_none():
    assert line_chart("t", [Series(name="a", points=())]) is None
    chart = line_chart("t", [Series(name="a", points=((7, 0.5),))])
    assert all(math.isfinite(value) for value in chart.lines[0].positions[0])


def test_values_above_the_axis_stay_inside_the_frame():
    chart = line_chart("t", [Series(name="a", points=((0, 9.0), (1, 0.5)))], y_max=1.0)
    assert chart.lines[0].positions[0][1] == chart.frame.top


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=900))
def test_thinning_keeps_the_mean_of_what_it_joins(values):
    points = [(float(step), value) for step, value in enumerate(values)]
    thinned = thin(points, 100)
    assert len(thinned) == min(len(points), 100)
    steps = [step for step, _ in thinned]
    assert steps == sorted(steps)
    if len(values) % 100 == 0:
        assert sum(y for _, y in thinned) / len(thinned) == pytest.approx(sum(values) / len(values), abs=1e-9)


@given(st.lists(st.floats(0.3, 5000), max_size=60))
def test_the_histogram_counts_every_size(sizes):
    counted = histogram(sizes)
    assert sum(counted.counts) == len(sizes)
    assert len(counted.edges) == len(counted.counts) + 1
    for low, high, count in zip(counted.edges, counted.edges[1:], counted.counts, strict=False):
        assert count == sum(low * (1 + 1e-12) <= size < high * (1 - 1e-12) for size in sizes) + sum(
            math.isclose(size, low, rel_tol=1e-12) for size in sizes
        )


def test_the_size_chart_marks_the_borders_it_spans():
    chart = size_chart(SizeHistogram(edges=(16.0, 32.0, 64.0), counts=(1, 4)))
    assert [bar.value for bar in chart.bars] == [1, 4]
    assert chart.bars[1].height == pytest.approx(4 * chart.bars[0].height, abs=0.2)
    assert (
        size_chart(SizeHistogram(edges=(16.0, 64.0, 256.0), counts=(1, 4))).marks[0].label == "small | medium"
    )
    assert [mark.label for mark in chart.marks] == ["small | medium"]
    assert size_chart(SizeHistogram(edges=(1.0, 2.0), counts=(0,))) is None
