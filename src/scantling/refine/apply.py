"""Refining boxes: those of any detector's COCO results, those of the labels, or plain ones.

    results ─┐                    ┌─ one decoded image after the other ─► crops of many images ─► network ─┐
    truth   ─┼─► boxes (N, 4) ────┤                    ▲                                                  ├─► boxes
    boxes   ─┘                    └────────────────────┴─── again, `iterations` times ────────────────────┘

Boxes that are not refined stay exactly as they are: of a category that the refiner does not know, with a side below
its `min_side`, with a score below `min_score`, or where a gate says that refining was not shown to help.
N: boxes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from scantling.data.coco import CocoDataset
from scantling.data.coco.records import labels_by_name, told_apart
from scantling.data.coco.result_shapes import with_shapes
from scantling.data.coco.results import Result
from scantling.data.detections import detections_of
from scantling.data.images.open import open_image
from scantling.data.samples.geometry import Pixels
from scantling.data.truths import truths_of
from scantling.errors import CheckpointError
from scantling.ops.boxes import flip_boxes
from scantling.ops.overlaps import from_corners
from scantling.refine.bbrefinement import CropBatch, Refiner, RefinerConfig
from scantling.refine.crops import Boxes, crop_windows, cut, cut_on_device, from_crop, to_crop
from scantling.structures.detections import Detections
from scantling.structures.masks import ImageMasks
from scantling.train.checkpoint import Checkpoint, load_checkpoint, load_weights, weights_in
from scantling.train.devices import resolve_device

log = logging.getLogger(__name__)

KIND = "refiner"
NOT_KNOWN = -1
"""Label of a category that the refiner has never seen."""

_MAX_PIXELS = 1 << 26  # decoded pixels held at once, unless a single image has more
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class ApplyConfig(BaseModel):
    """How boxes are refined.

    Attributes:
        iterations: How often; each time the crop is cut anew around the box of the time before.
        flip: Average with what is seen in the mirror image, for twice the time; of use where objects look alike in it.
        batch_size: Crops that are cut and go through the network together, of one or of many images. (The paper takes
            all of an image, which detectors that report thousands would make a matter of memory.)
        min_score: Results that score less stay as they are, which saves time where a detector reports hundreds.
        masks: What happens to the mask of a result: `keep` leaves it alone, `refit` moves and stretches it as its box.
        precision: Number format of the network.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    iterations: Annotated[int, Field(ge=1, le=10)] = 1
    flip: bool = False
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.0
    masks: Literal["keep", "refit"] = "keep"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


class Gate(Protocol):
    """Where refining is allowed."""

    def allows(self, detections: Detections, class_names: Sequence[str]) -> NDArray[np.bool_]:
        """For each detection (N,) whether its box is to be refined."""


def load_refiner(path: Path | str, device: str = "auto") -> Refiner:
    """The refiner of a checkpoint, ready to refine.

    Args:
        path: Checkpoint of `refine train`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        CheckpointError: It is missing, damaged, or none of a refiner.
    """
    return refiner_of(load_checkpoint(path), path, device)


def refiner_of(checkpoint: Checkpoint, path: Path | str, device: str) -> Refiner:
    """As `load_refiner`, of a checkpoint that was read already; `path` is for messages."""
    chosen, (tensors, meta) = resolve_device(device), checkpoint
    if meta.kind != KIND:
        raise CheckpointError(
            f"{path}: expected a refiner's checkpoint, found that of a {meta.kind}",
            hint="Train one with `scantling refine train`.",
        )
    try:
        config = RefinerConfig.model_validate({**meta.model, "pretrained": False, "weights": None})
    except ValidationError as error:
        raise CheckpointError(f"{path}: describes a refiner that this version does not know") from error
    refiner = Refiner(config, meta.class_names, meta.white)
    load_weights(refiner, weights_in(tensors), source=path)
    return refiner.to(chosen).eval()


