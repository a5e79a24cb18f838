"""Label audit: the labels of a data set that are likely wrong, in one ranking, each with its reason.

    labels ──────────────┐
    refined boxes (N, 4) ├─► Evidence ──► loose, spurious, class, duplicate (N,) ──► ranking ──► suspects.json
    out-of-fold results  ┘            └─► missing (M,) ─────────────────────────┘

Refined boxes come from `refine_truth`, detections from models that have not seen the image. Either may be missing;
then the reasons that need it are not found. N: labels, M: detections.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from scantling.audit.association import NONE, Floats, Rows, associate
from scantling.audit.reasons import (
    Evidence,
    calibrate,
    consensus,
    duplicate,
    loose,
    missing,
    size_groups,
    spurious,
    undetected_log_ratio,
    wrong_class,
)
from scantling.data.coco import CocoDataset, ImageId
from scantling.data.coco.records import AnnotationId
from scantling.data.truths import Truths, truths_of
from scantling.errors import UsageError
from scantling.ops.overlaps import paired_iou
from scantling.structures.detections import Detections

Reason = Literal["loose", "missing", "spurious", "class", "duplicate"]
Share = Annotated[float, Field(gt=0, lt=1)]
BoxXyxy = tuple[float, float, float, float]

REASONS: tuple[Reason, ...] = get_args(Reason)
MEANINGS: Mapping[Reason, str] = {
    "loose": "the box is badly placed",
    "missing": "an object without a label",
    "spurious": "nothing there",
    "class": "another category",
    "duplicate": "the object is labelled twice",
}
DECIMALS = 2
_STAYED = 1e-3  # pixels


REMOVES: tuple[Reason, ...] = ("spurious", "duplicate")
"""Reasons whose repair is to leave the label out."""


class AuditConfig(BaseModel):
    """What counts as suspicious.

    Attributes:
        fault_rate: Share of labels that are wrong for each reason before anything is known; the scale of the scores.
        min_score: Suspects less likely than this are left out.
        min_detection_score: Detections below are ignored.
        iou_threshold: Overlap from which a detection has found a label.
        near_iou: Overlap from which a label and a detection that found nothing better belong together.
        iterations: How often the labels are refined, each time from where they are: a refiner moves a box part of the
            way, and one around nothing ever further.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fault_rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.03
    min_score: Annotated[float, Field(ge=0, lt=1)] = 0.2
    min_detection_score: Annotated[float, Field(ge=0, lt=1)] = 0.05
    iou_threshold: Share = 0.5
    near_iou: Share = 0.2
    iterations: Annotated[int, Field(ge=1, le=10)] = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A label that is likely wrong, or an object that likely has none.

    Attributes:
        reason: What is likely wrong.
        score: How likely, 0..1.
        image: Position of the image in the data set.
        image_id: Its id.
        annotation_id: Of the label; None where a label is missing.
        category: Name of the label's category; of the suggested one where a label is missing.
        box: Of the label, xyxy in original pixels; None where a label is missing.
        suggested_box: Better box, or that of the missing label; None if there is none.
        suggested_category: Name of the better category, or that of the missing label; None if there is none.
        suggested_label: Its label, since names may repeat.
        note: The evidence in a few words.
    """

    reason: Reason
    score: float
    image: int
    image_id: ImageId
    annotation_id: AnnotationId | None
    category: str
    box: BoxXyxy | None
    suggested_box: BoxXyxy | None
    suggested_category: str | None
    suggested_label: int | None
    note: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Audit:
    """The outcome.

    Attributes:
        suspects: Most likely first.
        num_labels: Truths that were looked at.
        used: What they were compared with: `refiner`, `predictions`.
        config: What counted as suspicious.
        data_hash: Of the annotations; decisions on other data are refused.
    """

    suspects: tuple[Suspect, ...]
    num_labels: int
    used: tuple[str, ...]
    config: AuditConfig
    data_hash: str

    @property
    def counts(self) -> dict[Reason, int]:
        """Number of suspects by reason."""
        found = Counter(suspect.reason for suspect in self.suspects)
        return {reason: found[reason] for reason in REASONS}


def find_suspects(
    dataset: CocoDataset,
    refined: Floats | None = None,
    detections: Detections | None = None,
    config: AuditConfig | None = None,
) -> Audit:
    """Rank the labels of a data set by how likely they are wrong.

    A label appears once, with its likeliest reason. Without refined boxes and detections only duplicates are found.

    Args:
        dataset: The labels. An empty data set has no suspects.
        refined: (N, 4) xyxy, the boxes of all annotations after refinement, image by image.
        detections: Out-of-fold detections on the same images: of models that were not trained on the image.
        config: What counts as suspicious.

    Raises:
        UsageError: The number of refined boxes is not that of the annotations.
    """
    config, labels = config or AuditConfig(), truths_of(dataset)
    if refined is not None and refined.shape != (len(labels), 4):
        message = f"{dataset.file}: {len(labels)} annotations, but refined boxes of shape {refined.shape}"
        raise UsageError(message, hint="Refine the same annotations that are audited.")
    evidence = gather(labels, refined, detections, config)
    found = [*_label_suspects(dataset, evidence, config), *_missing_suspects(dataset, evidence, config)]
    used = [name for name, given in (("refiner", refined), ("predictions", detections)) if given is not None]
    return Audit(
        suspects=tuple(sorted(found, key=_order)),
        num_labels=int(labels.is_object.sum()),
        used=tuple(used),
        config=config,
        data_hash=hash_of(dataset),
    )


def gather(
    labels: Truths, refined: Floats | None, detections: Detections | None, config: AuditConfig
) -> Evidence:
    """Bring labels, refined boxes and detections together; see `find_suspects`."""
    has_detections = detections is not None and len(detections) > 0
    kept = detections if detections is not None else Detections.empty()
    kept = _in_fixed_order(kept[kept.scores >= config.min_detection_score])
    association = associate(labels, kept, iou_threshold=config.iou_threshold, near_iou=config.near_iou)
    precision, missing_rate = calibrate(labels, kept, association, config.fault_rate)
    return Evidence(
        labels=labels,
        refined=None if refined is None else _moved(np.asarray(refined, dtype=np.float64), labels),
        detections=kept,
        has_detections=has_detections,
        association=association,
        precision=precision,
        missing_rate=missing_rate,
        groups=size_groups(labels),
    )


def _in_fixed_order(detections: Detections) -> Detections:
    """The same detections by image and falling score, those of equal score by category and box: in whatever order."""
    x1, y1, x2, y2 = detections.boxes.T
    keys = (y2, x2, y1, x1, detections.labels, -detections.scores, detections.images)
    return detections[np.lexsort(keys)]


def _moved(refined: Floats, labels: Truths) -> Floats:
    """The refined boxes, NaN where the refiner left the label alone and so says nothing of it."""
    stayed = np.abs(refined - labels.boxes).max(axis=1, initial=0) < _STAYED
    return np.where(stayed[:, None], np.nan, refined)


def fault_ratios(evidence: Evidence, config: AuditConfig) -> dict[Reason, Floats]:
    """For every reason but `missing` the prior times likelihood ratio (N,) against a right label; 0 for crowds.

    The reasons exclude each other, so a label is wrong with probability s / (1 + s), s the sum of these. A refined
    box far from a label speaks for `loose`; where the detector's silence says that nothing is there, for `spurious`.
    """
    log_ratios: dict[Reason, Floats] = {
        "loose": loose(evidence),
        "spurious": spurious(evidence),
        "class": wrong_class(evidence),
        "duplicate": duplicate(evidence)[0],
    }
    prior = config.fault_rate / (1 - config.fault_rate)
    counts = evidence.labels.is_object
    ratios = {reason: np.where(counts, prior * np.exp(ratio), 0.0) for reason, ratio in log_ratios.items()}
    empty = undetected_log_ratio(evidence) > 0
    ratios["spurious"] += np.where(empty, ratios["loose"], 0.0)
    ratios["loose"][empty] = 0.0
    return ratios


def hash_of(dataset: CocoDataset) -> str:
    """SHA-256 of what the labels say, whatever the order of the records or the format of the file."""
    said = {
        "images": [[image.id, image.file_name, *image.size_hw] for image in dataset.images],
        "annotations": [
            [a.id, image.id, a.label, *a.box_xywh, a.is_crowd]
            for image, annotations in zip(dataset.images, dataset.annotations, strict=True)
            for a in annotations
        ],
        "categories": [[category.id, category.name] for category in dataset.categories],
    }
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


# ---------------------------------------------------------------- the ranking


def _order(suspect: Suspect) -> tuple[float, int, str, str, int, BoxXyxy]:
    place, label = suspect.suggested_box or (0.0, 0.0, 0.0, 0.0), suspect.suggested_label or 0
    return (-suspect.score, suspect.image, suspect.reason, str(suspect.annotation_id), label, place)


def _label_suspects(dataset: CocoDataset, evidence: Evidence, config: AuditConfig) -> list[Suspect]:
    """Every label that is likely enough wrong, with its likeliest reason."""
    ratios = fault_ratios(evidence, config)
    reasons, table = tuple(ratios), np.stack(list(ratios.values()))
    best, total = table.argmax(axis=0), table.sum(axis=0)
    scores = total / (1 + total)
    boxes, twins = _inside(dataset, evidence.labels.images, consensus(evidence)), duplicate(evidence)[1]
    suspects = []
    for row in np.flatnonzero(scores >= max(config.min_score, 1e-9)):
        reason = reasons[best[row]]
        box, label, note = _suggestion(dataset, evidence, reason, (int(row), boxes, twins))
        suspects.append(
            Suspect(
                reason=reason,
                score=float(scores[row]),
                image=int(evidence.labels.images[row]),
                image_id=dataset.images[evidence.labels.images[row]].id,
                annotation_id=evidence.labels.ids[row],
                category=dataset.class_names[evidence.labels.labels[row]],
                box=_plain(evidence.labels.boxes[row]),
                suggested_box=box,
                suggested_category=None if label is None else dataset.class_names[label],
                suggested_label=label,
                note=note,
            )
        )
    return suspects


def _suggestion(
    dataset: CocoDataset, evidence: Evidence, reason: Reason, place: tuple[int, Floats, Rows]
) -> tuple[BoxXyxy | None, int | None, str]:
    """Better box, better label and the evidence in words, for one label."""
    row, boxes, twins = place
    if reason == "loose":
        overlap = float(paired_iou(evidence.labels.boxes[[row]], boxes[[row]])[0])
        return _plain(boxes[row]), None, f"overlaps the suggested box by {overlap:.2f}"
    if reason == "class":
        rival = evidence.association.rival[row]
        label = int(evidence.detections.labels[rival])
        return (
            None,
            label,
            f"detected as {dataset.class_names[label]} at score {evidence.detections.scores[rival]:.2f}",
        )
    if reason == "duplicate":
        return None, None, f"repeats annotation {evidence.labels.ids[twins[row]]}"
    seen = evidence.association.seen_by[row]
    return (
        None,
        None,
        (
            "no detection here"
            if seen == NONE
            else f"best detection here scores {evidence.detections.scores[seen]:.2f}"
        ),
    )


def _missing_suspects(dataset: CocoDataset, evidence: Evidence, config: AuditConfig) -> list[Suspect]:
    """Every detection that is likely enough an object without a label."""
    likely, detections = missing(evidence), evidence.detections
    boxes = _inside(dataset, detections.images, detections.boxes)
    likely[(boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) < 1] = 0.0
    suspects = []
    for row in np.flatnonzero(likely >= max(config.min_score, 1e-9)):
        name = dataset.class_names[detections.labels[row]]
        suspects.append(
            Suspect(
                reason="missing",
                score=float(likely[row]),
                image=int(detections.images[row]),
                image_id=dataset.images[detections.images[row]].id,
                annotation_id=None,
                category=name,
                box=None,
                suggested_box=_plain(boxes[row]),
                suggested_category=name,
                suggested_label=int(detections.labels[row]),
                note=f"detected at score {detections.scores[row]:.2f}, no label here",
            )
        )
    return suspects


def _inside(dataset: CocoDataset, images: Rows, boxes: Floats) -> Floats:
    """(N, 4) boxes clipped to their images."""
    sizes_hw = np.array([image.size_hw for image in dataset.images], dtype=np.float64).reshape(-1, 2)
    return np.clip(boxes, 0, sizes_hw[images][:, [1, 0, 1, 0]])


def _plain(box: Floats) -> BoxXyxy:
    x1, y1, x2, y2 = (round(float(edge), DECIMALS) for edge in box)
    return (x1, y1, x2, y2)
