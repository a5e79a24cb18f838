"""Masks for given boxes: the same shape comes back through every size, mirror and tile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from reference.colour_detector import CLASS_NAMES, ColourDetector
from scantling.data.coco import Category, CocoDataset, ImageRecord
from scantling.data.detections import results_of
from scantling.models.suppression import SuppressConfig
from scantling.ops.rle import rle_decode
from scantling.predict import predictor as predictor_module
from scantling.predict.candidates import find_masks
from scantling.predict.masks import tiles_of
from scantling.predict.predictor import PredictConfig, Predictor
from scantling.predict.tiles import TileGrid
from scantling.structures.detections import Detections
from scantling.structures.instances import Instances
from scantling.structures.masks import ImageMasks, RoiMasks

SIZE_HW = (120, 160)


class MaskedColourDetector(ColourDetector):
    """Draws inside each box what has the colour of its label."""

    has_masks = True

    def __init__(self, sees=lambda _box, _hw: True):
        super().__init__(sees)
        self.encoded, self.drawn = 0, []

    def encode(self, batch):
        self.encoded += 1
        return super().encode(batch)

    def masks(self, encoded, instances):
        assert torch.is_inference_mode_enabled()
        masks = []
        for image, found in zip(encoded.levels[0], instances, strict=True):
            self.drawn.append(len(found))
            channels = (image[None].float() / 255).repeat(len(found), 1, 1, 1)
            own = channels[torch.arange(len(found)), found.labels][:, None]
            rows = torch.arange(len(found), dtype=torch.float32)[:, None]
            rois = torch.cat([rows, found.boxes], dim=1)
            masks.append(RoiMasks(probabilities=roi_align(own, rois, 28, aligned=True)[:, 0]))
        return masks


@pytest.fixture
def arrows(tmp_path):
    """A picture with a red and a green triangle, their record and their masks."""
    corners = {0: [(20, 20), (60, 30), (25, 100)], 1: [(90, 15), (150, 60), (80, 110)]}
    pixels, masks = np.zeros((*SIZE_HW, 3), dtype=np.uint8), {}
    for label, points in corners.items():
        mask = np.zeros(SIZE_HW, dtype=np.uint8)
        cv2.fillPoly(mask, [np.array(points)], 1)
        pixels[mask > 0, label], masks[label] = 255, mask
    path = tmp_path / "arrows.png"
    cv2.imwrite(str(path), pixels[:, :, ::-1])
    return ImageRecord(id=7, file_name="arrows.png", path=path, size_hw=SIZE_HW), masks


def given(masks: dict[int, np.ndarray]) -> Instances:
    """The painted objects as boxes of another tool."""
    boxes = ImageMasks.from_dense(np.stack(list(masks.values()))).boxes()
    return Instances(
        size_hw=SIZE_HW, boxes=boxes, labels=torch.tensor(list(masks)), scores=torch.ones(len(masks))
    )


def overlaps(found: Instances, masks: dict[int, np.ndarray]) -> list[float]:
    """IoU of each instance's mask with the painted one of its label."""
    image_masks = found.masks
    if isinstance(image_masks, RoiMasks):
        image_masks = image_masks.to_image(found.boxes, found.size_hw)
    dense = image_masks.to_dense().numpy()
    truths = [masks[label] > 0 for label in found.labels.tolist()]
    return [(mask & truth).sum() / (mask | truth).sum() for mask, truth in zip(dense, truths, strict=True)]


WAYS = {
    "one size": {"scales": 120},
    "flipped too": {"scales": 120, "flip": True},
    "three sizes": {"scales": (90, 120, 240), "long_side": None},
    "tiles": {"scales": 64, "tile": 64, "overlap": 0.3, "long_side": None},
    "tiles, all at once": {"scales": (64, 96), "tile": 64, "flip": True, "batch_size": 3, "long_side": None},
}


@pytest.mark.parametrize("way", WAYS)
def test_masks_of_given_boxes_have_the_painted_shape(arrows, way):
    record, masks = arrows
    config = PredictConfig(**WAYS[way])
    predictor = Predictor(MaskedColourDetector(), config, CLASS_NAMES)
    ((_, found),) = predictor.masks([record], {7: given(masks)})
    assert torch.equal(found.boxes, given(masks).boxes)
    assert min(overlaps(found, masks)) > 0.93
    assert isinstance(found.masks, RoiMasks if "tile" not in WAYS[way] else ImageMasks)


