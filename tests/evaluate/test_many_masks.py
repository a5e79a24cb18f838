"""More masks than fit into a byte."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as mask_api

from scantling.data.coco import read_coco
from scantling.data.io import write_json
from scantling.evaluate.inputs import eval_inputs


def test_the_areas_of_three_hundred_masks_are_counted(tmp_path):
    write_json(
        tmp_path / "train.json",
        {
            "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 20}],
            "categories": [{"id": 1, "name": "dot"}],
            "annotations": [],
        },
    )
    results = []
    for number in range(300):
        pixels = np.zeros((20, 20), dtype=np.uint8, order="F")
        pixels.flat[: number + 1] = 1
        rle = mask_api.encode(pixels)
        rle = {**rle, "counts": rle["counts"].decode()}
        results.append({"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": rle})
    areas = eval_inputs(read_coco(tmp_path / "train.json"), results, "segm").areas
    assert sorted(areas) == list(range(1, 301))
