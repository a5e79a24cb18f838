"""What a report says, as plain ready facts; the page only lays them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from scantling.errors import Finding
from scantling.evaluate.breakdown import OperatingPoint
from scantling.evaluate.calibration import Calibration
from scantling.evaluate.coco_eval import Evaluation
from scantling.evaluate.confusion import Confusion
from scantling.refine.gate import RefineGate


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """One row of the stage table: what a member, or a later stage, reached.

    Attributes:
        name: Stage as the user knows it (`cascade`, `ensemble`).
        evaluations: One per kind of overlap, what the run is judged by last.
    """

    name: str
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGain:
    """What one step of a run gave.

    Attributes:
        name: Of the step.
        metrics: AP, AP50, AP75, APs, APm, APl, AR; None where undefined.
        interval: 95 % interval of AP.
        base: Step it is compared with, or None.
        difference: AP minus the base's.
        difference_interval: Its paired 95 % interval.
    """

    name: str
    metrics: Mapping[str, float | None]
    interval: tuple[float, float] | None = None
    base: str | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A named line; points are (x, y), x increasing, y finite."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberCurves:
    """How one member learned: its losses and its validation metrics over the steps."""

    name: str
    losses: tuple[Series, ...]
    metrics: tuple[Series, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """One object drawn over a picture, in the picture's pixels.

    Attributes:
        role: `truth`, `crowd`, `missed`, `prediction` or `false`; decides the colour and the line.
        box_xywh: Left, top, width and height.
        caption: Category, for predictions with score.
        label_at: Left and baseline of the caption; the caption is always shown if `is_subject`.
        is_subject: Whether the picture is about this object.
        score: Of a prediction; None for a truth.
        is_accepted: Whether a prediction reaches its category's suggested threshold; true for a truth.
        mask: SVG path of the mask, or None.
    """

    role: str
    box_xywh: tuple[float, float, float, float]
    caption: str
    label_at: tuple[float, float]
    is_subject: bool = False
    score: float | None = None
    is_accepted: bool = True
    mask: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image, or a part of one, with what is drawn on it.

    Attributes:
        jpeg: Encoded pixels; None if the image could not be opened.
        size_wh: Width and height of the frame of the overlays, in original pixels.
        font_size: Of the captions, in the same pixels.
        overlays: Drawn in this order.
    """

    jpeg: bytes | None
    size_wh: tuple[int, int]
    font_size: float
    overlays: tuple[Overlay, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryItem:
    """A picture with what to say about it."""

    picture: Picture
    title: str
    note: str
    file_name: str
    class_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Pictures of one kind, the worst first; `total` counts also those not shown."""

    key: str
    title: str
    explanation: str
    total: int
    items: tuple[GalleryItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreFacts:
    """What scores are worth, at IoU 0.5.

    Attributes:
        precision_recall: Interpolated precision over recall: of all categories, then of the most frequent.
        f1: F1 over the score threshold, of the same.
        num_hidden: Categories with objects that have no curve.
        threshold: Common threshold with the highest F1; None if nothing is found at any.
        best_f1: That F1.
        confusion: At each category's own threshold.
        calibration: Of all predictions.
    """

    precision_recall: tuple[Series, ...]
    f1: tuple[Series, ...]
    num_hidden: int
    threshold: float | None
    best_f1: float | None
    confusion: Confusion
    calibration: Calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFacts:
    """Counts of one split; `per_category` in the order of the names.

    Crowd regions and ignored objects count only in `num_crowd`.
    """

    name: str
    num_images: int
    num_objects: int
    num_crowd: int
    num_empty_images: int
    per_category: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeHistogram:
    """Number of objects by box size (square root of the area, in pixels); bin i is edges[i] to edges[i + 1]."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What the data set is: splits, categories, sizes, and what was found wrong with it."""

    class_names: tuple[str, ...]
    splits: tuple[SplitFacts, ...]
    sizes: SizeHistogram
    findings: tuple[Finding, ...]
    samples: tuple[GalleryItem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedMasks:
    """What fusion with score maps did to the masks of a category.

    Attributes:
        category: Name.
        detections: Predictions of it.
        fused: Those that scored high enough.
        changed: Of these, with another mask than before.
        gained: Pixels that were in none of their masks before.
        lost: Pixels that are not any more.
    """

    category: str
    detections: int
    fused: int
    changed: int
    gained: int
    lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedPair:
    """How often a prediction of one category gave way to one of another.

    Attributes:
        weaker: Category of the removed predictions.
        stronger: Category of those that stayed.
        reason: `overlap`, `inside`, `around` or `surplus`.
        count: Of removals.
    """

    weaker: str
    stronger: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalFacts:
    """What the elimination of contradictions removed from `num_results` predictions, the most frequent pair first."""

    num_results: int
    num_removed: int
    pairs: tuple[RemovedPair, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RefinementFacts:
    """What a run's refiner did to its detections.

    Attributes:
        gate: Where it may; None if it may everywhere.
        counts: Boxes by what happened to them (`refined`, `gated`, `too_small`, ...).
    """

    gate: RefineGate | None
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFacts:
    """What the audit of a run's training labels found.

    Attributes:
        num_labels: Labels that were looked at.
        counts: Suspects by reason.
        page: Where they can be looked at, relative to the report.
    """

    num_labels: int
    counts: Mapping[str, int]
    page: str


class SemanticRow(NamedTuple):
    """How good score maps are for one category; None where that is undefined."""

    category: str
    iou: float | None
    found: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticResult:
    """How good a member's score maps are.

    Attributes:
        name: Of the member.
        mean_iou: Mean over the categories, or the IoU of the foreground of all.
        rows: For each category its IoU, where maps tell categories apart, and the share of its pixels that is found.
    """

    name: str
    mean_iou: float | None
    rows: tuple[SemanticRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContent:
    """Everything on the page.

    Attributes:
        title: What was run, in the user's words.
        created: When, as it shall be read.
        split: Split the numbers are about (`val`).
        stages: In the order of the run; the last one is the headline. None: a report on a data set only.
        step_gains: What each step of the run gave, boxes only.
        points: Operating point of each category for the last stage.
        scores: What the last stage's scores are worth.
        tuned: What tuning chose and why, as text, by what was tuned: a member, or the ensemble.
        fused_masks: What fusion with score maps did, by category; empty without it.
        semantic: How good score maps are, by member; empty without any.
        removals: What the elimination removed; None without one.
        refinement: What refining did; None without a refiner.
        audit: What the audit of the training labels found; None without one.
        histories: Learning curves by member, of the pretraining and of the refiner.
        galleries: Errors of the last stage.
        dataset: Data set page.
        reasons: Why settings that were left open are what they are.
        recipe: Resolved recipe as YAML.
        environment: Name and value of versions, device, seed and so on.
        commands: Shell commands that repeat the run, get its predictions, and go on from there.
    """

    title: str
    created: str = ""
    split: str = "val"
    stages: tuple[StageResult, ...] = ()
    step_gains: tuple[StepGain, ...] = ()
    points: tuple[OperatingPoint, ...] = ()
    scores: ScoreFacts | None = None
    tuned: Mapping[str, str] = field(default_factory=dict)
    fused_masks: tuple[FusedMasks, ...] = ()
    semantic: tuple[SemanticResult, ...] = ()
    removals: RemovalFacts | None = None
    refinement: RefinementFacts | None = None
    audit: AuditFacts | None = None
    histories: tuple[MemberCurves, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    dataset: DatasetFacts | None = None
    reasons: tuple[str, ...] = ()
    recipe: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
