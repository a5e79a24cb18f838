"""Geometry of the page's charts; the templates turn it into SVG, so that every text is escaped there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scantling.evaluate.calibration import Calibration, ReliabilityBin
from scantling.report.content import Series, SizeHistogram

MAX_POINTS = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotArea:
    """Outer size and plot area of a chart, in SVG user units."""

    width: float = 560.0
    height: float = 280.0
    left: float = 52.0
    top: float = 14.0
    right: float = 546.0
    bottom: float = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A drawn series: SVG path, screen positions and values of its points."""

    name: str
    path: str
    positions: tuple[tuple[float, float], ...]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """Lines over two axes, with marked places on the x axis."""

    title: str
    x_label: str
    frame: PlotArea
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    marks: tuple[Tick, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of a histogram; `height` may be 0."""

    x: float
    y: float
    width: float
    height: float
    label: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """Bars over two axes, with marked places on the x axis and, as an SVG path, a line from corner to corner."""

    frame: PlotArea
    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Tick, ...] = ()
    diagonal: str = ""


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "step",
    x_max: float | None = None,
    y_max: float | None = None,
    marks: Mapping[str, float] | None = None,
) -> LineChart | None:
    """Lay out lines over training steps or anything else; both axes start at 0.

    Args:
        title: What is shown.
        series: Lines; long ones are thinned to means of neighbouring points.
        x_label: What the x axis is.
        x_max: End of the x axis; None fits the data.
        y_max: Top of the y axis; None fits the data.
        marks: Marked places on the x axis by label.

    Returns:
        None if no series has a point.
    """
    thinned = [Series(name=s.name, points=thin(s.points)) for s in series if s.points]
    if not thinned:
        return None
    x_end = x_max if x_max is not None else max(x for s in thinned for x, _ in s.points)
    ys = [y for s in thinned for _, y in s.points]
    frame = PlotArea()
    y_values = nice_ticks(min(0.0, *ys), y_max if y_max is not None else max(ys), 5)
    x_scale = _Scale(0.0, x_end, frame.left, frame.right)
    y_scale = _Scale(y_values[0], y_values[-1], frame.bottom, frame.top)
    return LineChart(
        title=title,
        x_label=x_label,
        frame=frame,
        x_ticks=tuple(Tick(at=x_scale(x), label=_number(x)) for x in nice_ticks(0.0, x_end, 6) if x <= x_end),
        y_ticks=tuple(Tick(at=y_scale(y), label=_number(y)) for y in y_values),
        lines=tuple(_line(s, x_scale, y_scale) for s in thinned),
        marks=tuple(Tick(at=x_scale(x), label=label) for label, x in (marks or {}).items()),
    )


def size_chart(histogram: SizeHistogram) -> BarChart | None:
    """Lay out a box-size histogram with COCO's borders between small, medium and large marked.

    Returns:
        None for a histogram without objects.
    """
    if not sum(histogram.counts):
        return None
    frame = PlotArea(height=240.0, bottom=200.0)
    logs = [math.log2(edge) for edge in histogram.edges]
    x_scale = _Scale(logs[0], logs[-1], frame.left, frame.right)
    y_values = nice_ticks(0, max(histogram.counts), 4)
    y_scale = _Scale(y_values[0], y_values[-1], frame.bottom, frame.top)
    bars = [
        Bar(
            x=x_scale(low) + 1,
            y=y_scale(count),
            width=max(x_scale(high) - x_scale(low) - 2, 1),
            height=frame.bottom - y_scale(count),
            label=f"{2**low:.0f} to {2**high:.0f} px",
            value=count,
        )
        for low, high, count in zip(logs, logs[1:], histogram.counts, strict=False)
    ]
    powers = [power for power in range(math.ceil(logs[0]), math.floor(logs[-1]) + 1)]
    borders = [(32, "small | medium"), (96, "medium | large")]
    return BarChart(
        frame=frame,
        bars=tuple(bars),
        x_ticks=tuple(Tick(at=x_scale(power), label=str(2**power)) for power in powers),
        y_ticks=tuple(Tick(at=y_scale(y), label=_number(y)) for y in y_values),
        marks=tuple(
            Tick(at=x_scale(math.log2(size)), label=name)
            for size, name in borders
            if histogram.edges[0] < size < histogram.edges[-1]
        ),
    )


def reliability_chart(calibration: Calibration) -> BarChart | None:
    """Lay out the share of right predictions by score.

    Returns:
        None without predictions.
    """
    if not calibration.num_predictions:
        return None
    frame = PlotArea()
    x_scale = _Scale(0.0, 1.0, frame.left, frame.right)
    y_scale = _Scale(0.0, 1.0, frame.bottom, frame.top)
    ticks = nice_ticks(0.0, 1.0, 5)
    return BarChart(
        frame=frame,
        bars=tuple(_reliability_bar(part, x_scale, y_scale) for part in calibration.bins if part.count),
        x_ticks=tuple(Tick(at=x_scale(x), label=_number(x)) for x in ticks),
        y_ticks=tuple(Tick(at=y_scale(y), label=_number(y)) for y in ticks),
        diagonal=f"M{x_scale(0):g} {y_scale(0):g}L{x_scale(1):g} {y_scale(1):g}",
    )


def _reliability_bar(part: ReliabilityBin, x_scale: _Scale, y_scale: _Scale) -> Bar:
    share = part.share_right or 0.0
    top = y_scale(share)
    return Bar(
        x=x_scale(part.low) + 1,
        y=top,
        width=x_scale(part.high) - x_scale(part.low) - 2,
        height=y_scale(0) - top,
        label=f"score {part.low:.1f} to {part.high:.1f}: {share:.0%} of {part.count:,} right",
        value=part.count,
    )


def thin(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> tuple[tuple[float, float], ...]:
    """At most `limit` points: means of equally many neighbours each; short series stay as they are."""
    if len(points) <= limit:
        return tuple(points)
    edges = [round(index * len(points) / limit) for index in range(limit + 1)]
    groups = [points[start:end] for start, end in zip(edges, edges[1:], strict=False)]
    return tuple((_mean([x for x, _ in group]), _mean([y for _, y in group])) for group in groups)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from at most `low` to at least `high`; the steps are 1, 2 or 5 times 10^n."""
    if high <= low:
        high = low + 1.0
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def _line(series: Series, x_scale: _Scale, y_scale: _Scale) -> Line:
    positions = tuple((x_scale(x), max(y_scale(y), y_scale(y_scale.high))) for x, y in series.points)
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in positions)
    return Line(name=series.name, path=path, positions=positions, points=series.points)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value / 1000:g}k"
    return f"{round(value, 6):g}"
