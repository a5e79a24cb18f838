"""COCO to YOLO or VOC and back: the same boxes to 0.01 px, names, images, ids; losses counted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from scantling.data.coco import ReadOptions, read_coco
from scantling.data.coco.records import to_rle
from scantling.data.convert import convert_data
from scantling.data.formats.locations import read_location, read_splits
from scantling.errors import UsageError
from scantling.ops.rle import rle_decode

NAMES = ("hex bolt", "Kühlrippe", "ネジ: 3")


@pytest.fixture
def parts(tmp_path):
    """Three images, one of them empty and one in a sub-folder; odd names, ids with gaps, sub-pixel boxes."""
    rng = np.random.default_rng(0)
    root = tmp_path / "parts"
    images, annotations = [], []
    for number, name in enumerate(("a b.png", "sub/ü.png", "empty.png")):
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (83, 117, 3), dtype=np.uint8)).save(path)
        images.append({"id": 10 + number, "file_name": name, "width": 117, "height": 83})
        for _ in range(6 if "empty" not in name else 0):
            x, y = rng.uniform(0, 70, 2)
            w, h = rng.uniform(0.6, 13, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 + number,
                    "category_id": int(rng.choice([0, 7, 90])),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    categories = [
        {"id": i, "name": n, "supercategory": "part"} for i, n in zip((0, 7, 90), NAMES, strict=True)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir()
    (root / "annotations" / "train.json").write_text(json.dumps(content))
    return root


def boxes_by_name(dataset):
    """Class and box of every object, by file name, in the order written."""
    return {
        image.file_name: [(dataset.class_names[a.label], a.box_xywh) for a in many]
        for image, many in zip(dataset.images, dataset.annotations, strict=True)
    }


def assert_same(first, second, prefix=""):
    """Equal names and objects; boxes to 0.01 px."""
    ours, theirs = boxes_by_name(first), boxes_by_name(second)
    assert {prefix + name for name in ours} == set(theirs)
    for name, objects in ours.items():
        others = theirs[prefix + name]
        assert [label for label, _ in objects] == [label for label, _ in others]
        corners = [
            np.array([(x, y, x + w, y + h) for _, (x, y, w, h) in some]).reshape(-1, 4)
            for some in (objects, others)
        ]
        assert np.abs(corners[0] - corners[1]).max(initial=0) < 0.01


@pytest.mark.parametrize("target", ["yolo", "voc"])
@pytest.mark.parametrize("link", [False, True])
def test_there_and_back(parts, tmp_path, target, link):
    before = {p: p.read_bytes() for p in parts.rglob("*") if p.is_file()}
    there = convert_data(parts, target, tmp_path / "there", link=link)
    assert there.losses == {}
    convert_data(tmp_path / "there", "coco", tmp_path / "back")
    first = read_location(parts)
    second = read_coco(tmp_path / "back" / "annotations" / "train.json")
    assert_same(first, second, prefix="train/" if target == "yolo" else "")
    assert second.categories == first.categories
    assert all(image.path.read_bytes() in before.values() for image in second.images)
    assert {p: p.read_bytes() for p in parts.rglob("*") if p.is_file()} == before


def test_without_the_file_of_ids_the_names_remain(parts, tmp_path):
    for target in ("yolo", "voc"):
        convert_data(parts, target, tmp_path / target)
        (tmp_path / target / "categories.json").unlink()
        dataset = read_location(tmp_path / target)
        assert sorted(dataset.class_names) == sorted(NAMES)
        assert dataset.category_ids == (1, 2, 3)


@pytest.mark.parametrize(
    ("name", "target"), [("fruits_nuts", "voc"), ("bccd", "yolo"), ("fruits_nuts", "yolo")]
)
def test_real_sets_come_back(real_data, tmp_path, name, target):
    source = f"{real_data / name}:val"
    written = convert_data(source, target, tmp_path / "there", link=True)
    assert set(written.losses) <= {"masks (VOC's XML has none)"}
    (split,) = read_splits(tmp_path / "there", ReadOptions())
    first, second = read_location(source), read_location(f"{tmp_path / 'there'}:{split}")
    assert_same(first, second, prefix="val/" if target == "yolo" else "")
    if (name, target) == ("fruits_nuts", "yolo"):
        back = {image.file_name: many for image, many in zip(second.images, second.annotations, strict=True)}
        for image, ours in zip(first.images, first.annotations, strict=True):
            for a, b in zip(ours, back[f"val/{image.file_name}"], strict=True):
                assert np.abs(a.segmentation[0] - b.segmentation[0]).max() < 0.01


def test_masks_of_pixels_become_outlines_that_draw_them_again(real_data, tmp_path):
    source = f"{real_data / 'magnetic_tile'}:val"
    written = convert_data(source, "yolo", tmp_path / "there", link=True)
    first, second = read_location(source), read_location(tmp_path / "there")
    assert sum(written.losses.values()) <= 5
    back = {image.file_name: many for image, many in zip(second.images, second.annotations, strict=True)}
    same = []
    for image, ours in zip(first.images, first.annotations, strict=True):
        for a, b in zip(ours, back[f"val/{image.file_name}"], strict=True):
            assert np.abs(np.array(a.box_xywh) - b.box_xywh).max() < 0.01
            if b.segmentation is not None:
                masks = [rle_decode(to_rle(each.segmentation, image.size_hw)) for each in (a, b)]
                same.append(np.array_equal(*masks))
    assert len(same) >= 53
    assert sum(same) >= len(same) - 5


def test_what_cannot_be_kept_is_counted(parts, tmp_path):
    file = parts / "annotations" / "train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["segmentation"] = [
        [1, 1, 9, 1, 9, 9, 1, 9],
        [20, 20, 40, 20, 40, 40, 20, 40],
    ]
    content["annotations"][1]["bbox"] = [1, 1, 39, 39]
    file.write_text(json.dumps(content))
    yolo = convert_data(parts, "yolo", tmp_path / "yolo")
    assert yolo.losses == {"crowd regions (YOLO has none)": 1, "masks": 1}
    assert convert_data(parts, "voc", tmp_path / "voc").losses == {
        "masks (VOC's XML has none)": 1,
        "crowd flags (written as difficult)": 1,
    }
    assert "not kept: 1 masks" in yolo.to_text()


def test_boxes_beside_polygons_become_four_corners_in_the_whole_set(parts, tmp_path):
    """Ultralytics drops an image of which the rows are mixed, and masks of a split that has any plain box."""
    file = parts / "annotations" / "train.json"
    content = json.loads(file.read_text())
    first, second, third, *rest = content["annotations"]
    first |= {"segmentation": [[2, 1, 9, 1, 9, 9]], "bbox": [2, 1, 7, 8]}
    halves = [[1, 1, 9, 1, 9, 9, 1, 9], [20, 20, 40, 20, 40, 40, 20, 40]]
    second |= {"segmentation": halves, "bbox": [1, 1, 39, 39]}
    third["bbox"] = [11.7, 8.3, 23.4, 16.6]
    file.write_text(json.dumps(content))
    file.with_name("val.json").write_text(json.dumps(content | {"annotations": rest}))
    yolo = convert_data(parts, "yolo", tmp_path / "yolo")
    plain = "plain boxes (written as their four corners: YOLO does not mix boxes and polygons)"
    assert yolo.losses == {"masks": 1, plain: 10 + 9}
    lines = (tmp_path / "yolo" / "labels" / "train" / "a b.txt").read_text().splitlines()
    assert [len(line.split()) for line in lines] == [7, *[9] * 5]
    assert lines[2].split()[1:] == ["0.1", "0.1", "0.3", "0.1", "0.3", "0.3", "0.1", "0.3"]
    for split in ("train", "val"):
        back = read_location(f"{tmp_path / 'yolo'}:{split}")
        assert_same(read_location(f"{parts}:{split}"), back, prefix=f"{split}/")
        assert all(a.segmentation is not None for many in back.annotations for a in many)
        assert not [finding for finding in back.findings if finding.code == "yolo-mixed"]
    boxes = convert_data(parts, "yolo", tmp_path / "boxes", boxes_only=True)
    assert boxes.losses == {"masks": 2}
    rows = [path.read_text().splitlines() for path in (tmp_path / "boxes" / "labels").rglob("*.txt")]
    assert {len(row.split()) for many in rows for row in many} == {5}


def tree(root):
    """Every file but those of images' contents, with its text."""
    files = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    return {
        name: None if path.suffix in (".png", ".jpg") else path.read_text() for name, path in files.items()
    }