def refine_results(
    results: Sequence[Result],
    dataset: CocoDataset,
    refiner: Refiner,
    config: ApplyConfig,
    *,
    gate: Gate | None = None,
) -> tuple[list[Result], dict[str, int]]:
    """Refine the boxes of checked COCO results (see `read_results`) of any detector.

    Args:
        results: Of any tool, with the data set's own ids; not changed.
        dataset: What was predicted; its categories are matched with the refiner's by name.
        refiner: In evaluation mode.
        config: How.
        gate: Where; None everywhere.

    Returns:
        The results in their order with all their keys, boxes clipped to the image; and how many were `refined` and
        why the others were not: `unknown_category`, `too_small`, `below_score`, `no_box`, `gated`.

    Raises:
        DataError: An image that has results cannot be read.
    """
    detections = detections_of(results, dataset)
    labels = labels_for(refiner, dataset)[detections.labels]
    why = _why_not(results, detections, labels, dataset, refiner.config.min_side, config)
    if gate is not None:
        why = np.where((why == "") & ~gate.allows(detections, dataset.class_names), "gated", why)
    rows = np.flatnonzero(why == "")
    refined = refine_rows(
        dataset, detections.images[rows], labels[rows], detections.boxes[rows], refiner, config
    )
    changed = list(results)
    for row, box in zip(rows.tolist(), refined, strict=True):
        changed[row] = _with_box(results[row], detections, row, box, config)
    reasons = ("unknown_category", "too_small", "below_score", "no_box", "gated")
    return changed, {"refined": len(rows), **{reason: int((why == reason).sum()) for reason in reasons}}


def refine_truth(dataset: CocoDataset, refiner: Refiner, config: ApplyConfig) -> Boxes:
    """Refine the labelled boxes themselves.

    Args:
        dataset: Its categories are matched with the refiner's by name.
        refiner: In evaluation mode.
        config: How; `min_score` and `masks` do not matter.

    Returns:
        (N, 4) xyxy of every annotation, image by image in the data set's order. Crowd regions, boxes of unknown
        categories and boxes with a side below `min_side` as they are labelled, all clipped to their image.

    Raises:
        DataError: An image that has annotations cannot be read.
    """
    truths = truths_of(dataset)
    boxes, known = truths.boxes.copy(), labels_for(refiner, dataset)[truths.labels]
    large = (boxes[:, 2:] - boxes[:, :2] >= refiner.config.min_side).all(axis=1)
    rows = np.flatnonzero((known != NOT_KNOWN) & truths.is_object & large)
    boxes[rows] = refine_rows(dataset, truths.images[rows], known[rows], boxes[rows], refiner, config)
    return boxes


def labels_for(refiner: Refiner, dataset: CocoDataset) -> NDArray[np.int64]:
    """For each label of a data set the refiner's label of the same name, or NOT_KNOWN.

    Where several categories have one name, the first stands for the first, the second for the second.
    """
    known = labels_by_name(refiner.class_names)
    names = told_apart(dataset.class_names)
    return np.array([known.get(name, NOT_KNOWN) for name in names], dtype=np.int64)


def refine_rows(
    dataset: CocoDataset,
    images: NDArray[np.int64],
    labels: NDArray[np.int64],
    boxes: Boxes,
    refiner: Refiner,
    config: ApplyConfig,
    *,
    shifts: NDArray[np.float64] | None = None,
) -> Boxes:
    """Refine boxes of a data set's images, each image read once.

    Args:
        dataset: Where the images are.
        images: (N,) position of each box's image, in any order.
        labels: (N,) the refiner's label of each box.
        boxes: (N, 4) xyxy in image pixels.
        refiner: In evaluation mode; pictures of 16 bits are scaled as those that it learned from.
        config: How.
        shifts: (N, 2) error of the centres that are told, in crop coordinates, to see how much it matters.

    Returns:
        (N, 4) xyxy, clipped to the images, in the order given.

    Raises:
        DataError: An image cannot be read.
    """
    refined = boxes.copy()
    for chunk in _chunks(dataset, images, config.batch_size):
        decoded = {
            int(image): open_image(record.path, size_hw=record.size_hw, white=refiner.white or record.white)
            for image in np.unique(images[chunk])
            for record in (dataset.images[image],)
        }
        told = labels[chunk], None if shifts is None else shifts[chunk]
        refined[chunk] = _refine(decoded, images[chunk], boxes[chunk], told, refiner, config)
    return refined


