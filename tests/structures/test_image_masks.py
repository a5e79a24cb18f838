from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from scantling.errors import DataError
from scantling.ops.masks import rle_encode
from scantling.structures.masks import ImageMasks, RoiMasks

SIZE = (30, 50)
dense_masks = npst.arrays(np.bool_, st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(1, 9)))


def discs():
    """Three discs, the last empty."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    inside = [
        (columns - x) ** 2 + (rows - y) ** 2 <= r * r for x, y, r in ((12, 10, 8), (40, 20, 9), (0, 0, 0))
    ]
    return torch.from_numpy(np.stack(inside))


class TestImageMasks:
    @given(dense_masks)
    def test_dense_and_rle_come_back(self, dense):
        masks = ImageMasks.from_dense(dense)
        assert (masks.to_dense().numpy() == dense).all()
        again = ImageMasks.from_rles(masks.to_rles(), masks.size_hw)
        assert (again.to_dense().numpy() == dense).all()
        assert masks.to_rles() == [rle_encode(mask) for mask in dense]
        assert again.areas().tolist() == dense.sum(axis=(1, 2)).tolist() == masks.areas().tolist()

    @given(dense_masks)
    def test_boxes_are_tight_whatever_the_masks_were_made_from(self, dense):
        masks = ImageMasks.from_dense(dense)
        filled = dense.any(axis=(1, 2))
        expected = torchvision.ops.masks_to_boxes(torch.from_numpy(dense[filled])) + torch.tensor(
            [0, 0, 1.0, 1.0]
        )
        for made in (masks, ImageMasks.from_rles(masks.to_rles(), masks.size_hw)):
            assert made.boxes()[filled].tolist() == expected.tolist()
            assert made.boxes()[~filled].tolist() == [[0.0] * 4] * int((~filled).sum())

    def test_polygons(self):
        square, parts = (
            [[2, 3, 12, 3, 12, 8, 2, 8]],
            [[0, 0, 5, 0, 5, 5, 0, 5], [20, 20, 30, 20, 30, 25, 20, 25]],
        )
        masks = ImageMasks.from_polygons([square, parts], SIZE)
        assert masks.areas().tolist() == [50, 75]
        assert masks.boxes().tolist() == [[2, 3, 12, 8], [0, 0, 30, 25]]

    def test_memory_follows_the_objects(self):
        dense = np.zeros((1, 2000, 2000), dtype=bool)
        dense[0, 100:140, 300:350] = True
        [(patch, corner)] = ImageMasks.from_dense(dense)
        assert (patch.shape, corner, patch.dtype) == ((40, 50), (300, 100), np.uint8)

    def test_indexing_and_cat(self):
        masks = ImageMasks.from_dense(discs())
        for index in (torch.tensor([2, 0]), torch.tensor([True, False, True]), slice(1, 3)):
            assert torch.equal(masks[index].to_dense(), discs()[index])
        joined = ImageMasks.cat([masks[1:], ImageMasks.empty(SIZE), masks[:1]])
        assert torch.equal(joined.to_dense(), discs()[[1, 2, 0]])

    def test_nothing(self):
        none = ImageMasks.empty(SIZE)
        assert (len(none), none.to_rles(), list(none)) == (0, [], [])
        assert (none.to_dense().shape, none.areas().shape, none.boxes().shape) == ((0, *SIZE), (0,), (0, 4))
        assert none.crop_and_resize(torch.zeros(0, 4), 7).shape == (0, 7, 7)
        assert len(none.warp(np.eye(2, 3), (5, 5))) == 0

    def test_what_cannot_be_is_refused(self):
        masks = ImageMasks.from_dense(discs())
        with pytest.raises(DataError, match=r"expected \[50, 30\].*found \[30, 50\]"):
            ImageMasks.from_rles(masks.to_rles(), (50, 30))
        with pytest.raises(DataError, match="finite"):
            ImageMasks.from_polygons([[[0, 0, 5, 0, 5, math.nan]]], SIZE)
        with pytest.raises(ValueError, match="size_hw"):
            ImageMasks.from_rles([])
        with pytest.raises(ValueError, match=r"\(N, H, W\), found shape \(30, 50\)"):
            ImageMasks.from_dense(discs()[0])
        with pytest.raises(ValueError, match="one size_hw"):
            ImageMasks.cat([masks, ImageMasks.empty((9, 9))])
        with pytest.raises(ValueError, match=r"boxes \(3, 4\), found \(2, 4\)"):
            masks.crop_and_resize(torch.zeros(2, 4), 7)

    def test_warp_moves_all_masks_into_the_new_frame(self):
        moved = ImageMasks.from_dense(discs()).warp(np.array([[-1.0, 0, 50], [0, 1, 0]]), SIZE)
        assert torch.equal(moved.to_dense(), discs().flip(2))
        assert moved.size_hw == SIZE

    def test_targets_belong_to_their_boxes_even_when_masks_repeat(self):
        masks = ImageMasks.from_dense(discs())[torch.tensor([1, 0, 1])]
        boxes = torch.tensor([[30.5, 10.2, 48.0, 30.0], [2.0, 2.0, 25.0, 19.0], [0.0, 0.0, 50.0, 30.0]])
        rois = torch.cat([torch.arange(3.0)[:, None], boxes], dim=1)
        expected = torchvision.ops.roi_align(discs()[[1, 0, 1]].float()[:, None], rois, 14, aligned=True)[
            :, 0
        ]
        torch.testing.assert_close(masks.crop_and_resize(boxes, 14), expected, atol=1e-5, rtol=0)


class TestRoiMasks:
    def test_pasted_into_the_image(self):
        boxes = torch.tensor([[3.0, 4.0, 13.0, 9.0], [20.0, 20.0, 24.0, 30.0]])
        image = RoiMasks(probabilities=torch.stack([torch.ones(28, 28), torch.full((28, 28), 0.4)])).to_image(
            boxes, SIZE, threshold=0.45
        )
        assert image.size_hw == SIZE
        assert image.boxes().tolist() == [[3, 4, 13, 9], [0, 0, 0, 0]]
        assert image.areas().tolist() == [50, 0]

    def test_indexing_and_cat(self):
        soft = RoiMasks(probabilities=torch.rand(3, 5, 5))
        assert torch.equal(RoiMasks.cat([soft[1:], soft[:1]]).probabilities, soft.probabilities[[1, 2, 0]])

    def test_what_cannot_be_is_refused(self):
        with pytest.raises(ValueError, match=r"\(N, M, M\), found torch.float32 \(3, 5, 6\)"):
            RoiMasks(probabilities=torch.rand(3, 5, 6))
        with pytest.raises(ValueError, match="float16"):
            RoiMasks(probabilities=torch.rand(3, 5, 5).half())
        with pytest.raises(ValueError, match=r"\[5, 7\]"):
            RoiMasks.cat(
                [RoiMasks(probabilities=torch.rand(1, 5, 5)), RoiMasks(probabilities=torch.rand(1, 7, 7))]
            )
