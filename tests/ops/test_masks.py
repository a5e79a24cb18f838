from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from scantling.errors import DataError
from scantling.ops.masks import (
    check_polygons,
    crop_masks,
    paste_masks,
    paste_patches,
    polygons_to_rle,
    rle_area,
    rle_decode,
    rle_encode,
    rle_to_patch,
    warp_patch,
)

IDENTITY = np.eye(2, 3)


def ellipse(size_hw, centre, radii):
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]] + 0.5
    return ((columns - centre[0]) / radii[0]) ** 2 + ((rows - centre[1]) / radii[1]) ** 2 <= 1


def patch_of(mask):
    return rle_to_patch(rle_encode(mask))


def dense(patch, corner, size_hw):
    """The whole image of a patch."""
    image = np.zeros(size_hw, dtype=np.uint8)
    x, y = corner
    image[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
    return image


def iou(a, b):
    return np.logical_and(a, b).sum() / np.logical_or(a, b).sum()


class TestPolygons:
    def test_a_rectangle_on_pixel_edges_fills_those_pixels(self):
        mask = rle_decode(polygons_to_rle([[2, 1, 6, 1, 6, 4, 2, 4]], (6, 8)))
        expected = np.zeros((6, 8), dtype=bool)
        expected[1:4, 2:6] = True
        assert (mask == expected).all()

    def test_several_parts_and_a_bow_tie_agree_with_pycocotools(self):
        parts = [[1.5, 1, 20, 3.25, 11, 17], [30, 5, 50, 25, 50, 5, 30, 25]]
        expected = coco_mask.merge(
            coco_mask.frPyObjects([[float(v) for v in part] for part in parts], 40, 60)
        )
        assert polygons_to_rle(parts, (40, 60))["counts"] == expected["counts"].decode()

    def test_what_leaves_the_image_is_cut_off(self):
        assert rle_area(polygons_to_rle([[-10, -10, 5, -10, 5, 5, -10, 5]], (20, 20))) == 25
        assert rle_area(polygons_to_rle([[100, 100, 120, 100, 120, 120]], (20, 20))) == 0

    def test_no_outline_is_an_empty_mask(self):
        assert not rle_decode(polygons_to_rle([], (4, 5))).any()

    @pytest.mark.parametrize(
        ("polygons", "message"),
        [
            ([[0, 0, 5, math.nan, 5, 5]], "finite"),
            ([[0, 0, 5, math.inf, 5, 5]], "finite"),
            ([[0, 0, 1e9, 0, 5, 5]], "near the image"),
            ([[1e9, 1e9, 1e9, 1e9, 1e9, 1e9]], "near the image"),
            ([[0, 0, 10**400, 0, 5, 5]], "near the image"),
            ([[0, 0, 3e5, 3e5] * 50], "near the image"),
            ([[0, 0, 5, 5]], "found 4 numbers"),
            ([[0, 0, 5, 0, 5]], "found 5 numbers"),
            ([[]], "found 0 numbers"),
            ([0, 0, 5, 0, 5, 5], "expected a list"),
            (["0,0,5,0,5,5"], "expected a list"),
            ("0 0 5 0 5 5", "expected a list of outlines"),
            ([[0, 0, 5, None, 5, 5]], "numbers only"),
            ([[0, 0, 5, True, 5, 5]], "numbers only"),
            ([[0, 0, 5, "5", 5, 5]], "numbers only"),
            ({"size": [3, 4]}, "expected a list of outlines"),
        ],
    )
    def test_what_would_bring_native_code_down_is_refused(self, polygons, message):
        with pytest.raises(DataError, match=message):
            check_polygons(polygons)
        with pytest.raises(DataError, match=message):
            polygons_to_rle(polygons, (20, 20))

    def test_an_image_too_large_is_refused(self):
        with pytest.raises(DataError, match="found 100000 x 100000"):
            polygons_to_rle([[0, 0, 5, 0, 5, 5]], (100_000, 100_000))


class TestCrop:
    size_hw = (60, 80)
    boxes = torch.tensor(
        [
            [10.0, 8.0, 50.0, 40.0],  # around
            [12.3, 9.7, 31.2, 22.9],  # inside, between pixels
            [0.0, 0.0, 80.0, 60.0],  # the whole image
            [-7.5, -3.0, 30.0, 64.0],  # beyond the image
            [60.0, 50.0, 70.0, 58.0],  # beside the object
            [20.0, 20.0, 20.6, 20.4],  # within one pixel
        ]
    )

    @pytest.mark.parametrize(
        "centre", [(30, 25), (4, 3), (77, 57)]
    )  # in the middle, cut by two borders, by the others
    def test_equals_roi_align_of_the_dense_mask(self, centre):
        mask = ellipse(self.size_hw, centre, (17, 12))
        patch, corner = patch_of(mask)
        targets = crop_masks([patch] * 6, np.array([corner] * 6), self.boxes, 14, self.size_hw)
        image = torch.from_numpy(mask).float()[None, None]
        expected = torchvision.ops.roi_align(image, [self.boxes], 14, aligned=True)[:, 0]
        torch.testing.assert_close(targets, expected, atol=1e-5, rtol=0)

    def test_each_mask_goes_with_its_own_box(self):
        masks = [ellipse(self.size_hw, (20, 20), (9, 9)), ellipse(self.size_hw, (60, 40), (9, 9))]
        patches, corners = zip(*(patch_of(mask) for mask in masks), strict=True)
        around = torch.tensor([[51.0, 31.0, 69.0, 49.0], [11.0, 11.0, 29.0, 29.0]])
        missed = crop_masks(patches, np.array(corners), around, 7, self.size_hw)
        met = crop_masks(patches, np.array(corners), around.flip(0), 7, self.size_hw)
        assert missed.abs().max() == 0
        assert met.mean(dim=(1, 2)).tolist() == pytest.approx([math.pi / 4] * 2, abs=0.03)

    def test_none_and_empty_masks(self):
        none = crop_masks([], np.zeros((0, 2), dtype=np.int64), torch.zeros(0, 4), 7, self.size_hw)
        assert none.shape == (0, 7, 7)
        empty = np.zeros((0, 0), dtype=np.uint8)
        assert (
            crop_masks([empty], np.zeros((1, 2), dtype=np.int64), self.boxes[:1], 7, self.size_hw).sum() == 0
        )


class TestPaste:
    size_hw = (50, 70)
    boxes = torch.tensor(
        [
            [10.0, 8.0, 38.0, 36.0],
            [10.3, 8.7, 31.2, 22.9],
            [-12.5, -3.25, 30.0, 64.0],
            [60.2, 40.1, 90.0, 70.0],
            [20.2, 20.1, 20.9, 20.8],
            [100.0, 100.0, 120.0, 130.0],
            [30.0, 30.0, 30.0, 40.0],
        ]
    )

    def probabilities(self, count=7):
        return torch.rand(count, 14, 14, generator=torch.Generator().manual_seed(1))

    def by_grid_sample(self, square, box):
        """The whole image sampled from one square mask."""
        height, width = self.size_hw
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        u = (x.double() - box[0]) / (box[2] - box[0]) * 2 - 1
        v = (y.double() - box[1]) / (box[3] - box[1]) * 2 - 1
        grid = torch.stack([u, v], dim=-1)[None]
        return F.grid_sample(square.double()[None, None], grid, align_corners=False)[0, 0]

    @pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
    def test_equals_sampling_the_whole_image(self, threshold):
        pasted = paste_masks(self.probabilities(), self.boxes, self.size_hw, threshold)
        for square, box, rle in zip(
            self.probabilities()[:6], self.boxes[:6].double(), pasted[:6], strict=True
        ):
            sampled = self.by_grid_sample(square, box)
            clear = (sampled - threshold).abs() > 1e-4
            assert (rle_decode(rle) == (sampled >= threshold).numpy())[clear.numpy()].all()
        assert rle_area(pasted[6]) == 0  # a box without extent

    def test_a_full_mask_fills_exactly_its_box(self):
        mask = rle_decode(
            paste_masks(torch.ones(1, 28, 28), torch.tensor([[3.0, 4.0, 13.0, 9.0]]), (20, 20))[0]
        )
        expected = np.zeros((20, 20), dtype=bool)
        expected[4:9, 3:13] = True
        assert (mask == expected).all()

    def test_the_size_of_the_chunks_does_not_matter(self):
        whole = paste_masks(self.probabilities(), self.boxes, self.size_hw)
        assert paste_masks(self.probabilities(), self.boxes, self.size_hw, max_pixels=60) == whole

    def test_memory_follows_the_boxes_not_instances_times_pixels(self):
        corner = torch.rand(60, 2, generator=torch.Generator().manual_seed(0)) * 2900
        boxes = torch.cat([corner, corner + 80], dim=1)
        tracemalloc.start()
        patches, _ = paste_patches(self.probabilities(60), boxes, (3000, 3000))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(patches) == 60
        assert peak < 4_000_000  # 60 x 3000 x 3000 booleans alone are 540 MB

    def test_a_box_as_large_as_the_image_is_pasted_in_bounded_chunks(self):
        tracemalloc.start()
        paste_patches(
            torch.ones(1, 28, 28), torch.tensor([[0.0, 0.0, 4000.0, 3000.0]]), (3000, 4000), 0.5, 1 << 16
        )
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 20_000_000  # the patch itself has 12 MB; as float32 it would have 48

    def test_nothing_and_nonsense(self):
        assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (5, 5)) == []
        with pytest.raises(ValueError, match=r"found \(2, 28, 28\) and \(1, 4\)"):
            paste_masks(torch.zeros(2, 28, 28), torch.zeros(1, 4), (5, 5))
        with pytest.raises(ValueError, match="finite"):
            paste_masks(torch.zeros(1, 28, 28), torch.tensor([[0.0, 0.0, math.nan, 4.0]]), (5, 5))
        with pytest.raises(ValueError, match="threshold"):
            paste_masks(torch.zeros(1, 28, 28), torch.ones(1, 4), (5, 5), threshold=0.0)

    def test_absurd_boxes_stay_within_the_image(self):
        boxes = torch.tensor([[-1e9, -1e9, 1e9, 1e9], [1e9, 1e9, 2e9, 2e9], [5.0, 5.0, -5.0, -5.0]])
        areas = [rle_area(rle) for rle in paste_masks(torch.ones(3, 28, 28), boxes, (20, 30))]
        assert areas == [600, 0, 0]

    @given(
        centre=st.tuples(st.floats(20, 60), st.floats(20, 60)),
        radii=st.tuples(st.floats(9, 30), st.floats(9, 30)),
        margin=st.floats(0, 2),
    )
    def test_crop_then_paste_returns_a_smooth_shape(self, centre, radii, margin):
        mask = ellipse((80, 80), centre, radii)
        patch, (x, y) = patch_of(mask)
        box = torch.tensor(
            [[x - margin, y - margin, x + patch.shape[1] + margin, y + patch.shape[0] + margin]]
        )
        square = crop_masks([patch], np.array([[x, y]]), box, 28, (80, 80))
        assert iou(rle_decode(paste_masks(square, box, (80, 80))[0]), mask) > 0.95