@pytest.fixture
def two_splits(tmp_path):
    """YOLO with `train` and `valid`, an image of each in a folder of its split; all names differ."""
    root = tmp_path / "yolo-in"
    for split, names in (("train", ("a", "sub/b")), ("valid", ("c",))):
        for name in names:
            for folder in ("images", "labels"):
                (root / folder / split / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 20), (9, len(name), ord(name[-1]))).save(
                root / f"images/{split}/{name}.png"
            )
            (root / f"labels/{split}/{name}.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/valid\nnames: [nut]\n")
    return root


def test_a_second_pass_writes_the_same_tree(two_splits, tmp_path):
    """The folder of a split was put into another of its name with every pass."""
    convert_data(two_splits, "yolo", tmp_path / "1")
    first = tree(tmp_path / "1")
    images = {name for name in first if name.endswith(".png")}
    assert images == {"images/train/a.png", "images/train/sub/b.png", "images/val/c.png"}
    assert {name for name in first if name.startswith("labels/")} == {
        name.replace("images/", "labels/").replace(".png", ".txt") for name in images
    }
    convert_data(tmp_path / "1", "yolo", tmp_path / "2")
    assert tree(tmp_path / "2") == first
    for target in ("coco", "voc"):
        convert_data(tmp_path / "1", target, tmp_path / target)
        convert_data(tmp_path / target, target, tmp_path / f"{target}-2")
        assert tree(tmp_path / f"{target}-2") == tree(tmp_path / target)
        convert_data(tmp_path / target, "yolo", tmp_path / f"{target}-yolo")
        assert tree(tmp_path / f"{target}-yolo") == first


