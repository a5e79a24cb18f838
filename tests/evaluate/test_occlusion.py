"""The occlusion metric: a case worked out by hand, a plain implementation of the description, and its edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from scantling.errors import UsageError
from scantling.evaluate.coco_eval import evaluate_results, interval_table, metrics_json
from scantling.evaluate.occlusion import cut_off_of
from scantling.ops.rle import rle_decode, rle_encode

SIZE_HW = (240, 320)


def drawn(rows: str, at: tuple[int, int] = (0, 0)) -> np.ndarray:
    """A mask in the data set's frame from a picture of `#` and `.`, its upper left corner at (x, y)."""
    lines = rows.split()
    mask = np.zeros(SIZE_HW, dtype=bool)
    for y, line in enumerate(lines):
        for x, letter in enumerate(line):
            mask[at[1] + y, at[0] + x] = letter == "#"
    return mask


def truth(mask: np.ndarray, image_id: int = 1, category_id: int = 0, **more: Any) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
    shape = {"image_id": image_id, "category_id": category_id, "bbox": box, "segmentation": rle_encode(mask)}
    return shape | more


def found(mask: np.ndarray, score: float, image_id: int = 1, category_id: int = 0) -> dict[str, Any]:
    return truth(mask, image_id, category_id) | {"score": score}


def measured(make_dataset, truths, results, **more):
    dataset = make_dataset(truths, categories=((0, "human"), (1, "ball")))
    return evaluate_results(dataset, results, iou_type="segm", occlusion=True, **more)


BROKEN = """
###.##.
###....
......#
"""
"""A body of 6 pixels, a part of 2 and a part of 1."""


def test_a_case_worked_out_by_hand(make_dataset):
    """A is found by P (IoU 8/9); of its three pixels cut off P has the first two, the first shared with Q.

    OIR: A found, B (in two parts, no prediction above 0.5) not: 1/2. The whole C does not count.
    DPR: 0.8 / (0.8 + 0.4) for the first pixel, 1 for the second, 0 for the third: (2/3 + 1) / 3 = 5/9.
    """
    a, b, c = drawn(BROKEN), drawn("####..##", (20, 0)), drawn("####", (40, 0))
    p, q = drawn("###.## ###...."), drawn("....#...")
    results = [found(p, 0.8), found(q, 0.4), found(c, 0.9), found(drawn("##", (20, 0)), 0.9)]
    evaluation = measured(make_dataset, [truth(a), truth(b), truth(c)], results)
    assert evaluation.metrics["OIR"] == pytest.approx(1 / 2, abs=1e-12)
    assert evaluation.metrics["DPR"] == pytest.approx(5 / 9, abs=1e-12)
    assert evaluation.metrics["OM"] == pytest.approx(5 / 18, abs=1e-12)
    assert "OM = 0.278, OIR = 0.500, DPR = 0.556 (1 of 2 objects in several parts found)" in evaluation.table
    assert metrics_json([evaluation])["segm/OM"] == evaluation.metrics["OM"]


def test_a_detection_of_another_category_takes_no_share(make_dataset):
    a = drawn(BROKEN)
    results = [found(a, 0.5), found(a, 0.5, category_id=1)]
    assert measured(make_dataset, [truth(a)], results).metrics["OM"] == 1
    results = [found(a, 0.5), found(a, 0.5)]
    assert measured(make_dataset, [truth(a)], results).metrics["OM"] == pytest.approx(0.5)


def test_an_overlap_of_exactly_one_half_finds_nothing(make_dataset):
    whole, half = drawn("##....##"), drawn("##")
    evaluation = measured(make_dataset, [truth(whole)], [found(half, 0.9)])
    assert (evaluation.metrics["OIR"], evaluation.metrics["OM"]) == (0, 0)
    assert evaluation.metrics["DPR"] is None


def test_the_largest_overlap_is_the_match_whatever_the_score(make_dataset):
    """The better detection, of the lower score, has the part cut off; the other one only the body."""
    a = drawn(BROKEN)
    body = drawn("### ###")
    evaluation = measured(make_dataset, [truth(a)], [found(body, 0.9), found(a, 0.1)])
    assert evaluation.metrics["OM"] == 1


def test_one_detection_finds_one_truth(make_dataset):
    """Two labels of one object: a single detection finds one of them."""
    a = drawn(BROKEN)
    evaluation = measured(make_dataset, [truth(a), truth(a)], [found(a, 0.9)])
    assert evaluation.metrics["OIR"] == 0.5


def test_a_crowd_region_and_an_ignored_object_count_neither_way(make_dataset):
    a, b = drawn(BROKEN), drawn(BROKEN, (50, 50))
    truths = [truth(a), truth(b, iscrowd=1), truth(b, ignore=1)]
    evaluation = measured(make_dataset, truths, [found(a, 0.9), found(b, 0.9)])
    assert "(1 of 1 objects" in evaluation.table


