from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scantling.structures.instances import Instances
from scantling.structures.masks import ImageMasks, RoiMasks
from scantling.structures.sample import Batch, Frame, Sample

ORIGINAL = (40, 60)
DOUBLE = np.array([[2.0, 0, 0], [0, 2, 0]])
CROP = np.array([[1.0, 0, -20], [0, 1, -10]])
FLIP = np.array([[-1.0, 0, 100], [0, 1, 0]])

maps = st.builds(
    lambda sx, sy, turn, tx, ty: np.array(
        [[sx * math.cos(turn), -sy * math.sin(turn), tx], [sx * math.sin(turn), sy * math.cos(turn), ty]]
    ),
    st.floats(0.2, 4),
    st.floats(0.2, 4),
    st.sampled_from([0, math.pi / 2, math.pi, -math.pi / 2]),
    st.floats(-50, 50),
    st.floats(-50, 50),
)


def blob(size_hw=ORIGINAL, box=(10, 5, 30, 25)):
    dense = np.zeros((1, *size_hw), dtype=bool)
    x1, y1, x2, y2 = box
    dense[0, y1:y2, x1:x2] = True
    dense[0, y1 : y1 + 4, x1 : x1 + 4] = False  # not symmetric
    return ImageMasks.from_dense(dense)


class TestFrame:
    box = torch.tensor([[10.0, 5.0, 30.0, 25.0]])

    def test_steps_compose_in_order(self):
        frame = Frame.identity(ORIGINAL).then(DOUBLE, (80, 120)).then(CROP, (60, 100)).then(FLIP, (60, 100))
        # doubled (20, 10, 60, 50), cropped (0, 0, 40, 40), mirrored in a width of 100
        assert frame.apply_boxes(self.box).tolist() == [[60.0, 0.0, 100.0, 40.0]]
        assert (frame.size_hw, frame.original_hw) == ((60, 100), ORIGINAL)
        assert frame.invert_boxes(torch.tensor([[60.0, 0.0, 100.0, 40.0]])).tolist() == self.box.tolist()

    @given(st.lists(maps, max_size=3))
    def test_inverse_undoes_any_chain_of_steps(self, steps):
        frame = Frame.identity(ORIGINAL)
        for step in steps:
            frame = frame.then(step, (500, 500))
        torch.testing.assert_close(
            frame.invert_boxes(frame.apply_boxes(self.box)), self.box, atol=0.02, rtol=0
        )
        whole = np.vstack([frame.matrix, [0, 0, 1]])
        np.testing.assert_allclose(frame.inverse() @ whole, np.eye(2, 3), atol=1e-9)

    def test_inverted_boxes_are_clipped_to_the_original(self):
        frame = Frame.identity(ORIGINAL).then(DOUBLE, (96, 128))
        assert frame.invert_boxes(torch.tensor([[-4.0, 0.0, 128.0, 96.0]])).tolist() == [
            [0.0, 0.0, 60.0, 40.0]
        ]

    def test_ground_truth_with_masks_returns_to_the_original(self):
        frame = (
            Frame.identity(ORIGINAL)
            .then(DOUBLE, (80, 120))
            .then(np.array([[-1.0, 0, 120], [0, 1, 0]]), (80, 120))
        )
        original = Instances(size_hw=ORIGINAL, boxes=self.box, labels=torch.tensor([3]), masks=blob())
        current = original.replace(
            size_hw=frame.size_hw,
            boxes=frame.apply_boxes(original.boxes),
            masks=original.masks.warp(frame.matrix, frame.size_hw),
        )
        back = frame.invert(current)
        assert back.boxes.tolist() == self.box.tolist()
        assert torch.equal(back.masks.to_dense(), blob().to_dense())
        assert (back.size_hw, back.labels.tolist()) == (ORIGINAL, [3])

    @pytest.mark.parametrize("mirror", [(-1, 1), (1, -1), (-1, -1), (1, 1)])
    def test_box_frame_masks_are_mirrored_back_with_their_boxes(self, mirror):
        sx, sy = mirror
        matrix = np.array([[sx, 0, 60.0 * (sx < 0)], [0, sy, 40.0 * (sy < 0)]])
        frame = Frame.identity(ORIGINAL).then(matrix, ORIGINAL)
        current = blob().warp(matrix, ORIGINAL)
        boxes = frame.apply_boxes(self.box)
        soft = RoiMasks(probabilities=current.crop_and_resize(boxes, 20))
        found = Instances(
            size_hw=ORIGINAL, boxes=boxes, labels=torch.tensor([0]), scores=torch.ones(1), masks=soft
        )
        back = frame.invert(found)
        assert torch.equal(back.masks.to_image(back.boxes, ORIGINAL).to_dense(), blob().to_dense())

    def test_box_frame_masks_cannot_be_turned_back(self):
        frame = Frame.identity(ORIGINAL).then(np.array([[0.0, -1, 40], [1, 0, 0]]), (60, 40))
        soft = RoiMasks(probabilities=torch.ones(1, 7, 7))
        rotated = Instances(size_hw=(60, 40), boxes=self.box, labels=torch.tensor([0]), masks=soft)
        with pytest.raises(ValueError, match="cannot be turned back"):
            frame.invert(rotated)

    def test_what_cannot_be_is_refused(self):
        with pytest.raises(ValueError, match=r"expected finite float64 \(2, 3\), found float64 \(3, 3\)"):
            Frame(matrix=np.eye(3), original_hw=ORIGINAL, size_hw=ORIGINAL)
        with pytest.raises(ValueError, match="invertible"):
            Frame.identity(ORIGINAL).then(np.zeros((2, 3)), ORIGINAL)
        with pytest.raises(ValueError, match="finite"):
            Frame.identity(ORIGINAL).then(np.full((2, 3), np.nan), ORIGINAL)
        with pytest.raises(ValueError, match=r"size_hw \(40, 60\), found \(9, 9\)"):
            Frame.identity(ORIGINAL).invert(Instances.empty((9, 9), scored=True))


