"""What a refiner's parts are worth on a data set, and how much it minds being told wrong things.

    for every seed: mixture none (the paper's naive refiner), class, centre, both ─► IoU of jittered boxes  (section 5)
                    the same at other sides of the crop                                                     (figure 9)
                    the refiner that is told both: centre wrong by up to d px, n % of classes wrong         (figure 8)

Everything is trained by `train_refiner` into a folder of its own (an interrupted ablation goes on) and judged on
the same validation boxes. Distances of the centre are in pixels of the crop, so that they mean the same for objects of
all sizes (the paper does not say which pixels it counts).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from scantling.data.coco import CocoDataset
from scantling.data.io import atomic_write
from scantling.data.samples.dataset import rng_for
from scantling.errors import DataError
from scantling.evaluate.bootstrap import draw_weights, interval
from scantling.ops.overlaps import paired_iou
from scantling.refine.apply import NOT_KNOWN, ApplyConfig, labels_for, load_refiner, refine_rows
from scantling.refine.bbrefinement import Mixture, Refiner
from scantling.refine.train import RefineConfig, RefinerRun, train_refiner
from scantling.refine.training_data import LabelledBoxes
from scantling.refine.validation import JitteredBoxes, jittered_boxes
from scantling.settings.fields import Fraction

log = logging.getLogger(__name__)

TABLE, JSON = "ablation.md", "ablation.json"
MIXTURES: tuple[Mixture, ...] = ("none", "class", "centre", "both")
_RESAMPLES = 1000


class RefineAblateConfig(BaseModel):
    """What is compared.

    Attributes:
        refine: Everything about the refiner; its `mixture` and `side` are replaced.
        mixtures: What the refiner is told; the robustness curves need `both` among them.
        sides: Further sides of the crop, for the refiner that is told both; none for no sweep.
        shifts: Largest errors of the centre in each direction, in pixels of the crop.
        wrong_classes: Shares of the boxes that are told a wrong class.
        seeds: Trainings of each refiner.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    refine: RefineConfig = RefineConfig()
    mixtures: Annotated[tuple[Mixture, ...], Field(strict=False, min_length=1)] = MIXTURES
    sides: Annotated[tuple[Annotated[int, Field(ge=32, le=1024)], ...], Field(strict=False)] = ()
    shifts: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)] = (0, 5, 10, 20, 30, 40)
    wrong_classes: Annotated[tuple[Fraction, ...], Field(strict=False)] = (0, 0.2, 0.4, 0.6, 0.8, 1)
    seeds: Annotated[int, Field(ge=1, le=100)] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationRow:
    """One comparison.

    Attributes:
        kind: `mixture`, `side`, `shift` or `wrong_classes`.
        value: Which mixture, side, distance or share.
        iou: Mean IoU with the labels, over boxes and seeds.
        interval: 95 % interval over the images.
        seeds: Mean IoU of each seed.
    """

    kind: Literal["mixture", "side", "shift", "wrong_classes"]
    value: str | float
    iou: float
    interval: tuple[float, float] | None
    seeds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineAblation:
    """What was found.

    Attributes:
        iou_before: Mean IoU of the jittered boxes.
        num_boxes: Validation boxes.
        num_images: Images they are from.
        rows: In the order of the table.
        out: Folder of the refiners and the tables.
    """

    iou_before: float
    num_boxes: int
    num_images: int
    rows: tuple[AblationRow, ...]
    out: Path

    def of(self, kind: str) -> list[AblationRow]:
        """The rows of one comparison."""
        return [row for row in self.rows if row.kind == kind]

    def to_text(self) -> str:
        """Markdown tables."""
        title = f"{self.num_boxes} boxes in {self.num_images} images, mean IoU {self.iou_before:.3f} before refining"
        parts = [title]
        for kind, heading in _HEADINGS.items():
            rows = self.of(kind)
            if rows:
                parts += [f"\n{_ROBUSTNESS}"] if kind in ("shift", "wrong_classes") else []
                parts.append(f"\n| {heading} | mean IoU | 95 % interval | by seed |\n|---|---:|---|---|")
                parts += map(_line, rows)
        return "\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "out": str(self.out)}


