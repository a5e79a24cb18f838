"""Round trips of COCO files, instances, subsets, layouts (what is read is written back unchanged)."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from scantling.data.coco import CocoDataset, find_split, read_coco, write_coco
from scantling.errors import DataError, UsageError


def by_id(records):
    return {record["id"]: record for record in records}


def test_what_is_read_is_written_back(content, write, tmp_path):
    dataset = read_coco(write(content), task="segmentation")
    write_coco(dataset.to_coco(), tmp_path / "copy.json")
    copy = json.loads((tmp_path / "copy.json").read_text())
    for key in ("images", "categories"):
        expected = by_id(content[key])
        assert all(expected[record["id"]].items() <= record.items() for record in copy[key])
        assert len(copy[key]) == len(expected)
    for record in copy["annotations"]:
        assert by_id(content["annotations"])[record["id"]].items() <= record.items()
    again = read_coco(tmp_path / "copy.json", dataset.image_root, task="segmentation")
    assert again.images == dataset.images
    assert again.categories == dataset.categories
    assert again.to_coco() == dataset.to_coco()


image_ids = st.one_of(
    st.lists(st.integers(-5, 2**70), min_size=1, max_size=4, unique=True),
    st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from([1.0, 2.5, 7, "7", 0, 1699999999999]), min_size=1, max_size=4, unique=True),
)
category_ids = st.sampled_from([[1, 3, 90], [0, 1, 2], [7, 100, 2**40], [5]]).flatmap(st.permutations)


@given(images=image_ids, categories=category_ids, data=st.data())
def test_round_trip_with_any_ids(tmp_path_factory, images, categories, data):
    side = st.floats(0.5, 40, width=32)
    boxes = st.tuples(st.floats(0, 59, width=32), st.floats(0, 39, width=32), side, side)
    annotations = [
        {
            "id": number,
            "image_id": data.draw(st.sampled_from(images)),
            "category_id": data.draw(st.sampled_from(categories)),
            "bbox": list(data.draw(boxes)),
            "area": data.draw(st.floats(0, 1e4)),
            "iscrowd": data.draw(st.integers(0, 1)),
        }
        for number in range(data.draw(st.integers(0, 5)))
    ]
    if annotations:  # else boxes that all look normalised, or like corners, are rightly refused now and then
        annotations[0]["bbox"] = [50.0, 30.0, 5.0, 5.0]
    content = {
        "images": [
            {"id": i, "file_name": f"{n}.png", "width": 60, "height": 40} for n, i in enumerate(images)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}", "supercategory": ""} for i in categories],
    }
    folder = tmp_path_factory.getbasetemp()
    write_coco(content, folder / "first.json")
    dataset = read_coco(folder / "first.json")
    written = dataset.to_coco()
    for key in ("images", "annotations", "categories"):
        assert sorted(map(repr, written[key])) == sorted(map(repr, content[key]))
    write_coco(written, folder / "second.json")
    assert read_coco(folder / "second.json", dataset.image_root).to_coco() == written


def test_labels_follow_the_sorted_ids_and_boxes_become_corners(content, write):
    dataset = read_coco(write(content))
    assert dataset.class_names == ("scratch", "dent")
    assert dataset.category_ids == (3, 90)
    assert [image.id for image in dataset.images] == [4, 7]
    instances = dataset.instances(1)
    assert instances.size_hw == (80, 100)
    assert instances.ids.tolist() == [12, 31]
    assert instances.labels.tolist() == [0, 1]
    assert instances.is_crowd.tolist() == [True, False]
    assert instances.boxes.tolist() == [[0, 0, 2, 80], [10, 20, 40, 60]]
    assert instances.boxes.dtype == torch.float32
    assert instances.scores is None
    assert instances.masks is None


def test_masks_are_those_of_pycocotools(content, write):
    path = write(content)
    truth = COCO(str(path))
    dataset = read_coco(path, task="segmentation")
    for index in range(len(dataset)):
        instances = dataset.instances(index, masks=True)
        dense = instances.masks.to_dense()
        for identifier, mask in zip(instances.ids.tolist(), dense, strict=True):
            assert np.array_equal(mask, truth.annToMask(truth.anns[identifier]))


def test_masks_are_only_made_when_asked_for_and_told_when_missing(content, write):
    del content["annotations"][0]["segmentation"]
    dataset = read_coco(write(content))
    assert dataset.instances(1).masks is None
    with pytest.raises(UsageError, match="annotation 31 has no mask"):
        dataset.instances(1, masks=True)


def test_an_image_without_objects(content, write):
    content["annotations"] = []
    instances = read_coco(write(content)).instances(0, masks=True)
    assert len(instances) == 0
    assert instances.boxes.shape == (0, 4)
    assert instances.masks.to_dense().shape == (0, 80, 100)


def test_subset_keeps_images_with_their_annotations(content, write):
    dataset = read_coco(write(content))
    part = dataset.subset([7])
    assert [image.id for image in part.images] == [7]
    assert part.num_annotations == 2
    assert part.categories == dataset.categories
    assert part.index_of == {7: 0}
    assert part.subset([]).num_annotations == 0
    with pytest.raises(UsageError, match="'7', 99"):
        dataset.subset([7, "7", 99])


def test_a_dataset_survives_pickling_to_worker_processes(content, write):
    dataset = read_coco(write(content))
    again: CocoDataset = pickle.loads(pickle.dumps(dataset))
    assert again.to_coco() == dataset.to_coco()


# ---------------------------------------------------------------- layouts


def make(folder, name, images, names=("a.jpg", "b.jpg")):
    """A COCO file naming these images, and the images where `images` says."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    records = [
        {"id": n, "file_name": file_name, "width": 9, "height": 9} for n, file_name in enumerate(names)
    ]
    file.write_text(json.dumps({"images": records, "annotations": [], "categories": []}))
    for file_name in names:
        path = folder / images / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return file


