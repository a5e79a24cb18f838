"""Splits that are trained on together: one data set, whatever their ids and folders, and no `val` beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scantling.data.coco import joined
from scantling.data.splits import DataConfig, describe_run_data, log_run_data, read_run_data
from scantling.errors import DataError, UsageError
from scantling.recipe.recipe import parse_recipe
from scantling.synth.synth import SynthConfig, write_synth

TOGETHER = ("train", "val")


@pytest.fixture
def folder(tmp_path) -> Path:
    """VISION's layout: a folder of pictures for each split, annotations beside them, ids from 0 in each."""
    for number, (split, count) in enumerate({"train": 3, "val": 2, "inference": 2}.items()):
        drawn = tmp_path / f"drawn-{split}"
        write_synth(drawn, SynthConfig(size_hw=(96, 128)), splits={"train": count}, seed=number)
        content = json.loads((drawn / "annotations/train.json").read_text())
        place = tmp_path / "Cable" / split
        place.mkdir(parents=True)
        for index, image in enumerate(content["images"]):
            own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            (drawn / "images" / image["file_name"]).rename(place / f"{index}.png")
            image |= {"id": index, "file_name": f"{index}.png"}
            for annotation in own:
                annotation["new_image_id"] = index
        for index, annotation in enumerate(content["annotations"]):
            annotation |= {"id": index, "image_id": annotation.pop("new_image_id")}
        (place / "_annotations.coco.json").write_text(json.dumps(content))
    return tmp_path / "Cable"


def config_of(folder: Path, **changes) -> DataConfig:
    return DataConfig(root=str(folder), **changes)


def test_all_images_and_objects_are_there_once(folder, caplog):
    apart = read_run_data(config_of(folder), "inference")
    data = read_run_data(config_of(folder, train=TOGETHER), "inference")
    assert list(data.splits) == ["train", "inference"]
    parts = [apart.train, apart.val]
    assert [record.path for record in data.train.images] == [r.path for part in parts for r in part.images]
    assert [r.file_name for r in data.train.images] == [
        "train/0.png",
        "train/1.png",
        "train/2.png",
        "val/0.png",
        "val/1.png",
    ]
    assert [r.id for r in data.train.images] == [1, 2, 3, 4, 5]  # ids of both began at 0
    ids = [a.id for own in data.train.annotations for a in own]
    assert ids == list(range(1, len(ids) + 1))
    for index, (part, position) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
        mine, theirs = data.train.instances(index, masks=True), parts[part].instances(position, masks=True)
        assert mine.boxes.equal(theirs.boxes)
        assert mine.labels.equal(theirs.labels)
        assert mine.masks.areas().equal(theirs.masks.areas())
    caplog.set_level("INFO")
    log_run_data(data)
    assert "no validation split: the weights of the last step are kept" in caplog.text
    assert describe_run_data(data)["train"]["num_images"] == 5
    assert data.learned_hashes == {"train": data.hashes["train"]}
    assert data.hashes["train"] not in (apart.hashes["train"], apart.hashes["val"])
    (folder / "val/1.png").write_bytes((folder / "val/0.png").read_bytes() + b"\0")
    changed = read_run_data(config_of(folder, train=TOGETHER), "inference")
    assert changed.hashes["train"] != data.hashes["train"]


def test_ids_that_differ_stay_and_one_data_set_is_itself(folder):
    data = read_run_data(config_of(folder), "inference")
    assert joined([data.train]) is data.train
    other = data.val
    renamed = type(other)(
        **{
            **{name: getattr(other, name) for name in ("file", "image_root", "categories")},
            "images": tuple(
                type(r)(id=f"b{r.id}", file_name=r.file_name, path=r.path, size_hw=r.size_hw)
                for r in other.images
            ),
            "annotations": tuple(() for _ in other.images),
        }
    )
    both = joined([renamed, data.train])
    assert [record.id for record in both.images] == [0, 1, 2, "b0", "b1"]
    assert both.annotations[:3] == data.train.annotations


def test_categories_that_differ_are_told(folder):
    file = folder / "val/_annotations.coco.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "something else"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        read_run_data(config_of(folder, train=TOGETHER), "inference")
    assert {finding.code for finding in caught.value.findings if finding.code.startswith("split-cat")} == {
        "split-categories-differ"
    }


def test_there_is_no_val_where_it_is_null_or_trained_on(folder):
    assert config_of(folder).has_val
    assert config_of(folder, train=("train",)).has_val
    assert not config_of(folder, train=TOGETHER).has_val
    for own in ("valid", "val2017"):  # what folders call it
        assert not config_of(folder, train=("train", own)).has_val
    assert config_of(folder, train=("train", "extra")).has_val
    assert not config_of(folder, val=None).has_val
    with pytest.raises(UsageError, match="no such split: data.val is null, or is trained on") as caught:
        read_run_data(config_of(folder, train=TOGETHER), "val")
    assert "evaluate.split=test" in caught.value.hint
    recipe = parse_recipe(
        "members: {a: {model: {name: faster_rcnn_r50}}}\ndata: {train: [train, val]}", file="r.yaml",
        overrides=["evaluate.split=inference"],
    )  # fmt: skip
    assert recipe.data.train == TOGETHER
    again = parse_recipe(recipe.to_yaml(), file="again.yaml", overrides=["data.val=null"])
    assert (again.data.train, again.data.val) == (TOGETHER, None)
