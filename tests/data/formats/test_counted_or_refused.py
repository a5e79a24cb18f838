"""Data sets as other tools write them, at random: what goes in is used, or counted, or the whole is refused.

pictures, label files and rows in = used + counted
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from scantling.data.coco import ReadOptions
from scantling.data.finding_codes import CODES, Kind
from scantling.data.formats.locations import read_location
from scantling.data.health.images import usable_images
from scantling.errors import DataError

SEEDS = range(25)
AVIF = b"\0\0\0\x1cftypavif\0\0\0\0" + bytes(64)
ROWS = (
    "0 0.5 0.5 0.25 0.5",
    "1 0.5001 0.5 1.0004 0.999",
    "1 0.2 0.2 1.0021 0.2 1.0021 0.7 0.2 0.7 0.1 0.5",
    "0 0.1 0.2 0.5 0.2 0.5 0.8",
    "0\t0.5  0.5 0.3 0.3 ",
    "0.0 5e-1 .5 0.1 0.1",
    "0 0.5 0.5 0.25 0.5 0.97",
    "0 0.5 0.5 0.25",
    "0 320 240 20 20",
    "0 0.5 0.5 1.03 0.5",
    "0 0.5 0.5 0 0.2",
    "0 0,5 0,5 0,1 0,1",
    "0 0.5 nan 0.1 0.1",
    "nut 0.5 0.5 0.1 0.1",
    "0 1.009 0.5 0.001 0.1",
    "",
    "   ",
)
BOXES = (
    [1, 2, 30, 20],
    [-3, 2, 30, 20],
    [1, 2, 0, 20],
    [900, 2, 3, 4],
    [1, 2, 30.5, 20.25],
    [90, 40, 30, 30],
)
MASKS = (
    [],
    [[]],
    [[1, 2, 30, 2, 30, 20]],
    [[1, 2, 3]],
    [1, 2, 30, 2, 30, 20],
    None,
    [[900, 1, 950, 1, 950, 40]],
)


def picture(path, broken):
    path.parent.mkdir(parents=True, exist_ok=True)
    if broken:
        path.write_bytes(AVIF)
    else:
        Image.new("RGB", (100, 50)).save(path, format="PNG")


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def read(location):
    """The usable part, everything that was said about it, or None where the whole is refused by name."""
    try:
        dataset = usable_images(read_location(location, ReadOptions(skip_invalid=True)), skip_invalid=True)
    except DataError as error:
        refused = error.findings
    else:
        return dataset
    assert refused
    assert all(finding.file and finding.message for finding in refused)
    return None


def number(findings, code, pattern):
    """Sum of the numbers that the findings of a code tell."""
    told = [re.search(pattern, finding.message) for finding in findings if finding.code == code]
    return sum(int(found[1]) for found in told if found)


def dropped(findings, prefix):
    """Records that were left out, by file and place."""
    places = {(f.file, re.match(rf"{prefix}[^.]*", f.path)[0]) for f in findings if _drops(f, prefix)}
    return len(places)


def _drops(finding, prefix):
    return CODES[finding.code].kind is Kind.GEOMETRY and finding.path and finding.path.startswith(prefix)


def random_labels(rng):
    return [str(rng.choice(ROWS)) for _ in range(rng.integers(0, 6))]


def write_images(rng, image_folder, label_folder, *, beside):
    """Pictures with and without labels, under any spelling and of any kind; how much was written."""
    count = dict.fromkeys(("images", "rows"), 0)
    for index in range(rng.integers(1, 6)):
        stem = f"img {index}"
        broken = rng.random() < 0.15
        place = str(
            rng.choice(["labels", "beside", "none", "spelled", "orphan"], p=[0.4, 0.2, 0.1, 0.2, 0.1])
        )
        if place != "orphan" or index == 0:  # a list of no image says nothing about any folder
            picture(image_folder / f"{stem}{rng.choice(['.png', '.PNG', '.jpg'])}", broken)
            count["images"] += 1
        rows = random_labels(rng)
        if place != "none":
            folder = image_folder if place == "beside" or beside else label_folder
            name = (
                str(rng.choice([f"IMG {index}.txt", f"img%20{index}.txt"]))
                if place == "spelled"
                else f"{stem}.txt"
            )
            if folder != label_folder:  # a file beside an image is a label only if it begins like one
                rows = [ROWS[0], *rows]
            text(folder / name, "\n".join(rows))
            count["rows"] += sum(bool(row.strip()) for row in rows)
    return count


def check_yolo(dataset, count, location):
    if dataset is None:
        return
    unread = sum(finding.code in ("image-format", "image-unreadable") for finding in dataset.findings)
    assert len(dataset) + unread == count["images"], location
    rows = dropped(dataset.findings, "line ")
    unused = number(dataset.findings, "label-unused", r"with (\d+) rows")
    lost = number(dataset.findings, "annotations-dropped", r"(\d+) rows of")
    assert dataset.num_annotations + rows + unused + lost == count["rows"], location


@pytest.mark.parametrize("seed", SEEDS)
def test_yolo(tmp_path, seed):
    rng = np.random.default_rng(seed)
    count = write_images(rng, tmp_path / "images" / "train", tmp_path / "labels" / "train", beside=False)
    (tmp_path / "images" / "train").mkdir(parents=True, exist_ok=True)
    text(tmp_path / "data.yaml", "train: images/train\nnames: [nut, bolt]\n")
    check_yolo(read(tmp_path), count, tmp_path)


@pytest.mark.parametrize("seed", SEEDS)
def test_darknet_of_cvat(tmp_path, seed):
    rng = np.random.default_rng(1000 + seed)
    folder = tmp_path / "obj_train_data"
    folder.mkdir()
    count = write_images(rng, folder, tmp_path / "none", beside=True)
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg"))
    text(tmp_path / "obj.names", "nut\nbolt\n")
    text(tmp_path / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    text(tmp_path / "train.txt", "".join(f"data/obj_train_data/{name}\n" for name in names) or "\n")
    check_yolo(read(f"{tmp_path}:train"), count, tmp_path)


def voc_object(rng):
    x, y, width, height = BOXES[rng.integers(len(BOXES))]
    edges = {"xmin": x, "ymin": y, "xmax": x + width, "ymax": y + height}
    if rng.random() < 0.1:
        del edges["xmax"]
    name = rng.choice(["nut", "bolt ", "", "nut"])
    bounds = "".join(f"<{key}>{value}</{key}>" for key, value in edges.items())
    return f"<object>\n<name>{name}</name><bndbox>{bounds}</bndbox></object>\n"


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_voc(tmp_path, seed, beside):
    rng = np.random.default_rng(2000 + seed)
    images, labels = (tmp_path, tmp_path) if beside else (tmp_path / "JPEGImages", tmp_path / "Annotations")
    images.mkdir(exist_ok=True)
    count = dict.fromkeys(("images", "xml", "objects"), 0)
    for index in range(rng.integers(1, 6)):
        if rng.random() < 0.85:
            picture(images / f"img {index}.{rng.choice(['png', 'JPG'])}", rng.random() < 0.1)
            count["images"] += 1
        if index and rng.random() < 0.2:
            continue
        objects = [voc_object(rng) for _ in range(rng.integers(0, 4))]
        size = "<size><width>100</width><height>50</height></size>\n" if rng.random() < 0.8 else ""
        name = str(rng.choice([f"img {index}.xml", f"IMG%20{index}.XML"]))
        text(labels / name, f"<annotation>\n{size}{''.join(objects)}</annotation>")
        count["xml"] += 1
        count["objects"] += len(objects)
    dataset = read(tmp_path)
    if dataset is None:
        return
    lost = number(dataset.findings, "images-dropped", r"^(\d+) of")
    assert len(dataset) + lost == count["xml"]
    unlabelled = number(dataset.findings, "image-unlabelled", r"^(\d+) images")
    missing = sum(finding.code == "image-missing" for finding in dataset.findings)
    assert len(dataset) + lost - missing + unlabelled == count["images"]
    objects = dropped(dataset.findings, "line ") + number(
        dataset.findings, "images-dropped", r"with (\d+) objects"
    )
    assert dataset.num_annotations + objects == count["objects"]


@pytest.mark.parametrize("seed", SEEDS)
def test_coco(tmp_path, seed):
    rng = np.random.default_rng(3000 + seed)
    names = ["a.png", "sub/b.png", "c.avif", "missing.png"][: rng.integers(1, 5)]
    images = [{"id": i, "file_name": n, "width": 100, "height": 50} for i, n in enumerate(names, start=1)]
    for image in images:
        if "missing" not in image["file_name"]:
            picture(tmp_path / "images" / image["file_name"], "avif" in image["file_name"])
    if rng.random() < 0.2:
        images[-1]["width"] = 0
    annotations = []
    for index in range(rng.integers(0, 8)):
        record = {"id": index + 1, "image_id": int(rng.integers(1, len(images) + 1)), "category_id": 1}
        record["bbox"] = list(BOXES[rng.integers(len(BOXES))])
        record["segmentation"] = MASKS[rng.integers(len(MASKS))]
        record["attributes"] = {"rotation": float(rng.choice([0, 30, 400]))}
        annotations.append(record)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "nut"}]}
    text(tmp_path / "annotations" / "val.json", json.dumps(content))
    dataset = read(tmp_path)
    if dataset is None:
        return
    findings = dataset.findings
    lost = number(findings, "images-dropped", r"^(\d+) of") + dropped(findings, "images[".replace("[", r"\["))
    lost += len({f.path for f in findings if f.code == "image-size"})
    assert len(dataset) + lost == len(images)
    unused = number(findings, "annotations-dropped", r"^(\d+) of")
    unused += number(findings, "images-dropped", r"with (\d+) objects")
    assert dataset.num_annotations + unused == len(annotations)


@pytest.mark.parametrize("seed", SEEDS)
def test_delftbikes(tmp_path, seed):
    rng = np.random.default_rng(4000 + seed)
    content, parts_in = {}, 0
    for index in range(rng.integers(1, 4)):
        parts = {}
        for part in ("bell", "saddle", "chain")[: rng.integers(0, 4)]:
            x, y, width, height = BOXES[rng.integers(len(BOXES))]
            edges = {"left": x, "top": y, "width": width, "height": height}
            state = str(rng.choice(["intact", "damaged", "absent", "rusty"], p=[0.5, 0.2, 0.2, 0.1]))
            parts[part] = {"object_state": state, "absolute_bounding_box": edges}
            parts_in += 1
        content[f"{index}.png"] = {"parts": parts}
        picture(tmp_path / "images" / f"{index}.png", rng.random() < 0.1)
    text(tmp_path / "val_annotations.json", json.dumps(content))
    dataset = read(tmp_path)
    if dataset is None:
        return
    unread = sum(finding.code == "image-format" for finding in dataset.findings)
    assert len(dataset) + unread == len(content)
    absent = number(dataset.findings, "parts-not-targets", r"^(\d+) parts")
    lost = number(dataset.findings, "annotations-dropped", r"^(\d+) parts")
    faulty = {
        f.path
        for f in dataset.findings
        if f.path and ".parts." in f.path and CODES[f.code].kind is Kind.GEOMETRY
    }
    assert dataset.num_annotations + absent + lost + len(faulty) == parts_in