_ROBUSTNESS = "The labelled boxes themselves, refined by the refiner that is told both:"
_HEADINGS = {
    "mixture": "told besides the pixels",
    "side": "side of the crop, px",
    "shift": "centre wrong by up to, px of the crop",
    "wrong_classes": "share of wrong classes",
}


def ablate_refiner(
    train: CocoDataset, val: CocoDataset, config: RefineAblateConfig, run: RefinerRun
) -> RefineAblation:
    """Train and judge every variant; write `ablation.md` and `ablation.json` beside their folders.

    Args:
        train: Boxes to learn from.
        val: Boxes to judge by.
        config: What is compared.
        run: Where, and the first seed.

    Raises:
        DataError: There is no usable box.
        ScantlingError: As for `train_refiner`.
    """
    judged = jittered_boxes(LabelledBoxes(val, config.refine.model.min_side))
    if not len(judged):
        raise DataError(f"{val.file}: no box to judge the refiners by")
    base = config.refine.model.crop_side
    trained: dict[tuple[Mixture, int], list[Refiner]] = {}

    def refiners(mixture: Mixture, side: int) -> list[Refiner]:
        if (mixture, side) not in trained:
            trained[mixture, side] = list(_train(train, val, config, run, (mixture, side)))
        return trained[mixture, side]

    apply = config.refine.apply
    rows = [
        _row("mixture", m, judged, [_refined(r, judged, apply) for r in refiners(m, base)])
        for m in config.mixtures
    ]
    if config.sides:
        sides = sorted({base, *config.sides})
        rows += [
            _row("side", s, judged, [_refined(r, judged, apply) for r in refiners("both", s)]) for s in sides
        ]
    both = refiners("both", base) if "both" in config.mixtures else []
    if both:
        rows += _robustness(both, judged, config)
    found = RefineAblation(
        iou_before=float(paired_iou(judged.boxes, judged.truth).mean()),
        num_boxes=len(judged),
        num_images=len(np.unique(judged.images)),
        rows=tuple(rows),
        out=run.out,
    )
    atomic_write(run.out / TABLE, found.to_text() + "\n")
    atomic_write(run.out / JSON, json.dumps(found.to_dict(), indent=2) + "\n")
    return found


def _train(
    train: CocoDataset,
    val: CocoDataset,
    config: RefineAblateConfig,
    run: RefinerRun,
    variant: tuple[Mixture, int],
) -> Iterator[Refiner]:
    """The refiner of one variant for every seed; what is trained already is not trained again."""
    mixture, side = variant
    model = config.refine.model.model_copy(update={"mixture": mixture, "side": side})
    for seed in range(run.seed, run.seed + config.seeds):
        name = f"{mixture}-{side}-{seed}"
        log.info("%s: told %s, crops of %d px, seed %d", run.out / name, mixture, side, seed)
        here = replace(run, out=run.out / name, seed=seed)
        result = train_refiner(train, val, config.refine.model_copy(update={"model": model}), here)
        yield load_refiner(result.best, run.device)


def _refined(refiner: Refiner, judged: JitteredBoxes, config: ApplyConfig) -> NDArray[np.float64]:
    """IoU (N,) of every judged box after refining."""
    return _told(
        refiner, judged, judged.boxes, config, labels_for(refiner, judged.dataset)[judged.labels], None
    )


