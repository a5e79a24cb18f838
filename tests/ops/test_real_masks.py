"""Every mask of the real data sets, as their own JSON holds it, against pycocotools."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from scantling.ops.masks import (
    polygons_to_rle,
    rle_area,
    rle_decode,
    rle_encode,
    rle_to_box,
)
from scantling.ops.overlaps import find_pairs
from scantling.structures.detections import object_column
from scantling.structures.masks import ImageMasks

ZERO = np.zeros(1, dtype=np.int64)


@pytest.mark.parametrize("name", ["magnetic_tile", "fruits_nuts"])
def test_masks_of_real_data(real_data, name):
    file = real_data / name / "annotations" / "val.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    content = json.loads(file.read_text(encoding="utf-8"))
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in content["annotations"]:
        segmentation, size_hw = annotation["segmentation"], sizes[annotation["image_id"]]
        if isinstance(segmentation, list):
            theirs = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size_hw))
            ours = polygons_to_rle(segmentation, size_hw)
        else:
            plain = isinstance(segmentation["counts"], list)
            theirs = coco_mask.frPyObjects(segmentation, *size_hw) if plain else segmentation
            ours = rle_encode(rle_decode(segmentation))
        assert (rle_decode(ours) == coco_mask.decode(theirs)).all()
        assert rle_area(ours) == coco_mask.area(theirs)
        x, y, width, height = coco_mask.toBbox(theirs)
        assert rle_to_box(ours) == (x, y, x + width, y + height)
        pair = find_pairs(ZERO, object_column([ours]), ZERO, object_column([theirs]))
        assert pair.iou.tolist() == [1.0]
        assert ImageMasks.from_rles([ours]).areas().item() == np.count_nonzero(coco_mask.decode(theirs))
