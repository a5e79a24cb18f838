"""Scene twins, suspicious boxes, and splits: known answers."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from scantling.data.coco import read_coco
from scantling.data.formats.locations import Location, read_location
from scantling.data.health import near_duplicates
from scantling.data.health.check import check_data
from scantling.data.health.near_duplicates import find_near_duplicates
from scantling.data.splitting import SplitPlan, deal, group_images, split_data
from scantling.errors import Severity, UsageError

KNOWN_PAIRS = [
    (276, 205), (260, 227), (386, 391), (261, 226), (236, 253),
    (257, 230), (204, 277), (247, 244), (263, 223), (38, 37),
]  # fmt: skip


def scene(seed):
    noise = np.random.default_rng(seed).random((64, 64)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 0.6)
    return (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


def test_shifted_and_brightened_scenes_are_twins_and_others_are_not():
    pictures = [scene(seed) for seed in range(12)]
    pictures += [np.roll(pictures[3], (3, 5), (0, 1)), pictures[7] * 0.5 + 40, None]
    assert {(t.first, t.second) for t in find_near_duplicates(pictures)} == {(3, 12), (7, 13)}
    assert find_near_duplicates([None, pictures[0]]) == []


def board(seed, traces):
    """A printed circuit board that is nearly blank: a few traces with a pad each, as a thumbnail."""
    rng, pixels = np.random.default_rng(seed), np.zeros((640, 640), np.uint8)
    for _ in range(traces):
        (x, y), length, width = rng.integers(20, 600, 2), int(rng.integers(60, 300)), int(rng.integers(8, 20))
        step = (length, 0) if rng.random() < 0.5 else (0, length)
        cv2.line(pixels, (int(x), int(y)), (int(x) + step[0], int(y) + step[1]), 255, width)
        cv2.circle(pixels, (int(x), int(y)), width + 4, 255, -1)
    return cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32)


@pytest.mark.parametrize("traces", [3, 5])
def test_nearly_blank_pictures_of_different_boards_are_not_accused(traces, monkeypatch):
    """Of 120 such boards the peak alone accuses a hundred pairs or more: one mark, moved, is the other."""
    boards = [board(1000 * traces + number, traces) for number in range(120)]
    assert find_near_duplicates(boards) == []
    monkeypatch.setattr(near_duplicates, "_agree", lambda *_: True)
    assert len(find_near_duplicates(boards)) > 100


def test_boards_with_much_on_them_are_found_shifted_and_blurred():
    boards = [board(number, 30) for number in range(30)]
    boards += [np.roll(boards[3], (3, 5), (0, 1)), cv2.GaussianBlur(boards[7], (3, 3), 0.6)]
    assert {(t.first, t.second) for t in find_near_duplicates(boards)} == {(3, 30), (7, 31)}


def test_nothing_to_learn_from_is_an_error_in_the_training_split_alone(made):
    content = json.loads(made.read_text())
    content["annotations"] = []
    for name, failed in (("train", True), ("training", True), ("val", False)):
        file = made.with_name(f"{name}.json")
        file.write_text(json.dumps(content))
        health = check_data(str(file), pixels=False)
        assert [f.severity is Severity.ERROR for f in health.findings if f.code == "no-annotations"] == [
            failed
        ]
        assert len(health.splits[name]) == 40
        file.unlink()


def test_the_known_leaks_of_a_real_set_are_found(real_data):
    health = check_data(str(real_data / "bccd"))
    number = lambda record: int(record.file_name[-9:-4])  # noqa: E731
    found = {frozenset(map(number, pair.images)) for pair in health.duplicates if pair.leaks}
    assert found >= {frozenset(pair) for pair in KNOWN_PAIRS}
    assert len(found) == 12
    assert sum(suspect.code == "box-near-twice" for suspect in health.suspects) == 8
    assert not health.failed


@pytest.fixture
def made(tmp_path):
    """40 images; every fourth has class b, groups of two by name; with some odd boxes in the first."""
    images, annotations = [], []
    for n in range(40):
        images.append({"id": n, "file_name": f"part{n // 2:02d}_{n % 2}.png", "width": 100, "height": 100})
        for category in (1, 2) if n // 2 % 4 == 0 else (1,):
            annotations.append({"image_id": n, "category_id": category, "bbox": [10, 10, 30, 30 + category]})
    odd = ([1, 1, 3, 30], [0, 0, 100, 99], [0, 50, 90, 4.2], [10, 10, 30, 30])
    annotations += [{"image_id": 0, "category_id": 1, "bbox": box} for box in odd]
    for n, annotation in enumerate(annotations):
        annotation["id"] = n
    (tmp_path / "annotations").mkdir()
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    file = tmp_path / "annotations" / "all.json"
    file.write_text(json.dumps(content))
    (tmp_path / "images").mkdir()
    for image in images:
        Image.new("RGB", (100, 100), (image["id"],) * 3).save(tmp_path / "images" / image["file_name"])
    return file


def test_odd_boxes_are_named(made):
    health = check_data(str(made), pixels=False)
    assert [(s.code, s.annotation.box_xywh[2]) for s in health.suspects] == [
        ("box-huge", 100),
        ("box-near-twice", 30),
        ("box-thin", 90),
        ("box-tiny", 3),
    ]
    assert not health.failed
    assert check_data(str(made), pixels=False, strict=True).failed


@pytest.mark.parametrize("group", [None, r"part(\d+)"])
def test_splits_are_disjoint_complete_and_stratified(made, tmp_path, group):
    dataset = read_coco(made)
    plan = SplitPlan(ratios={"train": 3, "val": 1, "test": 1}, group=group, seed=3)
    result = split_data(dataset, Location(made), tmp_path / "out", plan)
    parts = [read_location(file) for file in result.files]
    ids = [image.id for part in parts for image in part.images]
    assert sorted(ids) == list(range(40))
    assert [result.class_counts[name]["b"] for name in ("train", "val", "test")] == [6, 2, 2]
    assert [len(part) for part in parts] == pytest.approx([24, 8, 8], abs=2)
    if group:
        owners = {}
        for file, part in zip(result.files, parts, strict=True):
            for image in part.images:
                owners.setdefault(image.file_name[:6], set()).add(file)
        assert all(len(files) == 1 for files in owners.values())
    with pytest.raises(UsageError, match="there already"):
        split_data(dataset, Location(made), tmp_path / "out", plan)


def test_every_image_is_validated_in_exactly_one_fold(made, tmp_path):
    result = split_data(read_coco(made), Location(made), tmp_path / "f", SplitPlan(folds=5))
    lists = {file.stem: set(json.loads(file.read_text())["image_ids"]) for file in result.files}
    assert sorted(i for n in range(5) for i in lists[f"fold{n}-val"]) == list(range(40))
    assert all(lists[f"fold{n}-train"] == set(range(40)) - lists[f"fold{n}-val"] for n in range(5))


def test_groups_and_seeds():
    assert group_images(["a1", "a2", "b", "c1"], r"[ac]") == ([[0, 1], [2], [3]], 1)
    with pytest.raises(UsageError, match="regular expression"):
        group_images(["a"], "(")
    demand = np.ones((30, 1))
    groups = [[n] for n in range(30)]
    first, again, other = (deal(groups, demand, {"x": 0.5, "y": 0.5}, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert [len(first[name]) for name in ("x", "y")] == [15, 15]


def test_errors_of_a_file_are_findings_and_the_rest_is_still_checked(made):
    content = json.loads(made.read_text())
    content["annotations"][5]["bbox"] = [10, 10, -3, 4]
    made.write_text(json.dumps(content))
    health = check_data(str(made), pixels=False)
    assert [f.code for f in health.findings if f.severity is Severity.ERROR] == ["box-size"]
    assert len(health.splits["all"]) == 40
