"""Plots of a refiner's ablation, as PNG and SVG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scantling.data.io import replacing
from scantling.refine.ablate import RefineAblation, curves_of
from scantling.report.palette import PALETTE, hex_of

NAME = "curves"


def write_curves(found: RefineAblation) -> list[Path]:
    """Draw mean IoU over the side of the crop, the error of the centre and the share of wrong classes.

    Args:
        found: Curves without points are left out.

    Returns:
        The files in its folder: `curves.png` and `curves.svg`; none if there is no curve.
    """
    curves = curves_of(found)
    if not curves:
        return []
    figure = Figure(figsize=(4.2 * len(curves), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, points), colour in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), PALETTE, strict=False
    ):
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, marker="o", color=hex_of(colour))
        axes.set(xlabel=title, ylabel="mean IoU with the labels", ylim=(min(0.5, *ys), 1))
        axes.grid(alpha=0.3)
    paths = [found.out / f"{NAME}.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=120)
    return paths