@pytest.mark.parametrize("way", ["one size", "flipped too", "three sizes"])
@pytest.mark.parametrize("kept", [1 << 30, 0])
def test_only_kept_boxes_get_masks_and_features_are_computed_once_if_they_fit(arrows, way, kept, monkeypatch):
    record, masks = arrows
    monkeypatch.setitem(predictor_module.KEPT_BYTES, "cpu", kept)
    config = PredictConfig(**WAYS[way], suppress=SuppressConfig(iou_threshold=0.5))
    model = MaskedColourDetector()
    ((_, found),) = Predictor(model, config, CLASS_NAMES).predict_records([record])
    views = len(model.drawn)
    assert len(found) == 2
    assert set(model.drawn) == {2}, "four boxes were found in each view"
    assert model.encoded == (views if kept else 2 * views)
    again = Predictor(MaskedColourDetector(), config, CLASS_NAMES)
    ((_, second),) = again.masks([record], {7: found.replace(masks=None)})
    torch.testing.assert_close(second.masks.probabilities, found.masks.probabilities)


class ScaleDetector(MaskedColourDetector):
    """Sees one object at every size, surer the smaller the image, another at the largest alone, and draws grey masks.

    Object 1 overlaps object 0 by an IoU of 0.6. A mask is as light as the image is small.
    """

    boxes = ((20.0, 20.0, 60.0, 100.0), (30.0, 20.0, 70.0, 100.0), (100.0, 20.0, 140.0, 100.0))
    scores = (0.9, 0.5, 1.5e-4)

    def candidates(self, encoded, limits):
        (height, width), largest = encoded.sizes_hw[0], 7 * 21
        scale = torch.tensor([width / SIZE_HW[1], height / SIZE_HW[0]] * 2)
        seen = [0, 1, 1, 2] if height == largest else [0]
        scores = [self.scores[0] - height / 1000, self.scores[1], 2e-4, self.scores[2]][: len(seen)]
        boxes = torch.tensor([self.boxes[number] for number in seen]) * scale
        labels = torch.zeros(len(seen), dtype=torch.int64)
        return [Instances(size_hw=(height, width), boxes=boxes, labels=labels, scores=torch.tensor(scores))]

    def mask_ious(self, encoded, instances, masks):
        return [own.probabilities[:, 0, 0] * 0.5 for own in masks]

    def masks(self, encoded, instances):
        self.drawn.append((encoded.sizes_hw[0][0], instances[0].boxes / encoded.sizes_hw[0][0]))
        grey = 1 - encoded.sizes_hw[0][0] / 200
        return [RoiMasks(probabilities=torch.full((len(instances[0]), 28, 28), grey))]


def test_boxes_of_seven_sizes_are_merged_first_and_their_masks_averaged_then(arrows):
    record, _ = arrows
    sizes = tuple(21 * number for number in range(1, 8))
    suppress = SuppressConfig(
        method="soft_linear", iou_threshold=0.5, min_score=1e-4, score_threshold=1e-5, max_per_image=100
    )
    config = PredictConfig(scales=sizes, long_side=1000, suppress=suppress)
    model = ScaleDetector()
    ((_, found),) = Predictor(model, config, CLASS_NAMES).predict_records([record])
    # the surest box of object 0 is that of the smallest image; its other six fall to 0, object 1 to 0.5 * (1 - 0.6),
    # the second box of object 1 to less than 1e-4, and object 2 stands alone
    assert found.scores.tolist() == pytest.approx([0.9 - 0.021, 0.2, 1.5e-4], rel=1e-4)
    torch.testing.assert_close(found.boxes, torch.tensor(ScaleDetector.boxes), atol=1e-3, rtol=0)
    assert sorted(height for height, _ in model.drawn) == list(sizes), "one look at each size"
    expected = torch.tensor(ScaleDetector.boxes) / SIZE_HW[0]
    for _, drawn in model.drawn:
        torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=0)
    mean = 1 - sum(sizes) / 7 / 200
    model.ranks_by_masks = True
    ((_, ranked),) = Predictor(model, config, CLASS_NAMES).predict_records([record])
    assert ranked.scores.tolist() == pytest.approx([score * mean / 2 for score in found.scores.tolist()])
    assert found.masks.probabilities.unique().tolist() == pytest.approx([round(mean * 255) / 255], abs=1e-6)


class JudgingDetector(MaskedColourDetector):
    """Says of a mask that it fits as well as its box is wide, in shares of 200 pixels."""

    ranks_by_masks = True

    def mask_ious(self, encoded, instances, masks):
        return [(found.boxes[:, 2] - found.boxes[:, 0]) / 200 for found in instances]