def _told(
    refiner: Refiner,
    judged: JitteredBoxes,
    boxes: NDArray[np.float64],
    config: ApplyConfig,
    labels: NDArray[np.int64],
    shifts: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """IoU (N,) of boxes refined with these labels and errors of the centres; unknown categories as they are."""
    rows = np.flatnonzero(labels != NOT_KNOWN)
    refined = boxes.copy()
    refined[rows] = refine_rows(
        judged.dataset,
        judged.images[rows],
        labels[rows],
        boxes[rows],
        refiner,
        config,
        shifts=None if shifts is None else shifts[rows],
    )
    return paired_iou(refined, judged.truth)


def _robustness(
    refiners: Sequence[Refiner], judged: JitteredBoxes, config: RefineAblateConfig
) -> list[AblationRow]:
    """The labelled boxes themselves, refined while the refiner is told something wrong (figure 8)."""
    apply, side = config.refine.apply, config.refine.model.crop_side
    rng = rng_for(0, 0, "refine ablate", "wrong")
    directions = rng.uniform(-1, 1, (len(judged), 2))
    order, offsets = rng.random(len(judged)), rng.random(len(judged))

    def moved(refiner: Refiner, pixels: float) -> NDArray[np.float64]:
        labels = labels_for(refiner, judged.dataset)[judged.labels]
        return _told(refiner, judged, judged.truth, apply, labels, directions * pixels / side)

    def mistaken(refiner: Refiner, share: float) -> NDArray[np.float64]:
        labels = wrong_labels(
            labels_for(refiner, judged.dataset)[judged.labels],
            order < share,
            offsets,
            len(refiner.class_names),
        )
        return _told(refiner, judged, judged.truth, apply, labels, None)

    curves: tuple[
        tuple[
            Literal["shift", "wrong_classes"],
            tuple[float, ...],
            Callable[[Refiner, float], NDArray[np.float64]],
        ],
        ...,
    ] = (("shift", config.shifts, moved), ("wrong_classes", config.wrong_classes, mistaken))
    return [
        _row(kind, value, judged, [measure(refiner, value) for refiner in refiners])
        for kind, values, measure in curves
        for value in values
    ]


def wrong_labels(
    labels: NDArray[np.int64], chosen: NDArray[np.bool_], offsets: NDArray[np.float64], num_classes: int
) -> NDArray[np.int64]:
    """Labels (N,) of which the chosen ones are another class, drawn by `offsets` (N,) in 0..1; unknown ones stay."""
    if num_classes < 2:
        return labels
    others = (labels + 1 + (offsets * (num_classes - 1)).astype(np.int64)) % num_classes
    return np.where(chosen & (labels != NOT_KNOWN), others, labels)


def _row(
    kind: Literal["mixture", "side", "shift", "wrong_classes"],
    value: str | float,
    judged: JitteredBoxes,
    overlaps_by_seed: Sequence[NDArray[np.float64]],
) -> AblationRow:
    iou = np.mean(overlaps_by_seed, axis=0)
    length = len(judged.dataset)
    weights = draw_weights(length, _RESAMPLES)
    sums = np.bincount(judged.images, weights=iou, minlength=length) @ weights
    counts = np.bincount(judged.images, minlength=length) @ weights
    mean = float(iou.mean())
    return AblationRow(
        kind=kind,
        value=value,
        iou=mean,
        interval=interval(mean, np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)),
        seeds=tuple(float(each.mean()) for each in overlaps_by_seed),
    )


def _line(row: AblationRow) -> str:
    spread = "" if row.interval is None else f"{row.interval[0]:.3f} to {row.interval[1]:.3f}"
    seeds = ", ".join(f"{value:.3f}" for value in row.seeds)
    return f"| {row.value} | {row.iou:.3f} | {spread} | {seeds} |"


def curves_of(found: RefineAblation) -> Mapping[str, list[tuple[float, float]]]:
    """What can be drawn: for each comparison over numbers its points (value, IoU), in order."""
    drawn = {kind: [row for row in found.of(kind) if not isinstance(row.value, str)] for kind in _HEADINGS}
    return {
        _HEADINGS[kind]: [(float(row.value), row.iou) for row in rows] for kind, rows in drawn.items() if rows
    }