def refine_boxes(
    pixels: Pixels, boxes: Boxes, labels: NDArray[np.int64], refiner: Refiner, config: ApplyConfig
) -> Boxes:
    """Refine boxes of one image.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        boxes: (N, 4) xyxy in pixels; may be empty.
        labels: (N,) the refiner's labels.
        refiner: In evaluation mode.
        config: How.

    Returns:
        (N, 4) xyxy, clipped to the image. A box that would lose its area is only clipped, as is one outside the image.
    """
    images = np.zeros(len(boxes), dtype=np.int64)
    return _refine({0: pixels}, images, boxes, (labels, None), refiner, config)


def _refine(
    decoded: dict[int, Pixels],
    images: NDArray[np.int64],
    boxes: Boxes,
    told: tuple[NDArray[np.int64], NDArray[np.float64] | None],
    refiner: Refiner,
    config: ApplyConfig,
) -> Boxes:
    """Refine boxes of some decoded images, by their keys in `decoded`; `told` are labels and errors of the centres."""
    labels, shifts = told
    device = refiner.mean.device
    shown = (
        decoded if device.type == "cpu" else {key: _on_device(one, device) for key, one in decoded.items()}
    )
    limits = np.array([decoded[image].shape[1::-1] * 2 for image in images.tolist()]).reshape(-1, 4)
    current = np.clip(boxes, 0, limits)
    has_area = _has_area(current)
    for _ in range(config.iterations):
        windows = crop_windows(current, refiner.config.padding, refiner.config.crop_side)
        centres = to_crop((current[:, :2] + current[:, 2:]) / 2, windows)
        centres = centres if shifts is None else centres + shifts
        relative = _look(shown, images, windows, (labels, centres), refiner, config)
        found = np.clip(from_crop(relative, windows), 0, limits)
        has_area &= _has_area(found)
        current = np.where(has_area[:, None], found, current)
    return np.where(has_area[:, None], current, np.clip(boxes, 0, limits))


def _has_area(boxes: Boxes) -> NDArray[np.bool_]:
    return np.logical_and(boxes[:, 2] > boxes[:, 0], boxes[:, 3] > boxes[:, 1])


def _on_device(pixels: Pixels, device: torch.device) -> Tensor:
    """(3, H, W) uint8 from (H, W, 3)."""
    return torch.from_numpy(pixels).to(device, non_blocking=True).permute(2, 0, 1)


@torch.inference_mode()
def _look(
    shown: Mapping[int, Pixels | Tensor],
    images: NDArray[np.int64],
    windows: NDArray[np.int64],
    told: tuple[NDArray[np.int64], NDArray[np.float64]],
    refiner: Refiner,
    config: ApplyConfig,
) -> Boxes:
    """Refined boxes (N, 4) float64 in crop coordinates; crops of one batch exist at a time."""
    device = refiner.mean.device
    labels = torch.from_numpy(told[0]).to(device)
    centres = torch.from_numpy(told[1].astype(np.float32)).to(device)
    parts = [torch.zeros(0, 4, device=device)]
    for start in range(0, len(images), config.batch_size):
        rows = slice(start, start + config.batch_size)
        crops = _cut_all(shown, images[rows], windows[rows], refiner.config.crop_side)
        batch = CropBatch(crops=crops, labels=labels[rows], centres=centres[rows])
        parts.append(_predict(batch, refiner, config))
    boxes: Boxes = torch.cat(parts).double().cpu().numpy()
    return boxes