def sample(size_hw, image_id, value=200):
    height, width = size_hw
    image = np.full((height, width, 3), value, dtype=np.uint8)
    image[0, 0] = (10, 20, 30)
    truth = Instances.empty(size_hw, scored=False)
    return Sample(
        image=image.transpose(2, 0, 1), instances=truth, frame=Frame.identity(size_hw), image_id=image_id
    )


class TestSample:
    def test_hwc_is_a_view_of_the_same_memory(self):
        one = sample((4, 6), 1)
        assert one.hwc.shape == (4, 6, 3)
        assert one.hwc[0, 0].tolist() == [10, 20, 30]
        assert np.shares_memory(one.hwc, one.image)
        assert one.hwc.flags.c_contiguous

    def test_what_does_not_fit_together_is_refused(self):
        one = sample((4, 6), 1)
        with pytest.raises(ValueError, match=r"uint8 \(3, H, W\), found uint8 \(4, 6, 3\)"):
            one.replace(image=one.hwc)
        with pytest.raises(ValueError, match=r"found float32 \(3, 4, 6\)"):
            one.replace(image=one.image.astype(np.float32))
        with pytest.raises(ValueError, match=r"size_hw \(4, 6\), found \(6, 4\) and \(4, 6\)"):
            one.replace(instances=Instances.empty((6, 4), scored=False))
        with pytest.raises(ValueError, match=r"found \(4, 6\) and \(6, 4\)"):
            one.replace(frame=Frame.identity((6, 4)))


class TestBatch:
    def test_images_are_padded_right_and_below_with_zeros(self):
        batch = Batch.collate([sample((4, 6), "a"), sample((7, 3), 2)], size_divisor=4)
        assert (batch.images.shape, batch.images.dtype) == ((2, 3, 8, 8), torch.uint8)
        assert (batch.sizes_hw, batch.image_ids) == ([(4, 6), (7, 3)], ["a", 2])
        for image, (height, width) in zip(batch.images, batch.sizes_hw, strict=True):
            assert image[:, 0, 0].tolist() == [10, 20, 30]
            assert (image[:, :height, :width].sum(dim=0) > 0).all()
            assert image.sum() == image[:, :height, :width].sum()

    def test_an_exact_multiple_is_not_padded(self):
        assert Batch.collate([sample((64, 32), 1)]).images.shape == (1, 3, 64, 32)

    def test_flipped_views_collate(self):
        one = sample((4, 6), 1)
        flipped = one.replace(image=one.image[:, :, ::-1])
        assert Batch.collate([flipped], 2).images[0, :, 0, -1].tolist() == [10, 20, 30]

    def test_survives_a_worker_process_and_moves(self):
        batch = pickle.loads(pickle.dumps(Batch.collate([sample((4, 6), 1)])))
        moved = batch.to("meta")
        assert (moved.images.device.type, moved.instances[0].boxes.device.type) == ("meta", "meta")
        assert (len(moved), moved.image_ids) == (1, [1])

    def test_what_cannot_be_is_refused(self):
        batch = Batch.collate([sample((4, 6), 1)])
        with pytest.raises(ValueError, match="at least one sample"):
            Batch.collate([])
        with pytest.raises(ValueError, match=r"uint8 \(B, 3, H, W\), found torch.float32"):
            dataclasses.replace(batch, images=batch.images.float())
        with pytest.raises(
            ValueError, match=r"expected 1 sizes, instances, frames and ids, found \[1, 1, 1, 2\]"
        ):
            dataclasses.replace(batch, image_ids=[1, 2])
