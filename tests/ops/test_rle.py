"""Run-length masks against pycocotools, and against what damaged and hostile files hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as coco_mask

from scantling.errors import DataError
from scantling.ops.masks import (
    check_rle,
    patch_to_rle,
    rle_area,
    rle_counts,
    rle_decode,
    rle_encode,
    rle_from_uncompressed,
    rle_to_box,
    rle_to_patch,
)

# 3 rows, 4 columns; read down the columns: 0 0 1 | 1 1 0 | 0 0 0 | 0 0 1
SMALL = np.array([[0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 1]], dtype=bool)
SMALL_COUNTS = [2, 3, 6, 1]

masks = npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


def native(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def large_mask(seed):
    """Objects of long runs and many, so that counts need one to four characters and differences of both signs."""
    rng = np.random.default_rng(seed)
    mask = rng.random((700, 900)) < rng.choice([0.001, 0.5, 0.999])
    mask[:, 100:400] = rng.random() < 0.5
    mask[200:500, 500:800] = True
    return mask


def test_hand_derived():
    rle = rle_from_uncompressed(SMALL_COUNTS, (3, 4))
    assert (
        rle_encode(SMALL) == rle == {"size": [3, 4], "counts": "236N"}
    )  # third count -2: 1 less 3, two before
    assert rle_counts(rle).tolist() == SMALL_COUNTS
    assert rle_decode(rle).tolist() == SMALL.tolist()
    assert (rle_area(rle), rle_to_box(rle)) == (4, (0.0, 0.0, 4.0, 3.0))


@pytest.mark.parametrize("seed", range(6))
def test_large_masks_agree_with_pycocotools(seed):
    mask = large_mask(seed)
    theirs, ours = native(mask), rle_encode(mask)
    assert ours["counts"] == theirs["counts"].decode()
    assert (rle_decode(theirs) == mask).all()
    assert rle_area(ours) == coco_mask.area(theirs)


@given(masks)
def test_small_masks_agree_with_pycocotools_and_come_back(mask):
    theirs, ours = native(mask), rle_encode(mask)
    assert ours["counts"] == theirs["counts"].decode()
    assert (rle_decode(ours) == mask).all()
    assert rle_area(ours) == mask.sum()
    rows, columns = np.nonzero(mask)
    tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else (0, 0, 0, 0)
    x1, y1, x2, y2 = rle_to_box(ours)
    assert (x1, x2) == (tight[0], tight[2])
    assert y1 <= tight[1]  # a run over a column's end makes the box full height, as COCO's own box does
    assert y2 >= tight[3]


@given(masks, st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_a_patch_encodes_like_the_image_around_it(mask, left, top, right, bottom):
    image = np.pad(mask, ((top, bottom), (left, right)))
    rle = patch_to_rle(mask, (left, top), image.shape)
    assert rle == rle_encode(image)
    patch, (x, y) = rle_to_patch(rle)
    assert patch.sum() == mask.sum()
    assert patch_to_rle(patch, (x, y), image.shape) == rle
    assert patch.dtype == np.uint8


def test_a_patch_is_as_small_as_the_object():
    image = np.zeros((1000, 1000), dtype=bool)
    image[400:420, 600:630] = True
    patch, corner = rle_to_patch(rle_encode(image))
    assert (patch.shape, corner, patch.all()) == ((20, 30), (600, 400), True)
    empty, _ = rle_to_patch(rle_encode(image & False))
    assert empty.shape == (0, 0)


def test_a_patch_outside_the_image_is_refused():
    with pytest.raises(ValueError, match="leaves the image 10 x 10"):
        patch_to_rle(np.ones((5, 5)), (6, 0), (10, 10))


@pytest.mark.parametrize("kind", [str, bytes, list])
def test_text_bytes_and_plain_lists_are_read(kind):
    text = rle_encode(SMALL)["counts"]
    counts = {str: text, bytes: text.encode(), list: SMALL_COUNTS}[kind]
    assert rle_decode({"size": [3, 4], "counts": counts}).tolist() == SMALL.tolist()


GOOD = rle_encode(SMALL)["counts"]


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [4, 4], "counts": GOOD}, r"expected 16 pixels \(4 x 4\) in all, found 12"),
        ({"size": [2, 4], "counts": GOOD}, "expected 8 pixels"),
        ({"size": [3, 4], "counts": GOOD[:-1]}, "expected 12 pixels"),
        ({"size": [3, 4], "counts": GOOD + "o"}, "cut off"),
        ({"size": [3, 4], "counts": "oooooooooooo0"}, "cut off or damaged"),
        ({"size": [3, 4], "counts": "oooooo1"}, "expected at most"),
        ({"size": [3, 4], "counts": "b'2361'"}, "expected characters"),
        ({"size": [3, 4], "counts": "23 1"}, "expected characters"),
        ({"size": [3, 4], "counts": "23\u00e91"}, "expected characters"),
        ({"size": [3, 4], "counts": ""}, "expected 12 pixels"),
        ({"size": [3, 4], "counts": [2, 3, 6, 2]}, "found 13"),
        ({"size": [3, 4], "counts": [14, -2]}, "found -1"),
        ({"size": [3, 4], "counts": [2, 3, 6, 10**4000]}, "in all, found"),
        ({"size": [3, 4], "counts": [2.0, 3, 6, 1]}, "list of integers"),
        ({"size": [3, 4], "counts": None}, "found None"),
        ({"size": [3, 4]}, "found None"),
        ({"counts": GOOD}, "found None"),
        ({"size": [100_000, 100_000], "counts": GOOD}, "found 100000 x 100000"),
        ({"size": [0, 4], "counts": GOOD}, "found 0 x 4"),
        ({"size": [-3, -4], "counts": GOOD}, "found -3 x -4"),
        ({"size": ["3", 4], "counts": GOOD}, "two integers"),
        ({"size": [3.0, 4.0], "counts": GOOD}, "two integers"),
        ({"size": [True, 12], "counts": GOOD}, "two integers"),
        ({"size": [3, 4, 1], "counts": GOOD}, "two integers"),
    ],
)
def test_damaged_and_hostile_encodings_are_refused_before_anything_is_allocated(rle, message):
    for read in (rle_counts, rle_decode, rle_area, rle_to_box, rle_to_patch, check_rle):
        with pytest.raises(DataError, match=message):
            read(rle)


def test_another_image_size_is_refused():
    check_rle(rle_encode(SMALL), (3, 4))
    with pytest.raises(DataError, match=r"expected \[4, 3\].*found \[3, 4\]"):
        check_rle(rle_encode(SMALL), (4, 3))


@given(st.text(alphabet=st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_any_text_is_either_refused_or_covers_the_image(text):
    try:
        counts = rle_counts({"size": [3, 4], "counts": text})
    except DataError:
        return
    assert counts.min() >= 0
    assert counts.sum() == 12
    assert rle_decode({"size": [3, 4], "counts": text}).shape == (3, 4)


def test_only_a_mask_with_pixels_can_be_encoded():
    with pytest.raises(ValueError, match=r"found shape \(0, 5\)"):
        rle_encode(np.zeros((0, 5)))
    with pytest.raises(ValueError, match=r"found shape \(2, 3, 4\)"):
        rle_encode(np.zeros((2, 3, 4)))
