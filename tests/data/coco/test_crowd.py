"""Objects, crowd regions and ignored objects are told apart wherever something is counted."""

from __future__ import annotations

import json
import logging

import pytest
from PIL import Image
from typer.testing import CliRunner

from scantling.cli.app import app
from scantling.data.coco import read_coco
from scantling.data.convert import convert_data
from scantling.data.formats.locations import Location, read_given, read_location
from scantling.data.health.check import check_data
from scantling.data.health.leaks import compare_splits
from scantling.data.splits import DataConfig, describe_run_data, log_run_data, read_run_data
from scantling.data.splitting import SplitPlan, split_data
from scantling.errors import DataError, Severity

NAMES = ("bolt", "nut")
IMAGES_OF = {"train": range(8), "val": range(8, 12)}


def mark(name: str):
    """What makes an annotation other than an object."""
    return {"crowd": {"iscrowd": 1}, "ignored": {"ignore": 1}}.get(name, {})


@pytest.fixture
def parts(tmp_path):
    """parts(train, val) -> COCO folder; each says for bolt and nut what every annotation of it is."""

    def make(train, val):
        for split, kinds in (("train", train), ("val", val)):
            numbers = IMAGES_OF[split]
            annotations = [
                {
                    "image_id": n,
                    "category_id": c,
                    "bbox": [5 + 30 * c, 8 + n, 20, 12 + c],
                    "iscrowd": 0,
                    **mark(kind),
                }
                for n in numbers
                for c, kind in enumerate(kinds)
                if kind
            ]
            content = {
                "images": [{"id": n, "file_name": f"{n}.png", "width": 90, "height": 60} for n in numbers],
                "annotations": [{"id": i, **a} for i, a in enumerate(annotations)],
                "categories": [{"id": c, "name": name} for c, name in enumerate(NAMES)],
            }
            (tmp_path / "parts/annotations").mkdir(parents=True, exist_ok=True)
            (tmp_path / "parts/images").mkdir(exist_ok=True)
            for n in numbers:
                Image.new("RGB", (90, 60), (20 * n, 0, 0)).save(tmp_path / f"parts/images/{n}.png")
            (tmp_path / f"parts/annotations/{split}.json").write_text(json.dumps(content))
        return tmp_path / "parts"

    return make


def codes(findings, severity=None):
    return [f.code for f in findings if severity in (None, f.severity)]


def test_counts_tell_what_is_what(parts):
    dataset = read_location(f"{parts(('object', 'crowd'), ('ignored', 'crowd'))}:train")
    assert (dataset.num_annotations, dataset.num_objects, dataset.num_crowd, dataset.num_ignored) == (
        16,
        8,
        8,
        0,
    )
    assert dataset.counts_text() == "8 images, 8 objects, 8 crowd regions"
    assert dataset.objects_by_class() == [8, 0]
    val = read_location(f"{dataset.file.parents[1]}:val")
    assert val.counts_text() == "4 images, 0 objects, 4 crowd regions, 4 difficult or ignored"
    assert val.instances(0).is_crowd.tolist() == [True, True]


@pytest.mark.parametrize("kind", ["crowd", "ignored"])
def test_a_class_without_objects_is_an_error_for_training_and_a_warning_elsewhere(parts, kind):
    root = parts(("object", kind), ("object", "object"))
    (told,) = [f for f in read_location(f"{root}:train").findings if f.code == "category-crowd-only"]
    assert (told.severity, told.value, told.id) == (Severity.WARNING, "nut", 1)
    assert "only 8" in told.message
    with pytest.raises(DataError) as error:
        read_run_data(DataConfig(root=str(root)), "val")
    assert codes(error.value.findings, Severity.ERROR) == ["category-crowd-only"]
    data = read_run_data(DataConfig(root=str(root), skip_invalid=True), "val")
    assert data.train.objects_by_class() == [8, 0]
    (unseen,) = [f for f in data.val.findings if f.code == "split-class-unseen"]
    assert "only as crowd regions or ignored objects" in unseen.message


def test_nothing_but_crowd_regions_is_never_trained_on(parts, caplog):
    root = parts(("crowd", "crowd"), ("crowd", "crowd"))
    for skip_invalid in (False, True):
        with pytest.raises(DataError) as error:
            read_run_data(DataConfig(root=str(root), skip_invalid=skip_invalid), "val")
        assert "no-objects" in codes(error.value.findings, Severity.ERROR)
    health = check_data(str(root), pixels=False)
    assert health.failed, "training refuses it, and so does the check"
    assert codes(health.findings, Severity.ERROR).count("no-objects") == 1
    assert codes(health.findings, Severity.WARNING).count("no-objects") == 1
    assert health.class_counts() == {name: {"train": 0, "val": 0} for name in NAMES}
    facts = health.to_dict()["splits"]["train"]
    assert (facts["objects"], facts["crowds"], facts["empty_images"]) == (0, 16, 8)
    assert "train: 8 images (8 without objects), 0 objects, 16 crowd regions" in health.to_text()


def test_crowd_only_in_train_is_named_when_the_class_is_real_in_val(parts):
    root = parts(("object", "crowd"), ("object", "object"))
    train, val = (read_location(f"{root}:{split}") for split in ("train", "val"))
    assert codes(compare_splits(train, val)) == ["split-class-unseen"]
    assert compare_splits(val, train) == ()


