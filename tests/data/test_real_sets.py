"""The real data sets read without an error; their counts are those of their own descriptions."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools.coco import COCO

from scantling.data.coco import find_split, read_coco
from scantling.data.health.images import usable_images
from scantling.data.health.leaks import compare_splits
from scantling.data.images.open import open_image
from scantling.errors import Severity

SETS = {
    "bccd": ("detection", {"train": (205, 2804), "val": (87, 1137), "test": (72, 945)}),
    "fruits_nuts": ("segmentation", {"train": (10, 85), "val": (2, 16), "test": (6, 64)}),
    "magnetic_tile": ("segmentation", {"train": (123, 134), "val": (46, 54), "test": (257, 254)}),
}


@pytest.mark.parametrize("name", SETS)
def test_real_sets_have_no_errors_and_no_warnings(real_data, name):
    task, counts = SETS[name]
    datasets = {}
    for split, expected in counts.items():
        file, root = find_split(real_data / name, split)
        dataset = usable_images(read_coco(file, root, task=task, require_instances=split == "train"))
        assert (len(dataset), dataset.num_annotations) == expected
        assert [f for f in dataset.findings if f.severity is not Severity.INFO] == []
        datasets[split] = dataset
    for split in ("val", "test"):
        assert compare_splits(datasets["train"], datasets[split]) == ()


@pytest.mark.parametrize("name", SETS)
def test_real_sets_agree_with_pycocotools(real_data, name):
    task, _ = SETS[name]
    file, root = find_split(real_data / name, "val")
    dataset = usable_images(read_coco(file, root, task=task), decode=True)
    truth = COCO(str(file))
    for index, image in enumerate(dataset.images):
        annotations = truth.imgToAnns[image.id]
        instances = dataset.instances(index, masks=task == "segmentation")
        assert instances.ids.tolist() == sorted(a["id"] for a in annotations)
        assert open_image(image.path, size_hw=image.size_hw).shape == (*image.size_hw, 3)
        for position, identifier in enumerate(instances.ids.tolist()):
            annotation = truth.anns[identifier]
            x, y, width, height = annotation["bbox"]
            corners = np.clip([x, y, x + width, y + height], 0, [*image.size_hw[::-1]] * 2)
            assert np.allclose(instances.boxes[position], corners, atol=1e-4)
            assert dataset.category_ids[int(instances.labels[position])] == annotation["category_id"]
            if task == "segmentation":
                mask = instances.masks[position : position + 1].to_dense()[0]
                assert np.array_equal(mask, truth.annToMask(annotation))
