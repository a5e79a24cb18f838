"""Copy-paste where labels are boxes alone, through loader and training: every box lies where its colour is."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from scantling import api
from scantling.data.coco import read_coco
from scantling.data.samples.augmentation import AugmentConfig, build_transforms
from scantling.data.samples.dataset import DetectionDataset
from scantling.data.samples.loader import LoaderConfig, TrainLoader

SIZE_HW = (60, 80)
COLOURS = np.array([(230, 20, 20), (20, 230, 20), (20, 20, 230)])
RECIPE = """
members:
  tiny:
    model: {name: faster_rcnn_r18_small, backbone: test_resnet, fpn_channels: 16, fc_channels: 16,
            num_train_proposals: 50, num_rois: 16}
    augment: {short_side: 48, long_side: 64, copy_paste: {probability: 1.0}}
    train: {epochs: 1, batch_size: 2, workers: 0, validate_every: 1, warmup_steps: 2, log_every: 1}
    predict: {scales: 48, long_side: 64, suppress: {score_threshold: 0.0, max_per_image: 5}}
evaluate: {bootstrap: 0}
"""


@pytest.fixture(scope="module")
def boxes_only(tmp_path_factory) -> Path:
    """Grey images with one rectangle each, whose colour is its category's."""
    root = tmp_path_factory.mktemp("boxes") / "parts"
    rng = np.random.default_rng(0)
    for folder in ("annotations", "images"):
        (root / folder).mkdir(parents=True)
    categories = [{"id": number + 1, "name": name} for number, name in enumerate("abc")]
    for split, ids in {"train": range(6), "val": range(6, 9)}.items():
        images, annotations = [], []
        for number in ids:
            pixels, label = np.full((*SIZE_HW, 3), 110, np.uint8), number % 3
            x, y, width, height = (
                int(rng.integers(low, high)) for low, high in ((2, 40), (2, 25), (16, 30), (16, 28))
            )
            pixels[y : y + height, x : x + width] = COLOURS[label]
            cv2.imwrite(str(root / "images" / f"{number}.png"), pixels[:, :, ::-1])
            images.append(
                {"id": number, "file_name": f"{number}.png", "height": SIZE_HW[0], "width": SIZE_HW[1]}
            )
            box = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
            annotations.append({"id": number + 1, "image_id": number, "category_id": label + 1, **box})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return root


def colour_mask(image: np.ndarray, label: int) -> np.ndarray:
    """Where an image (3, H, W) has the colour of a category, but for pixels that are half of it."""
    return (np.abs(image.astype(int) - COLOURS[label][:, None, None]) < 60).all(axis=0)


@pytest.mark.parametrize("place", ["scene", "anywhere", "learned"])
def test_every_box_of_a_batch_is_around_its_colour_and_no_colour_is_without_a_box(boxes_only, place):
    dataset = read_coco(boxes_only / "annotations/train.json", boxes_only / "images")
    pasting = {
        "copy_paste": {"probability": 1.0, "place": place},
        "min_visibility": 0.0,
    }  # no remnant without a box
    settings = {"short_side": 60, "long_side": 80, **pasting}
    config = AugmentConfig.model_validate(settings)
    loader = TrainLoader(
        DetectionDataset(dataset, build_transforms(config, dataset), seed=0), LoaderConfig(batch_size=2)
    )
    pasted = checked = 0
    for epoch in range(4):
        for batch in loader.epoch(epoch):
            for pixels, truth in zip(batch.images.numpy(), batch.instances, strict=True):
                assert truth.masks is None
                pasted += len(truth) == 2
                for label in set(truth.labels.tolist()):
                    seen, boxes = colour_mask(pixels, label), truth.boxes[truth.labels == label].numpy()
                    others = truth.boxes[truth.labels != label].numpy()
                    around, rims = filled(seen.shape, boxes, 1), filled(seen.shape, others, 1)
                    rims &= ~filled(seen.shape, others, -3)  # where another fades in, it shows through
                    assert not (seen & ~around & ~rims).any()  # nothing of it outside of its boxes
                    if len(truth) > 1 and truth.labels.unique().numel() < len(truth):
                        continue  # of one colour: which is which cannot be seen
                    if not any(overlap(boxes[0], box) for box in others):
                        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
                        extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                        np.testing.assert_allclose(boxes[0], extent, atol=3)  # the rim fades in
                        checked += 1
    assert pasted > 8
    assert checked > 10


def filled(shape: tuple[int, ...], boxes: np.ndarray, margin: int) -> np.ndarray:
    """Where boxes are, each larger by a margin on all sides."""
    found = np.zeros(shape, dtype=bool)
    for x1, y1, x2, y2 in boxes:
        rows = slice(max(0, int(y1 - margin)), max(0, int(np.ceil(y2)) + margin))
        found[rows, max(0, int(x1 - margin)) : max(0, int(np.ceil(x2)) + margin)] = True
    return found


def overlap(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((np.minimum(one[2:], other[2:]) > np.maximum(one[:2], other[:2])).all())


def test_a_detector_is_trained_on_pasted_boxes(boxes_only, tmp_path):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    done = api.train(boxes_only, tmp_path / "tiny.yaml", tmp_path / "run", device="cpu")
    assert done.metrics["split"] == "val"
    lines = (tmp_path / "run/members/tiny/metrics.jsonl").read_text().splitlines()
    losses = [entry["loss"] for line in lines if "loss" in (entry := json.loads(line))]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