@pytest.mark.parametrize("tile", [None, 64])
def test_the_iou_of_masks_comes_along_the_mean_of_all_tiles_that_draw(arrows, tile):
    record, masks = arrows
    config = PredictConfig(scales=120 if tile is None else 64, tile=tile, overlap=0.25)
    predictor = Predictor(JudgingDetector(), config, CLASS_NAMES)
    ((_, found),) = predictor.masks([record], {7: given(masks)})
    assert found.scores.tolist() == [1, 1], "scores of given boxes are left alone"
    boxes = found.boxes
    if tile is None:
        expected = (boxes[:, 2] - boxes[:, 0]) / 200
    else:
        grid = TileGrid.over(SIZE_HW, 64, 0.25)
        windows = torch.tensor(grid.windows, dtype=torch.float32)
        widths = torch.minimum(windows[:, None, 2], boxes[:, 2]) - torch.maximum(
            windows[:, None, 0], boxes[:, 0]
        )
        chosen = tiles_of(grid, boxes)
        assert chosen.sum(dim=0).min() > 1
        expected = (widths * chosen).sum(dim=0) / chosen.sum(dim=0) / 200
    torch.testing.assert_close(found.mask_ious, expected, atol=1e-5, rtol=0)
    ((_, alone),) = predictor.predict_records([record])
    assert alone.mask_ious is None
    assert (alone.scores < 0.9).all()


def test_images_without_detections_have_no_masks_and_stay_in_order(arrows, tmp_path):
    record, masks = arrows
    cv2.imwrite(str(tmp_path / "empty.png"), np.zeros((*SIZE_HW, 3), dtype=np.uint8))
    empty = ImageRecord(id=8, file_name="empty.png", path=tmp_path / "empty.png", size_hw=SIZE_HW)
    for batch_size in (1, 2):
        for tile in (None, 64):
            config = PredictConfig(scales=64, tile=tile, batch_size=batch_size)
            found = dict(
                (each.id, instances)
                for each, instances in Predictor(MaskedColourDetector(), config, CLASS_NAMES).predict_records(
                    [record, empty]
                )
            )
            assert len(found[8]) == len(found[8].masks) == 0
            assert len(found[7].masks) == len(found[7]) >= 2


def test_a_box_is_drawn_by_the_tile_that_holds_it_best_or_by_all_it_meets():
    grid = TileGrid.over((100, 190), 100, 0.1)  # windows 0..100 and 90..190
    boxes = torch.tensor([[20.0, 20, 60, 60], [92, 10, 96, 20], [60, 10, 150, 40], [120, 50, 180, 90]])
    assert grid.windows == [(0, 0, 100, 100), (90, 0, 190, 100)]
    assert tiles_of(grid, boxes).tolist() == [[True, True, True, False], [False, False, True, True]]


def test_parts_are_united():
    left, right = (np.zeros((1, 6, 8), dtype=bool) for _ in range(2))
    left[0, 1:3, 1:5] = right[0, 2:5, 4:7] = True
    parts = [([1], ImageMasks.from_dense(left)), ([1], ImageMasks.from_dense(right))]
    united = ImageMasks.united(parts, 2, (6, 8)).to_dense().numpy()
    assert not united[0].any()
    assert (united[1] == (left | right)[0]).all()


@pytest.mark.parametrize("tile", [None, 64])
def test_rows_of_a_data_set_come_back_in_their_order_with_masks(arrows, tile):
    record, masks = arrows
    twin = replace(record, id=8, file_name="twin.png")
    categories = tuple(Category(id=number, name=name) for number, name in enumerate(CLASS_NAMES, 1))
    dataset = CocoDataset(
        file=Path("set.json"),
        image_root=record.path.parent,
        images=(record, twin),
        annotations=((), ()),
        categories=categories,
    )
    objects = given(masks)
    rows = Detections.cat([objects.to_detections(1), objects.to_detections(0)])[np.array([2, 1, 3, 0])]
    config = PredictConfig(scales=120 if tile is None else 64, tile=tile, long_side=None)
    found = find_masks(MaskedColourDetector(), config, dataset, rows, torch.device("cpu"))
    assert found.images.tolist() == rows.images.tolist()
    assert found.labels.tolist() == rows.labels.tolist()
    for result, row in zip(results_of(found, dataset), range(len(rows)), strict=True):
        truth = masks[int(rows.labels[row])] > 0
        mask = rle_decode(result["segmentation"])
        assert (mask & truth).sum() / (mask | truth).sum() > 0.93
    none = find_masks(MaskedColourDetector(), config, dataset, rows[:0], torch.device("cpu"))
    assert len(none) == 0
