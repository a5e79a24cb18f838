"""Labels and images that are there under nearly the right name or in nearly the right place; leftovers are counted."""

from __future__ import annotations

import unicodedata

import pytest
from PIL import Image

from scantling.data.coco import ReadOptions
from scantling.data.formats.layouts import detect_format
from scantling.data.formats.locations import read_location
from scantling.data.formats.yolo_labels import labels_folder
from scantling.data.health.images import check_images
from scantling.data.io import hint_for_missing
from scantling.data.spelling import Names, alike, likeness
from scantling.errors import DataError

BOX = "0 0.5 0.5 0.2 0.4\n"
NFC, NFD = unicodedata.normalize("NFC", "prüfling"), unicodedata.normalize("NFD", "prüfling")
XML = (
    "<annotation><filename>{name}</filename><object><name>nut</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
    "<xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)


def picture(path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (100, 50), (9, 99, 200)).save(path, **options)


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def yolo(root, labels, images=("a.jpg",), names="names: [nut]\n"):
    """A set of one split; label files by their path in the folder."""
    for name in images:
        picture(root / "images" / "train" / name)
    for name, content in labels.items():
        text(root / name, content)
    text(root / "data.yaml", "train: images/train\n" + names)
    return root


def finding(dataset, code):
    return next((found for found in dataset.findings if found.code == code), None)


def test_what_spellings_have_in_common():
    assert likeness("IMG%201.JPG") == likeness("img 1.jpg")
    assert likeness(NFC) == likeness(NFD)
    assert alike(NFD, [NFC, "other"]) == NFC
    assert alike("a", ["A", "a "]) == "A"
    assert alike("a", ["A", "a%"]) == "A"
    assert Names({"A": 1, "Ä": 2}).spelled("a") == "A"
    assert Names({"AB": 1, "Ab": 2}).spelled("ab") is None


@pytest.mark.parametrize(
    ("image", "label", "told"),
    [
        ("a.jpg", "labels/train/a.txt", False),
        ("a.jpg", "labels/train/a.TXT", False),
        ("a.JPG", "labels/train/A.txt", True),
        ("a b.jpg", "labels/train/a%20b.txt", True),
        (f"{NFC}.jpg", f"labels/train/{NFD}.txt", True),
        ("a.jpg", "images/train/a.txt", False),
        ("a.jpg", "Labels/train/a.txt", False),
    ],
)
def test_a_label_is_found_under_any_spelling_and_beside_its_image(tmp_path, image, label, told):
    dataset = read_location(yolo(tmp_path, {label: BOX}, [image]))
    assert dataset.annotations[0][0].box_xywh == pytest.approx((40, 15, 20, 20))
    assert (finding(dataset, "label-spelling") is not None) == told
    assert finding(dataset, "label-unused") is None


def test_a_label_goes_to_the_image_that_it_is_named_after(tmp_path):
    dataset = read_location(yolo(tmp_path, {"labels/train/a.txt": BOX}, ["a.jpg", "A.jpg"]))
    by_name = {
        image.file_name: len(many) for image, many in zip(dataset.images, dataset.annotations, strict=True)
    }
    assert by_name == {"train/a.jpg": 1, "train/A.jpg": 0}


def test_images_in_the_path_above_the_data_set_mean_nothing(tmp_path, monkeypatch):
    """The same labels by a relative and by an absolute path, in a folder that is itself called images."""
    root = tmp_path / "images" / "parts"
    picture(root / "train" / "a.jpg")
    text(root / "train" / "a.txt", BOX)
    text(root / "data.yaml", "train: train\nnames: [nut]\n")
    monkeypatch.chdir(root)
    assert read_location(".").num_annotations == read_location(root).num_annotations == 1
    assert labels_folder(root / "train", (root,)) == root / "train"
    assert (
        labels_folder(root / "images" / "x" / "images" / "y", (root,))
        == root / "images" / "x" / "labels" / "y"
    )


def test_label_files_without_an_image_are_counted_and_the_likely_image_is_named(tmp_path):
    labels = {
        "labels/train/gone.txt": BOX * 3,
        "labels/train/sub/b.txt": BOX,
        "labels/train/classes.txt": "nut\n",
    }
    dataset = read_location(yolo(tmp_path, labels, ["a.jpg", "b.jpg"]))
    told = finding(dataset, "label-unused")
    assert told.message.startswith("2 label files with 4 rows belong to no image")
    assert f"sub/b.txt (for {tmp_path}/images/train/b.jpg?)" in told.message
    assert "classes" not in told.message


def test_one_label_file_for_two_images_is_told(tmp_path):
    dataset = read_location(yolo(tmp_path, {"labels/train/a.txt": BOX}, ["a.jpg", "a.png"]))
    assert "a.jpg, a.png" in finding(dataset, "label-shared").message


def test_pictures_of_kinds_that_are_not_opened_are_errors_or_counted(tmp_path):
    root = yolo(tmp_path, {"labels/train/b.txt": BOX, "labels/train/c.txt": BOX})
    (root / "images" / "train" / "b.avif").write_bytes(b"\0\0\0\x1cftypavif\0\0\0\0" + bytes(64))
    (root / "images" / "train" / "c.jp2").write_bytes(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64))
    picture(root / "images" / "train" / "d.mpo", format="JPEG")
    with pytest.raises(DataError) as error:
        read_location(root)
    words = {found.message for found in error.value.findings if found.code == "image-format"}
    assert words == {"not an image but an AVIF image", "not an image but a JPEG 2000 image"}
    dataset = read_location(root, ReadOptions(skip_invalid=True))
    assert [image.file_name for image in dataset.images] == ["train/a.jpg", "train/d.mpo"]
    assert sum(found.code == "image-format" for found in dataset.findings) == 2