def test_pixels_that_touch_at_a_corner_are_one_part():
    cut_off, _ = cut_off_of(rle_encode(drawn("##. ##. ..#")))
    assert not cut_off.any()
    cut_off, (x, y) = cut_off_of(rle_encode(drawn("##..#", (7, 9))))
    assert cut_off.tolist() == [[False, False, False, False, True]]
    assert (x, y) == (7, 9)
    assert not cut_off_of(rle_encode(np.zeros((4, 4), dtype=bool)))[0].any()


def test_without_an_object_in_parts_it_is_undefined(make_dataset):
    mask = drawn("####")
    evaluation = measured(make_dataset, [truth(mask)], [found(mask, 0.9)])
    assert [evaluation.metrics[key] for key in ("OM", "OIR", "DPR")] == [None, None, None]
    assert "OM" not in evaluation.table
    assert measured(make_dataset, [truth(drawn(BROKEN))], []).metrics["OM"] == 0


def test_a_score_of_zero_has_nothing_of_a_pixel(make_dataset):
    a = drawn(BROKEN)
    assert measured(make_dataset, [truth(a)], [found(a, 0.0)]).metrics["OM"] == 0


def test_boxes_have_no_occlusion(make_dataset):
    with pytest.raises(UsageError, match="masks"):
        evaluate_results(make_dataset([]), [], occlusion=True)


def test_it_has_an_interval_over_images(make_dataset):
    """Image 1 is found whole, image 2 not at all: draws with both, one and none of them."""
    a = drawn(BROKEN)
    truths = [truth(a, 1), truth(a, 2)]
    evaluation = measured(make_dataset, truths, [found(a, 0.9)], bootstrap=200)
    assert evaluation.metrics["OM"] == 0.5
    assert evaluation.intervals["OM"] == (0, 1)
    assert " OM    0.500  [0.000, 1.000]" in interval_table(evaluation)


@pytest.mark.parametrize("seed", range(3))
def test_it_equals_a_plain_implementation(make_dataset, seed):
    """Dense arrays, scipy's parts and a loop over pixels, on crowded images."""
    generator = np.random.default_rng(seed)
    truths, results = [], []
    for image_id in (1, 2, 3):
        for _ in range(5):
            mask = blobs(generator)
            truths.append(truth(mask, image_id))
            for _ in range(3):
                shifted = np.roll(mask, generator.integers(-2, 3, 2), (0, 1)) | (
                    blobs(generator) & (generator.random() < 0.3)
                )
                results.append(found(shifted, float(generator.random()), image_id))
    evaluation = measured(make_dataset, truths, results)
    expected = plain(truths, results)
    assert evaluation.metrics["OIR"] == pytest.approx(expected[0])
    assert evaluation.metrics["DPR"] == pytest.approx(expected[1])
    assert 0 < evaluation.metrics["OM"] == pytest.approx(expected[0] * expected[1])


def blobs(generator: np.random.Generator) -> np.ndarray:
    """A mask of one to three rectangles in a corner of the image."""
    mask = np.zeros(SIZE_HW, dtype=bool)
    for _ in range(generator.integers(1, 4)):
        y, x = generator.integers(4, 60, 2)
        mask[y : y + generator.integers(6, 20), x : x + generator.integers(6, 20)] = True
    return mask


def plain(truths, results):
    """OIR and DPR."""
    split = hits = pixels = recalled = 0
    for image_id in {each["image_id"] for each in truths}:
        own = [rle_decode(each["segmentation"]) for each in truths if each["image_id"] == image_id]
        other = sorted((r for r in results if r["image_id"] == image_id), key=lambda r: -r["score"])
        masks, scores = (
            [rle_decode(each["segmentation"]) for each in other],
            [each["score"] for each in other],
        )
        iou = np.array([[(a & b).sum() / (a | b).sum() for b in masks] for a in own])
        match = {}
        while iou.max() > 0.5:
            row, column = np.unravel_index(iou.argmax(), iou.shape)
            match[row], iou[row], iou[:, column] = column, 0, 0
        for row, mask in enumerate(own):
            parts, count = ndimage.label(mask, np.ones((3, 3)))
            if count < 2:
                continue
            split += 1
            if row not in match:
                continue
            hits += 1
            body = 1 + np.argmax(ndimage.sum_labels(mask, parts, range(1, count + 1)))
            for y, x in np.argwhere(mask & (parts != body)):
                pixels += 1
                if masks[match[row]][y, x]:
                    here = sum(score for score, seen in zip(scores, masks, strict=True) if seen[y, x])
                    recalled += scores[match[row]] / here
    return hits / split, recalled / pixels
