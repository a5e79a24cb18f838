"""Mirrored views and pooling."""

from __future__ import annotations

import numpy as np
import torch

from scantling.models.suppression import SuppressConfig, suppress_instances
from scantling.predict.tta import flip_horizontally, in_original_pixels
from scantling.structures.instances import Instances, RoiMasks
from scantling.structures.sample import Batch, Frame, Sample


def sample_of(size_hw, image_id):
    pixels = np.random.default_rng(image_id).integers(1, 256, (3, *size_hw), dtype=np.uint8)
    instances = Instances.empty(size_hw, scored=False)
    return Sample(image=pixels, instances=instances, frame=Frame.identity(size_hw), image_id=image_id)


def pooled(seen, iou_threshold=0.5):
    """All views of an image suppressed together, in its own pixels."""
    together = Instances.cat(in_original_pixels(seen))
    return suppress_instances(together, SuppressConfig(iou_threshold=iou_threshold), ("a",))


def detections(size_hw, boxes, scores, masks=None):
    return Instances(
        size_hw=size_hw,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.zeros(len(boxes), dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32),
        masks=masks,
    )


def test_mirroring_leaves_padding_where_it_is_and_the_source_untouched():
    batch = Batch.collate([sample_of((40, 50), 1), sample_of((64, 30), 2)])
    before = batch.images.clone()
    flipped = flip_horizontally(batch)
    assert torch.equal(batch.images, before)
    for image, original, (height, width) in zip(flipped.images, before, batch.sizes_hw, strict=True):
        assert torch.equal(image[:, :height, :width], original[:, :height, :width].flip(-1))
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()
    again = flip_horizontally(flipped)
    assert torch.equal(again.images, before)
    for frame, original in zip(again.frames, batch.frames, strict=True):
        np.testing.assert_array_equal(frame.matrix, original.matrix)


def test_pooling_maps_back_then_suppresses_over_all_views():
    plain = Frame.identity((100, 200))
    double = plain.then(np.array([[2.0, 0, 0], [0, 2.0, 0]]), (200, 400))
    flip = plain.then(np.array([[-1.0, 0, 200], [0, 1.0, 0]]), (100, 200))
    seen = [
        (plain, detections((100, 200), [[10, 10, 50, 50], [100, 10, 140, 50]], [0.7, 0.9])),
        (double, detections((200, 400), [[20, 20, 100, 100]], [0.8])),
        (
            flip,
            detections((100, 200), [[60, 10, 100, 50]], [0.6]),
        ),  # 200 - 100 .. 200 - 60: the second object
    ]
    found = pooled(seen)
    assert found.boxes.tolist() == [[100, 10, 140, 50], [10, 10, 50, 50]]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.8]))
    assert found.size_hw == (100, 200)
    everything = pooled(seen, iou_threshold=1.0)
    assert len(everything) == 4


def test_soft_masks_follow_their_box_through_the_mirror():
    left_half = torch.zeros(1, 4, 4)
    left_half[..., :2] = 1
    flip = Frame.identity((100, 200)).then(np.array([[-1.0, 0, 200], [0, 1.0, 0]]), (100, 200))
    flipped_view = detections((100, 200), [[60, 10, 100, 50]], [0.6], RoiMasks(probabilities=left_half))
    plain = detections((100, 200), [], [], RoiMasks(probabilities=torch.zeros(0, 4, 4)))
    found = pooled([(Frame.identity((100, 200)), plain), (flip, flipped_view)])
    assert found.boxes.tolist() == [[100, 10, 140, 50]]
    torch.testing.assert_close(found.masks.probabilities, left_half.flip(-1))


def test_views_without_candidates():
    frame = Frame.identity((100, 200))
    nothing = detections((100, 200), [], [])
    assert len(pooled([(frame, nothing)] * 3)) == 0
    assert len(pooled([(frame, nothing)])) == 0
