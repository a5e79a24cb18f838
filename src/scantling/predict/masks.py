"""Masks for given boxes: the second pass of a detector of masks, over every view of an image.

    boxes that are kept (after suppression, refinement, of any tool), original pixels
        └─ each view: Frame.apply_boxes ── Detector.masks ──► (N, M, M) ── flipped back ──┐
                                                                                mean ◄────┘ one soft mask per box
    tiles: a box inside a tile has the mask drawn there; a longer one that of every tile it meets, united in the image
    a detector that ranks by masks: the IoU it predicts of each, the mean of views and of tiles, comes along

Only the boxes that are kept get masks, never all candidates. A mask stays a square stretched over its box through all
views; it is laid over the image once, when results are written. N: boxes of an image; M: side of a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scantling.data.samples.geometry import View, render
from scantling.ops.boxes import clip_boxes
from scantling.predict.tiles import TileGrid, TileWindow
from scantling.predict.views import Views
from scantling.structures.instances import Instances
from scantling.structures.masks import ImageMasks, RoiMasks
from scantling.structures.sample import Batch, Frame, Sample

ViewsOf = Callable[[Sequence[Batch]], Views]
"""Batches that show the same images at several sizes -> all their views, flipped ones too."""


def mean_masks(views: Views, found: Sequence[Instances]) -> list[Instances]:
    """The same instances with soft masks, averaged over the views, in the 255 steps in which a run keeps them.

    The IoU that a detector predicts of its masks is averaged likewise; scores stay as they are.

    Args:
        views: Of the images.
        found: For each image its instances in original pixels, in main memory; may be empty.
    """
    network, totals = views.network, [torch.zeros(0) for _ in found]
    ious = [torch.zeros(len(each)) for each in found]
    if not any(len(each) for each in found):
        return [each.replace(masks=ImageMasks.empty(each.size_hw)) for each in found]
    for batch, features in views.encoded():
        placed = [
            _placed(each, frame, network.device) for each, frame in zip(found, batch.frames, strict=True)
        ]
        drawn = network.masks(features, placed)
        for image, (frame, boxes, masks) in enumerate(zip(batch.frames, placed, drawn, strict=True)):
            upright = frame.invert(boxes.replace(masks=masks)).masks
            soft = upright.probabilities if isinstance(upright, RoiMasks) else masks.probabilities
            totals[image] = soft.float() if not totals[image].numel() else totals[image] + soft
        for image, seen in enumerate(network.mask_ious(features, placed, drawn) or ()):
            ious[image] += seen.cpu()
    count = len(views.batches)
    return [
        each.replace(
            masks=RoiMasks(probabilities=(total / count * 255).round().cpu() / 255),
            mask_ious=ious[image] / count if network.model.ranks_by_masks else None,
        )
        for image, (each, total) in enumerate(zip(found, totals, strict=True))
    ]


def _placed(found: Instances, frame: Frame, device: torch.device) -> Instances:
    """Instances of the original image as a view shows them; boxes may leave it."""
    boxes = frame.apply_boxes(found.boxes)
    return Instances(
        size_hw=frame.size_hw, boxes=boxes.to(device), labels=found.labels.to(device), scores=found.scores
    ).to(device)


def tile_masks(  # noqa: PLR0913 - an image, how it is cut, how a part of it is looked at
    sample: Sample,
    grid: TileGrid,
    found: Instances,
    *,
    sizes_for: Callable[[tuple[int, int]], Sequence[tuple[int, int]]],
    views_of: ViewsOf,
    batch_size: int,
) -> Instances:
    """Instances of one image with masks in its frame, drawn tile by tile and united.

    Args:
        sample: The image.
        grid: How it is cut.
        found: In original pixels, in main memory; may be empty.
        sizes_for: Sizes at which a tile is predicted.
        views_of: All views of batches of tiles.
        batch_size: Tiles seen together.
    """
    chosen = tiles_of(grid, found.boxes)  # (T, N)
    masks = ImageMasks.empty(found.size_hw)
    parts: list[tuple[Tensor, ImageMasks]] = []
    ious: Tensor | None = None
    wanted = [index for index in range(len(grid)) if bool(chosen[index].any())]
    for start in range(0, len(wanted), batch_size):
        some = wanted[start : start + batch_size]
        windows = [grid.windows[index] for index in some]
        rows = [chosen[index].nonzero()[:, 0] for index in some]
        shown = [
            _within(found[own], window) for own, window in zip(rows, windows, strict=True)
        ]  # boxes cut off at the tile, in original pixels
        views = views_of(tiles_at_all_sizes(sample, windows, sizes_for))
        for own, part in zip(rows, mean_masks(views, shown), strict=True):
            soft = part.masks
            if isinstance(soft, RoiMasks):
                parts.append((own, soft.to_image(part.boxes, found.size_hw)))
            if part.mask_ious is not None:
                ious = torch.zeros(len(found)) if ious is None else ious
                ious[own] += part.mask_ious / chosen[:, own].sum(dim=0)
    if parts:
        masks = ImageMasks.united([(own.tolist(), part) for own, part in parts], len(found), found.size_hw)
    return found.replace(masks=masks, mask_ious=ious)


def tiles_of(grid: TileGrid, boxes: Tensor) -> Tensor:
    """Which tiles draw each box: the one that holds it most in its middle, or all that it meets if none holds it.

    Args:
        grid: T tiles.
        boxes: (N, 4) xyxy, original pixels.

    Returns:
        (T, N) bool.
    """
    corners = torch.tensor(grid.windows, dtype=boxes.dtype).reshape(-1, 1, 4)
    meets = (
        torch.minimum(corners[..., 2:], boxes[:, 2:]) > torch.maximum(corners[..., :2], boxes[:, :2])
    ).all(dim=-1)  # (T, N)
    holds = torch.stack([~grid.touches(boxes, index).any(dim=1) for index in range(len(grid))]) & meets
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = ((corners[..., :2] + corners[..., 2:]) / 2 - middle).square().sum(dim=-1)
    nearest = distance.masked_fill(~holds, float("inf")).argmin(dim=0)
    best = torch.zeros_like(holds).scatter_(0, nearest[None], value=True)
    return torch.where(holds.any(dim=0), best, meets)


def _within(found: Instances, window: TileWindow) -> Instances:
    """Instances with their boxes cut off at a window; everything in original pixels."""
    x1, y1, x2, y2 = window
    shift = found.boxes.new_tensor([x1, y1, x1, y1])
    return found.replace(boxes=clip_boxes(found.boxes - shift, (y2 - y1, x2 - x1)) + shift, masks=None)


def tiles_at_all_sizes(
    sample: Sample,
    windows: Sequence[TileWindow],
    sizes_for: Callable[[tuple[int, int]], Sequence[tuple[int, int]]],
) -> list[Batch]:
    """A batch for each size, in which every window of the image is one picture."""
    parts = [View.of(sample).cropped((x1, y1), (y2 - y1, x2 - x1)) for x1, y1, x2, y2 in windows]
    sizes = [sizes_for(part.size_hw) for part in parts]
    return [
        Batch.collate([render(sample, part.resized(size)) for part, size in zip(parts, each, strict=True)])
        for each in zip(*sizes, strict=True)
    ]