def test_voc_is_flat_unless_images_of_different_splits_have_one_name(two_splits, tmp_path):
    convert_data(two_splits, "voc", tmp_path / "flat")
    found = sorted(name for name in tree(tmp_path / "flat") if name.startswith("Annotations/"))
    assert found == ["Annotations/a.xml", "Annotations/c.xml", "Annotations/sub/b.xml"]
    (two_splits / "images" / "valid" / "c.png").rename(two_splits / "images" / "valid" / "a.jpg")
    (two_splits / "labels" / "valid" / "c.txt").rename(two_splits / "labels" / "valid" / "a.txt")
    assert convert_data(two_splits, "voc", tmp_path / "nested").losses == {}
    found = sorted(name for name in tree(tmp_path / "nested") if name.startswith("Annotations/"))
    assert found == ["Annotations/train/a.xml", "Annotations/train/sub/b.xml", "Annotations/valid/a.xml"]
    convert_data(tmp_path / "nested", "voc", tmp_path / "again")
    assert tree(tmp_path / "again").keys() == tree(tmp_path / "nested").keys()


def test_an_image_of_two_splits_is_one_file_of_voc(two_splits, tmp_path):
    lists = {"trainval": ("train/a", "train/sub/b", "valid/c"), "train": ("train/a", "train/sub/b")}
    for split, names in lists.items():
        (two_splits / f"{split}.txt").write_text("".join(f"images/{name}.png\n" for name in names))
    text = "train: train.txt\nval: trainval.txt\nnames: [nut]\n"
    (two_splits / "data.yaml").write_text(text)
    assert convert_data(two_splits, "voc", tmp_path / "voc").losses == {}
    assert sorted(p.name for p in (tmp_path / "voc" / "JPEGImages").rglob("*.png")) == [
        "a.png",
        "b.png",
        "c.png",
    ]


def test_equal_stems_do_not_overwrite_each_other(parts, tmp_path):
    file = parts / "annotations" / "train.json"
    content = json.loads(file.read_text())
    Image.new("RGB", (117, 83), "red").save(parts / "images" / "empty.jpg")
    content["images"].append({"id": 99, "file_name": "empty.jpg", "width": 117, "height": 83})
    file.write_text(json.dumps(content))
    written = convert_data(parts, "yolo", tmp_path / "yolo")
    assert sum(written.losses.values()) == 1
    assert len(read_location(tmp_path / "yolo")) == 4


def test_a_folder_in_use_is_left_alone(parts, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="not an empty folder"):
        convert_data(parts, "voc", tmp_path / "there")
    (parts / "images" / "empty.png").unlink()
    with pytest.raises(Exception, match="empty.png"):
        convert_data(parts, "voc", tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parts", "there"]