def test_voc_files_beside_their_images_are_read(tmp_path):
    for split, count in (("train", 2), ("valid", 1)):
        for number in range(count):
            picture(tmp_path / split / f"p{number}.rf.0.jpg")
            text(tmp_path / split / f"p{number}.rf.0.xml", XML.format(name=f"p{number}.rf.0.jpg"))
    layout = detect_format(tmp_path)
    assert (layout.format, layout.splits) == ("VOC", ("train", "valid"))
    assert [read_location(f"{tmp_path}:{split}").num_annotations for split in ("train", "val")] == [2, 1]
    assert read_location(f"{tmp_path}/train").num_annotations == 2
    assert all(image.path.is_file() for image in read_location(f"{tmp_path}:val").images)


def test_voc_names_what_has_no_partner(tmp_path):
    for name in ("a.JPG", "b c.png", "d.png", "e.png", "e.jpg"):
        picture(tmp_path / "JPEGImages" / name, format="PNG")
    for name in ("A.XML", "b%20c.xml", "e.xml"):
        text(tmp_path / "Annotations" / name, XML.format(name="e.png"))
    dataset = read_location(tmp_path)
    assert sorted(image.file_name for image in dataset.images) == ["a.JPG", "b c.png", "e.png"]
    assert dataset.num_annotations == 3
    assert "2 files" in finding(dataset, "label-spelling").message
    assert finding(dataset, "image-unlabelled").message.startswith(
        "2 images have no XML file and are not used: d.png"
    )


def test_a_missing_picture_is_offered_under_the_name_it_has(tmp_path, content, write, pictures):
    content["images"][0]["file_name"] = f"{NFC}%201.png"
    (pictures / "a.png").rename(pictures / f"{NFD} 1.png")
    (found,) = check_images(read_location(write(content)))
    assert found.code == "image-missing"
    assert NFD in found.hint
    assert "looks the same" in hint_for_missing(pictures.parent / "images" / f"{NFC} 1.png")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.json": '{"version": "5.4", "shapes": [], "imagePath": "a.jpg"}'}, "labelme"),
        ({"annotations.xml": "<annotations><version>1.1</version></annotations>"}, "CVAT's own XML"),
        ({"_annotations.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\n"}, "a table"),
    ],
)
def test_labels_of_other_tools_are_recognised(tmp_path, files, words):
    picture(tmp_path / "a.jpg")
    for name, content in files.items():
        text(tmp_path / name, content)
    with pytest.raises(DataError) as error:
        detect_format(tmp_path)
    (found,) = error.value.findings
    assert found.code == "format-unknown"
    assert words in found.hint
    assert next(iter(files)) in found.hint


def test_labels_beside_images_without_class_names_ask_for_them(tmp_path):
    picture(tmp_path / "a.jpg")
    text(tmp_path / "a.txt", "1" + BOX[1:])
    with pytest.raises(DataError) as error:
        detect_format(tmp_path)
    assert "names: {0: NAME0, 1: NAME1}" in error.value.findings[0].hint
    text(tmp_path / "classes.txt", "nut\nbolt\n")
    dataset = read_location(tmp_path)
    assert [dataset.class_names[a.label] for a in dataset.annotations[0]] == ["bolt"]
