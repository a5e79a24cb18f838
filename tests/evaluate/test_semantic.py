"""Intersection over union of score maps, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from scantling.data.coco import read_coco
from scantling.data.io import write_json
from scantling.evaluate.semantic import evaluate_score_maps
from scantling.structures.sample import Frame
from scantling.structures.score_maps import ScoreMap, ScoreMaps

SIZE = (10, 20)


@pytest.fixture
def dataset(tmp_path):
    """Two images of 20 x 10: a dent of 4 x 5 and a scratch of 10 x 2 with a crowd beside them; and an empty image."""

    def square(x, y, w, h):
        return [[x, y, x + w, y, x + w, y + h, x, y + h]]

    annotations = [
        {"category_id": 1, "bbox": [0, 0, 4, 5], "segmentation": square(0, 0, 4, 5)},
        {"category_id": 2, "bbox": [10, 0, 10, 2], "segmentation": square(10, 0, 10, 2)},
        {
            "category_id": 2,
            "bbox": [0, 8, 20, 2],
            "segmentation": {"size": [10, 20], "counts": [8, 2] * 20},
            "iscrowd": 1,
        },
    ]
    for number, annotation in enumerate(annotations):
        annotation |= {"id": number + 1, "image_id": 1, "iscrowd": annotation.get("iscrowd", 0)}
    images = [{"id": i, "file_name": f"{i}.png", "width": 20, "height": 10} for i in (1, 2)]
    categories = [{"id": 1, "name": "dent"}, {"id": 2, "name": "scratch"}, {"id": 3, "name": "hole"}]
    write_json(tmp_path / "a.json", {"images": images, "annotations": annotations, "categories": categories})
    return read_coco(tmp_path / "a.json")


def of_boxes(boxes, labels):
    """A map whose planes are certain inside boxes x1, y1, x2, y2."""
    planes = np.zeros((len(boxes), *SIZE), np.uint8)
    for plane, (x1, y1, x2, y2) in zip(planes, boxes, strict=True):
        plane[y1:y2, x1:x2] = 255
    return ScoreMap(planes=planes, labels=labels, frame=Frame.identity(SIZE))


def maps(*given):
    return ScoreMaps(len(given), lambda position: given[position])


def test_by_category(dataset):
    # dent: half of it found, and 10 pixels beside it; scratch: exact; the crowd's pixels count for nothing
    one = of_boxes([(2, 0, 6, 5), (10, 0, 20, 2)], (0, 1))
    one.planes[0, 8:] = 255
    found = evaluate_score_maps(maps(one, of_boxes([], ())), dataset)
    assert found.ious == {"dent": pytest.approx(10 / 30), "scratch": 1.0, "hole": None}
    assert found.mean_iou == pytest.approx((1 / 3 + 1) / 2)
    assert found.shares == {"dent": 0.5, "scratch": 1.0, "hole": None}
    # a category that is not there but predicted has the IoU 0
    wrong = evaluate_score_maps(maps(one, of_boxes([(0, 0, 5, 5)], (2,))), dataset)
    assert wrong.metrics["semantic/IoU/hole"] == 0.0
    assert wrong.metrics["semantic/mIoU"] == pytest.approx((1 / 3 + 1) / 3)


def test_of_the_foreground(dataset):
    one, nothing = of_boxes([(0, 0, 20, 2)], None), of_boxes([(0, 0, 5, 4)], None)
    found = evaluate_score_maps(maps(one, nothing), dataset)
    # truth 20 + 20; found 8 of the dent, all of the scratch; predicted 40 + 20 in the empty image
    assert found.mean_iou == pytest.approx(28 / (40 + 60 - 28))
    assert found.metrics == {
        "semantic/mIoU": pytest.approx(28 / 72),
        "semantic/IoU/foreground": pytest.approx(28 / 72),
        "semantic/found/dent": pytest.approx(0.4),
        "semantic/found/scratch": 1.0,
        "semantic/found/hole": None,
    }
    assert "foreground  0.389  0.700" in found.to_text()


def test_a_score_of_a_half_is_not_called(dataset):
    one = of_boxes([(0, 0, 4, 5)], None)
    one.planes[one.planes > 0] = 127
    assert evaluate_score_maps(maps(one, one), dataset).mean_iou == 0.0


def test_images_without_a_map_have_nothing_called(dataset):
    found = evaluate_score_maps(maps(None, of_boxes([], ())), dataset)
    assert (found.without, found.mean_iou) == (1, 0.0)
    assert "1 images have no map" in found.to_text()