LAYOUTS = {
    "plain": ("annotations/train.json", "images", "train"),
    "per split": ("annotations/train.json", "images/train", "train"),
    "split folders": ("annotations/train.json", "train", "train"),
    "COCO": ("annotations/instances_val2017.json", "val2017", "val"),
    "COCO in images": ("annotations/instances_val2017.json", "images/val2017", "val"),
    "COCO plain": ("annotations/instances_train.json", "images", "train"),
    "Roboflow": ("train/_annotations.coco.json", "train", "train"),
    "Roboflow valid": ("valid/_annotations.coco.json", "valid", "val"),
    "VISION": ("inference/_annotations.coco.json", "inference", "test"),
    "beside the images": ("train.json", ".", "train"),
    "in the folder of the images' parent": ("train.json", "images", "train"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_find_split_knows_the_usual_layouts(tmp_path, layout):
    name, images, split = LAYOUTS[layout]
    file = make(tmp_path, name, images)
    (tmp_path / "images").mkdir(exist_ok=True)
    found, root = find_split(tmp_path, split)
    assert found == file
    assert root.resolve() == (tmp_path / images).resolve()
    assert read_coco(found).image_root.resolve() == root.resolve()
    assert read_coco(found, root).images[0].path.is_file()


def test_file_names_with_their_folder_decide_about_the_root(tmp_path):
    make(tmp_path, "annotations/train.json", ".", names=("images/train/a.jpg", "images/train/ü/b.jpg"))
    assert find_split(tmp_path, "train")[1].resolve() == tmp_path.resolve()


def test_relative_paths_find_the_images_too(tmp_path, monkeypatch):
    make(tmp_path, "annotations/train.json", "images")
    monkeypatch.chdir(tmp_path / "annotations")
    assert read_coco("train.json").image_root.resolve() == (tmp_path / "images").resolve()


def test_a_set_that_was_never_divided_is_told_how_to(tmp_path):
    make(tmp_path, "annotations/train.json", "images")
    for split, told in (("val", True), ("test", False)):
        with pytest.raises(DataError) as error:
            find_split(tmp_path, split)
        assert (f"`scantling split {tmp_path}:train --out splits`" in error.value.findings[0].hint) == told


def test_splits_that_cannot_be_found(tmp_path):
    make(tmp_path, "annotations/instances_val2014.json", "images")
    make(tmp_path, "annotations/instances_val2017.json", "images")
    make(tmp_path, "annotations/instances_trainval.json", "images")
    cases = {
        "train": ("no annotations of split 'train'", "instances_trainval.json"),
        "val": ("several files could be split 'val'", "instances_val2014.json, instances_val2017.json"),
    }
    for split, words in cases.items():
        with pytest.raises(DataError) as error:
            find_split(tmp_path, split)
        assert error.value.findings[0].code == "split-missing"
        assert all(word in str(error.value) for word in words)
    for folder, code in (
        (tmp_path / "no", "file-missing"),
        (tmp_path / "images" / "a.jpg", "file-unreadable"),
    ):
        with pytest.raises(DataError) as error:
            find_split(folder, "train")
        assert error.value.findings[0].code == code