def test_runs_log_and_record_the_same_counts(parts, caplog):
    root = parts(("object", "object"), ("object", "crowd"))
    data = read_run_data(DataConfig(root=str(root)), "val")
    with caplog.at_level(logging.INFO, logger="scantling"):
        log_run_data(data)
    assert "val: 4 images, 4 objects, 4 crowd regions, 2 categories" in caplog.text
    record = describe_run_data(data)["val"]
    assert (record["num_annotations"], record["num_objects"], record["num_crowd"]) == (8, 4, 4)


def test_a_recipe_may_count_what_is_marked(parts):
    root = parts(("object", "ignored"), ("object", "ignored"))
    with pytest.raises(DataError):
        read_run_data(DataConfig(root=str(root)), "val")
    data = read_run_data(DataConfig(root=str(root), count_difficult=True), "val")
    assert data.train.objects_by_class() == [8, 8]
    other = read_run_data(DataConfig(root=str(root), skip_invalid=True), "val")
    assert other.hashes["train"] != data.hashes["train"]


def test_convert_counts_what_it_writes_and_what_it_loses(parts, tmp_path):
    root = parts(("object", "crowd"), ("ignored", "object"))
    yolo = convert_data(root, "yolo", tmp_path / "yolo")
    lines = sum(len(file.read_text().splitlines()) for file in (tmp_path / "yolo/labels").rglob("*.txt"))
    assert lines == sum(counts.objects for counts in yolo.counts.values()) == 12
    assert yolo.losses["crowd regions (YOLO has none)"] == 8
    assert sum(n for what, n in yolo.losses.items() if what.startswith("difficult")) == 4
    assert "train: 8 images, 8 objects\n" in yolo.to_text()
    coco = convert_data(root, "coco", tmp_path / "coco")
    assert "train: 8 images, 8 objects, 8 crowd regions" in coco.to_text()
    assert coco.to_dict()["splits"]["val"] == {"images": 4, "objects": 4, "crowds": 0, "ignored": 4}


@pytest.mark.parametrize("kind", ["crowd", "ignored"])
def test_crowd_regions_and_ignored_objects_survive_voc(parts, tmp_path, kind):
    root = parts(("object", kind), ("object", kind))
    convert_data(root, "voc", tmp_path / "voc")
    text = next((tmp_path / "voc/Annotations").iterdir()).read_text()
    assert text.count("<difficult>1</difficult>") == 1
    first, second = read_location(f"{root}:val"), read_location(f"{tmp_path / 'voc'}:val")
    assert second.counts_text() == first.counts_text()
    assert [[(a.label, a.is_crowd, a.is_ignored) for a in many] for many in second.annotations] == [
        [(a.label, a.is_crowd, a.is_ignored) for a in many] for many in first.annotations
    ]
    convert_data(tmp_path / "voc", "coco", tmp_path / "back")
    back = read_coco(tmp_path / "back/annotations/val.json")
    assert back.counts_text() == first.counts_text()
    marked = [a for a in back.to_coco()["annotations"] if a.get("ignore")]
    assert len(marked) == (4 if kind == "ignored" else 0)


def test_keypoints_of_categories_are_kept_and_those_of_annotations_counted(parts, tmp_path):
    root = parts(("object", "object"), ("object", "object"))
    for file in (root / "annotations").iterdir():
        content = json.loads(file.read_text())
        for category in content["categories"]:
            category |= {"keypoints": ["head", "tip"], "skeleton": [[1, 2]]}
        content["annotations"][0] |= {"keypoints": [1, 2, 2, 3, 4, 2], "num_keypoints": 2}
        file.write_text(json.dumps(content))
    first = read_location(f"{root}:val").to_coco()["categories"]
    for target in ("coco", "yolo", "voc"):
        written = convert_data(root, target, tmp_path / target)
        lost = {what: n for what, n in written.losses.items() if "keypoints" in what}
        expected = {"keypoints of annotations": 2, "num_keypoints of annotations": 2}
        assert lost == ({} if target == "coco" else expected)
        assert read_location(f"{tmp_path / target}:val").to_coco()["categories"] == first


def test_split_deals_objects_and_counts_the_rest(parts, tmp_path):
    dataset = read_coco(parts(("object", "crowd"), ("object", "object")) / "annotations/train.json")
    result = split_data(
        dataset, Location(dataset.file), tmp_path / "out", SplitPlan(ratios={"train": 1, "val": 1})
    )
    assert result.class_counts == {"train": {"bolt": 4, "nut": 0}, "val": {"bolt": 4, "nut": 0}}
    assert result.to_dict()["crowds"] == {"train": 4, "val": 4}
    assert "train: 4 images, bolt 4, nut 0, 4 crowd regions" in result.to_text()


def test_what_is_found_in_labels_reaches_every_verb_that_reads_them(parts, caplog):
    root = parts(("object", "object"), ("object", "object"))
    file = root / "annotations/val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [5, 5, -3, 4]
    content["annotations"][1]["bbox"] = [80, 50, 20, 20]
    file.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING, logger="scantling"):
        read_given(f"{root}:val", skip_invalid=True)
    for code in ("box-size", "annotations-dropped", "box-clipped"):
        assert f"[{code}]" in caplog.text


def test_the_command_line_says_why_ap_is_undefined(parts, tmp_path):
    root = parts(("crowd", "crowd"), ("crowd", "crowd"))
    results = tmp_path / "found.json"
    results.write_text(json.dumps([{"image_id": 8, "category_id": 0, "bbox": [5, 16, 20, 12], "score": 1.0}]))
    done = CliRunner().invoke(app, ["evaluate", str(results), "--data", f"{root}:val"])
    assert done.exit_code == 0
    assert "0 objects, 8 crowd regions): every AP and AR is undefined" in done.stderr