def _cut_all(
    shown: Mapping[int, Pixels | Tensor], images: NDArray[np.int64], windows: NDArray[np.int64], side: int
) -> Tensor:
    """The crops (N, 3, S, S) of some boxes, at least one, where their images are, in the order of the boxes."""
    parts, order = [], []
    for image in np.unique(images).tolist():
        rows, pixels = np.flatnonzero(images == image), shown[image]
        cutter = cut_on_device if isinstance(pixels, Tensor) else cut
        parts.append(cutter(pixels, windows[rows], side))  # type: ignore[arg-type] # chosen by this very type
        order.append(rows)
    if len(parts) == 1:
        return parts[0]
    crops = torch.cat(parts)
    return crops[torch.from_numpy(np.argsort(np.concatenate(order))).to(crops.device)]


def _predict(batch: CropBatch, refiner: Refiner, config: ApplyConfig) -> Tensor:
    """Refined boxes (B, 4) in crop coordinates, of one batch."""
    device, dtype = refiner.mean.device, _AUTOCAST[config.precision]
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        found = refiner.predict(batch)
        if config.flip:
            found = (found + flip_boxes(refiner.predict(batch.flipped()), 1)) / 2
    return found


def _chunks(dataset: CocoDataset, images: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Rows of as many whole images as make a batch, or as many decoded pixels as may be held."""
    order = np.argsort(images, kind="stable")
    chunk: list[NDArray[np.int64]] = []
    pixels = 0
    for rows in np.split(order, np.flatnonzero(np.diff(images[order])) + 1):
        if not len(rows):
            continue
        height, width = dataset.images[images[rows[0]]].size_hw
        if chunk and (sum(map(len, chunk)) >= batch_size or pixels + height * width > _MAX_PIXELS):
            yield np.concatenate(chunk)
            chunk, pixels = [], 0
        chunk.append(rows)
        pixels += height * width
    if chunk:
        yield np.concatenate(chunk)


def _why_not(
    results: Sequence[Result],
    detections: Detections,
    labels: NDArray[np.int64],
    dataset: CocoDataset,
    min_side: float,
    config: ApplyConfig,
) -> NDArray[np.str_]:
    """For each result why it is not refined; "" if it is."""
    sizes = np.array([image.size_hw[::-1] * 2 for image in dataset.images]).reshape(-1, 4)
    clipped = np.clip(detections.boxes, 0, sizes[detections.images])
    is_small = (clipped[:, 2:] - clipped[:, :2] < min_side).any(axis=1)
    useless = np.array(["bbox" not in r for r in results], dtype=bool) & (config.masks == "keep")
    is_low = (detections.scores < config.min_score) & (config.min_score > 0)  # 0: whatever tools call a score
    conditions = [labels == NOT_KNOWN, useless, is_small, is_low]
    return np.select(conditions, ["unknown_category", "no_box", "too_small", "below_score"], "")


def _with_box(result: Result, detections: Detections, row: int, box: Boxes, config: ApplyConfig) -> Result:
    """The result with another box, and its mask refitted if that is asked for."""
    changes: dict[str, Any] = {}
    if "bbox" in result:
        changes["bbox"] = list(from_corners(box.tolist()))
    if config.masks == "refit" and "segmentation" in result:
        changes["segmentation"] = refit_mask(result["segmentation"], detections.boxes[row], box)
    return with_shapes(result, **changes)


def refit_mask(rle: dict[str, Any], old: NDArray[np.float64], new: NDArray[np.float64]) -> dict[str, Any]:
    """A mask moved and stretched as its box was.

    Args:
        rle: Compressed RLE in the frame of the image.
        old: (4,) xyxy of the box before. What counts is the part in the image, which has an area.
        new: (4,) xyxy of the box after.

    Returns:
        Compressed RLE of the same frame.
    """
    height, width = (int(side) for side in rle["size"])
    old = np.clip(old, 0, [width, height, width, height])
    scale = (new[2:] - new[:2]) / (old[2:] - old[:2])
    matrix = np.column_stack([np.diag(scale), new[:2] - scale * old[:2]])
    masks = ImageMasks.from_rles([rle], size_hw=(height, width))  # type: ignore[list-item] # RLE is a TypedDict
    moved = masks.warp(matrix, (height, width)).to_rles()[0]
    return dict(moved)