class TestWarp:
    size_hw = (40, 60)
    mask = ellipse((40, 60), (25, 18), (14, 9))

    def warped(self, matrix, size_hw):
        moved, corner = warp_patch(*patch_of(self.mask), np.asarray(matrix, dtype=np.float64), size_hw)
        return dense(moved, corner, size_hw)

    def test_identity_shift_and_flip_are_exact(self):
        assert (self.warped(IDENTITY, self.size_hw) == self.mask).all()
        assert (
            self.warped([[1, 0, 5], [0, 1, -3]], self.size_hw) == np.roll(self.mask, (-3, 5), (0, 1))
        ).all()
        assert (self.warped([[-1, 0, 60], [0, 1, 0]], self.size_hw) == self.mask[:, ::-1]).all()
        assert (self.warped([[1, 0, 0], [0, -1, 40]], self.size_hw) == self.mask[::-1]).all()
        assert (self.warped([[0, 1, 0], [1, 0, 0]], (60, 40)) == self.mask.T).all()

    @pytest.mark.parametrize("scale", [3.0, 1.7, 0.75, 0.5, 0.31])
    def test_scaling_agrees_with_the_scaled_shape(self, scale):
        size_hw = (math.ceil(40 * scale), math.ceil(60 * scale))
        expected = ellipse(size_hw, (25 * scale, 18 * scale), (14 * scale, 9 * scale))
        assert iou(self.warped([[scale, 0, 0], [0, scale, 0]], size_hw), expected) > 0.93

    def test_cut_off_at_the_border_of_the_new_frame(self):
        cropped = self.warped([[1, 0, -20], [0, 1, -10]], (15, 10))
        assert (cropped == self.mask[10:25, 20:30]).all()

    def test_what_leaves_the_frame_is_empty(self):
        moved, corner = warp_patch(*patch_of(self.mask), np.array([[1.0, 0, 500], [0, 1, 0]]), self.size_hw)
        assert (moved.shape, corner) == ((0, 0), (0, 0))
        empty = np.zeros((0, 0), dtype=np.uint8)
        assert warp_patch(empty, (0, 0), IDENTITY, self.size_hw)[0].shape == (0, 0)

    def test_shrinking_keeps_the_area_of_a_fine_pattern(self):
        stripes = np.zeros((64, 64), dtype=bool)
        stripes[:, ::4] = stripes[:, 1::4] = stripes[:, 2::4] = True  # three quarters covered
        moved, _ = warp_patch(*patch_of(stripes), np.array([[0.125, 0, 0], [0, 0.125, 0]]), (8, 8))
        assert moved.sum() == 64

    def test_turned_there_and_back(self):
        c, s = math.cos(0.5), math.sin(0.5)
        turn = np.array([[c, -s, 30.0], [s, c, 20.0]])
        back = np.hstack([turn[:, :2].T, -turn[:, :2].T @ turn[:, 2:]])
        moved = warp_patch(*patch_of(self.mask), turn, (100, 100))
        returned, corner = warp_patch(*moved, back, self.size_hw)
        assert iou(dense(returned, corner, self.size_hw), self.mask) > 0.93
