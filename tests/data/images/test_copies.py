"""One picture under several names: found by path, bytes and pixels, and never torn apart by a split."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from scantling.data.coco import read_coco
from scantling.data.formats.locations import Location
from scantling.data.images.copies import groups_of_copies
from scantling.data.splitting import SplitPlan, deal_folds, join_groups, split_data
from scantling.errors import UsageError

SIDE = 24


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))


@pytest.fixture
def dataset(tmp_path):
    """Nine pictures, each three times: its file named twice, and the third time as a copy of bytes or of pixels."""
    folder = tmp_path / "images"
    folder.mkdir()
    images = []
    for n in range(9):
        picture(n).save(folder / f"{n}.png")
        copy = f"copy{n}.png" if n % 2 else f"copy{n}.bmp"
        if n % 2:
            shutil.copy(folder / f"{n}.png", folder / copy)
        else:
            picture(n).save(folder / copy)
        images += [(n, f"{n}.png"), (n + 10, f"./{n}.png"), (n + 20, copy)]
    content = {
        "images": [{"id": i, "file_name": name, "width": SIDE, "height": SIDE} for i, name in images],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [2, 2, 9, 9 + i % 4]} for i, _ in images
        ],
        "categories": [{"id": 1, "name": "bolt"}],
    }
    file = tmp_path / "all.json"
    file.write_text(json.dumps(content))
    return read_coco(file, folder)


def pictures_of(dataset, positions):
    return {dataset.images[position].id % 10 for position in positions}


def test_copies_are_found_by_path_bytes_and_pixels(dataset):
    groups = groups_of_copies(dataset.images)
    assert len(groups) == 9
    assert all(len(group) == 3 and len(pictures_of(dataset, group)) == 1 for group in groups)


def test_files_that_are_missing_or_damaged_equal_nothing_else(dataset):
    root = dataset.image_root
    (root / "copy1.png").write_bytes(b"no picture")
    (root / "copy3.png").unlink()
    sizes = sorted(len(group) for group in groups_of_copies(dataset.images))
    assert sizes == [2, 2, *[3] * 7]


def test_no_split_and_no_fold_has_what_another_has(dataset, tmp_path):
    parts = deal_folds(dataset, 4, seed=0)
    result = split_data(
        dataset, Location(dataset.file), tmp_path / "out", SplitPlan(ratios={"a": 1, "b": 1, "c": 1})
    )
    lists = [json.loads(file.read_text())["image_ids"] for file in result.files]
    for shown in ([pictures_of(dataset, part) for part in parts], [{i % 10 for i in ids} for ids in lists]):
        assert sum(map(len, shown)) == len(set.union(*shown)) == 9
    assert sorted(position for part in parts for position in part) == list(range(27))
    assert (result.num_groups, result.num_copies) == (9, 18)
    assert "18 images are copies of another one" in result.to_text()
    with pytest.raises(UsageError, match="9 different images cannot fill 10 folds"):
        deal_folds(dataset, 10, seed=0)


def test_groups_that_share_an_image_become_one():
    assert join_groups([[0, 3], [1, 2], [3, 5], [4]], 7) == [[0, 3, 5], [1, 2], [4], [6]]
    assert join_groups([], 3) == [[0], [1], [2]]
