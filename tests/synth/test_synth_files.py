from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from scantling.data.coco import read_coco
from scantling.data.images.open import open_image
from scantling.errors import UsageError
from scantling.synth.layout import SLOT_NAMES
from scantling.synth.synth import CATEGORY_IDS, LabelNoise, SynthConfig, generate_scene, write_synth

SMALL = SynthConfig(size_hw=(72, 96), image_format="png")
NOISE = LabelNoise(box_jitter=0.2, wrong_class=0.1, missing=0.15, spurious=0.1)
NOISY = SMALL.model_copy(update={"noise": NOISE})
SEED = 11

Json = dict[str, Any]

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # in pycocotools


def load(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("coco") / "scenes"
    write_synth(out, NOISY, splits={"train": 40, "val": 8}, seed=SEED)
    return out


@pytest.fixture(scope="module")
def bikes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bikes") / "scenes"
    config = NOISY.model_copy(update={"absent_rate": 0.15})
    write_synth(out, config, splits={"train": 40, "val": 4}, seed=SEED, layout="delftbikes")
    return out


def test_files_of_the_coco_layout(coco_folder: Path) -> None:
    names = set(contents(coco_folder))
    assert {name for name in names if name.endswith(".json")} == {
        "annotations/train.json",
        "annotations/train_clean.json",
        "annotations/train_corruptions.json",
        "annotations/val.json",
    }
    assert {f"images/train_{number:06d}.png" for number in range(40)} < names
    assert len(names) == 4 + 48


def test_pycocotools_and_our_reader_accept_the_files(coco_folder: Path) -> None:
    for name in ("train", "train_clean", "val"):
        file = coco_folder / "annotations" / f"{name}.json"
        api = COCO(str(file))
        assert len(api.getImgIds()) == (8 if name == "val" else 40)
        dataset = read_coco(file, coco_folder / "images", task="segmentation")
        assert {finding.code for finding in dataset.findings} <= {"category-unused"}
        assert dataset.class_names == tuple(CATEGORY_IDS)
        for annotation in api.loadAnns(api.getAnnIds())[:200]:
            dense = api.annToMask(annotation)
            assert dense.sum() == annotation["area"]
            assert list(coco_mask.toBbox(annotation["segmentation"])) == annotation["bbox"]


def test_annotations_are_the_targets_of_the_scenes(coco_folder: Path) -> None:
    truth = load(coco_folder / "annotations/val.json")
    for image in truth["images"]:
        scene = generate_scene(NOISY, image["id"] - 1, SEED)
        assert np.array_equal(open_image(coco_folder / "images" / image["file_name"]), scene.image)
        written = [entry for entry in truth["annotations"] if entry["image_id"] == image["id"]]
        assert len(written) == len(scene.targets)
        for entry, part in zip(written, scene.targets, strict=True):
            assert entry["category_id"] == CATEGORY_IDS[part.category]
            assert entry.get("state") == part.state
            assert np.array_equal(coco_mask.decode(entry["segmentation"]).astype(bool), part.mask)


def test_absent_parts_are_no_targets(coco_folder: Path) -> None:
    states = Counter(
        entry.get("state") for entry in load(coco_folder / "annotations/val.json")["annotations"]
    )
    assert states["intact"] > 100
    assert "absent" not in states


def test_ids_are_unique_and_shared_with_the_truth(coco_folder: Path) -> None:
    files = {name: load(coco_folder / f"annotations/{name}.json") for name in ("train", "train_clean", "val")}
    for document in files.values():
        for key in ("annotations", "images", "categories"):
            ids = [entry["id"] for entry in document[key]]
            assert len(set(ids)) == len(ids)
    assert not {image["id"] for image in files["train"]["images"]} & {
        image["id"] for image in files["val"]["images"]
    }
    assert sorted(CATEGORY_IDS.values()) != list(range(len(CATEGORY_IDS)))


def test_list_of_corruptions_is_the_difference_between_labels_and_truth(coco_folder: Path) -> None:
    given = {entry["id"]: entry for entry in load(coco_folder / "annotations/train.json")["annotations"]}
    clean = {
        entry["id"]: entry for entry in load(coco_folder / "annotations/train_clean.json")["annotations"]
    }
    listed = load(coco_folder / "annotations/train_corruptions.json")
    wrong = {key for key in given.keys() | clean.keys() if given.get(key) != clean.get(key)}
    assert {entry["annotation_id"] for entry in listed} == wrong
    assert len(listed) == len(wrong)
    for entry in listed:
        key = entry["annotation_id"]
        assert entry["clean"] == clean.get(key)
        assert entry["noisy"] == given.get(key)
        _check_kind(entry)


def _check_kind(entry: Json) -> None:
    clean, noisy = entry["clean"], entry["noisy"]
    if entry["kind"] == "missing":
        assert noisy is None
    elif entry["kind"] == "spurious":
        assert clean is None
    elif entry["kind"] == "wrong_class":
        assert noisy["category_id"] != clean["category_id"]
        assert {**noisy, "category_id": 0} == {**clean, "category_id": 0}
    else:
        assert entry["kind"] == "box_jitter"
        assert noisy["category_id"] == clean["category_id"]
        assert noisy["bbox"] != clean["bbox"]


def test_rates_of_label_errors(coco_folder: Path) -> None:
    count = len(load(coco_folder / "annotations/train_clean.json")["annotations"])
    kinds = Counter(entry["kind"] for entry in load(coco_folder / "annotations/train_corruptions.json"))
    for kind in ("box_jitter", "wrong_class", "missing", "spurious"):
        rate = getattr(NOISE, kind)
        assert abs(kinds[kind] - count * rate) < 4 * (count * rate * (1 - rate)) ** 0.5


def test_jittered_boxes_are_wrong_but_about_the_same_thing(coco_folder: Path) -> None:
    listed = load(coco_folder / "annotations/train_corruptions.json")
    pairs = [
        (entry["clean"]["bbox"], entry["noisy"]["bbox"]) for entry in listed if entry["kind"] == "box_jitter"
    ]
    overlaps = [float(coco_mask.iou([noisy], [clean], [0])[0, 0]) for clean, noisy in pairs]
    assert max(overlaps) <= 0.92
    assert np.mean(np.array(overlaps) >= 0.25) > 0.97  # things of two or three pixels may not find such a box
    assert 0.5 < np.mean(overlaps) < 0.85


def test_spurious_labels_are_where_nothing_of_their_kind_is(coco_folder: Path) -> None:
    clean = load(coco_folder / "annotations/train_clean.json")["annotations"]
    stray = [
        entry["noisy"]
        for entry in load(coco_folder / "annotations/train_corruptions.json")
        if not entry["clean"]
    ]
    assert stray
    for entry in stray:
        same = [
            other["bbox"]
            for other in clean
            if (other["image_id"], other["category_id"]) == (entry["image_id"], entry["category_id"])
        ]
        assert same
        assert coco_mask.iou([entry["bbox"]], same, [0] * len(same)).max() < 0.15


def test_noise_changes_labels_only(tmp_path: Path, coco_folder: Path) -> None:
    write_synth(tmp_path / "exact", SMALL, splits={"train": 3}, seed=SEED)
    exact, noisy = contents(tmp_path / "exact"), contents(coco_folder)
    for name, data in exact.items():
        assert name == "annotations/train.json" or data == noisy[name]
    truth = load(coco_folder / "annotations/train_clean.json")["annotations"]
    mine = load(tmp_path / "exact/annotations/train.json")["annotations"]
    assert mine == truth[: len(mine)]


def test_files_are_the_same_whatever_the_workers_and_other_splits(tmp_path: Path, coco_folder: Path) -> None:
    write_synth(tmp_path / "two", NOISY, splits={"val": 8}, seed=SEED, workers=2)
    for name, data in contents(tmp_path / "two").items():
        assert data == contents(coco_folder)[name]


def test_entries_of_the_delftbikes_layout(bikes_folder: Path) -> None:
    truth = load(bikes_folder / "val_annotations.json")
    assert set(truth) == {f"val_{number:06d}.png" for number in range(4)}
    config = NOISY.model_copy(update={"absent_rate": 0.15})
    for number, (name, entry) in enumerate(truth.items()):
        assert (bikes_folder / "images" / name).is_file()
        scene = generate_scene(config, 1_000_000 + number, SEED)
        assert tuple(entry["parts"]) == SLOT_NAMES
        for part in scene.parts:
            record = entry["parts"][part.name]
            assert record["object_state"] == part.state
            assert _xyxy(record) == part.full_box
    assert any(
        part["object_state"] == "absent" for entry in truth.values() for part in entry["parts"].values()
    )


def _xyxy(record: Mapping[str, Any]) -> tuple[int, int, int, int]:
    box = record["absolute_bounding_box"]
    return box["left"], box["top"], box["left"] + box["width"], box["top"] + box["height"]


def test_corruptions_of_the_delftbikes_layout(bikes_folder: Path) -> None:
    given, clean = (load(bikes_folder / f"train_annotations{suffix}.json") for suffix in ("", "_clean"))
    listed = {
        (entry["file_name"], entry["part"]): entry for entry in load(bikes_folder / "train_corruptions.json")
    }
    present: Counter[str] = Counter()
    for name, picture in clean.items():
        for part, record in picture["parts"].items():
            present["absent" if record["object_state"] == "absent" else "there"] += 1
            noisy = given[name]["parts"][part]
            entry = listed.get((name, part))
            assert (noisy != record) == (entry is not None)
            assert entry is None or (entry["clean"], entry["noisy"]) == (record, noisy)
    kinds = Counter(entry["kind"] for entry in listed.values())
    for kind in ("box_jitter", "wrong_class", "missing", "spurious"):
        count, rate = present["absent" if kind == "spurious" else "there"], getattr(NOISE, kind)
        assert abs(kinds[kind] - count * rate) < 4 * (count * rate * (1 - rate)) ** 0.5
    assert not (bikes_folder / "val_corruptions.json").exists()


def test_jpeg_is_written_by_default(tmp_path: Path) -> None:
    write_synth(tmp_path / "out", SynthConfig(size_hw=(72, 96)), splits={"test": 1}, seed=0)
    image = cv2.imread(str(tmp_path / "out/images/test_000000.jpg"))
    original = generate_scene(SynthConfig(size_hw=(72, 96)), 2_000_000, 0).image
    assert np.abs(image[..., ::-1].astype(int) - original).mean() < 8  # right way round, right channel order


def test_a_folder_with_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        write_synth(tmp_path, SMALL, splits={"train": 1}, seed=0)
    assert set(contents(tmp_path)) == {"notes.txt"}
    write_synth(tmp_path, SMALL, splits={"train": 1}, seed=0, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "annotations/train.json").is_file()


def test_impossible_requests_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for splits in ({"../train": 1}, {"train": -1}, {"train": 0}, {}):
        with pytest.raises(UsageError):
            write_synth(out, SMALL, splits=splits, seed=0)
    assert not out.exists()
    out.write_text("a file")
    with pytest.raises(UsageError, match="is a file"):
        write_synth(out, SMALL, splits={"train": 1}, seed=0)


def test_splits_of_other_names_have_scenes_of_their_own(tmp_path: Path) -> None:
    files = write_synth(tmp_path / "out", SMALL, splits={"train": 2, "fold-1": 2, "fold-2": 2}, seed=0)
    ids = [image["id"] for file in files.values() for image in load(file)["images"]]
    assert len(set(ids)) == 6
    pictures = [data for name, data in contents(tmp_path / "out").items() if name.endswith(".png")]
    assert len(set(pictures)) == 6
