"""Images of a data set or folder looked at before work starts (RELIABILITY rows 35-49)."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from scantling.data.coco import read_coco
from scantling.data.health import images as image_check
from scantling.data.health.images import check_images, images_of_folder, usable_images
from scantling.errors import DataError, Severity


@pytest.fixture
def dataset(content, write, pictures):
    return read_coco(write(content))


def noisy_jpeg(size_hw=(80, 100)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (*size_hw, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def put(pictures, data: bytes):
    (pictures / "a.png").write_bytes(data)


def test_sound_images_give_no_findings(dataset):
    assert check_images(dataset) == ()
    assert check_images(dataset, decode=True, strict=True) == ()
    assert usable_images(dataset) == dataset


def breaks():
    def missing(pictures):
        (pictures / "a.png").unlink()

    def folder(pictures):
        (pictures / "a.png").unlink()
        (pictures / "a.png").mkdir()

    def other_size(pictures):
        Image.new("RGB", (90, 80)).save(pictures / "a.png")

    def swapped(pictures):
        Image.new("RGB", (80, 100)).save(pictures / "a.png")

    return [
        ("row 39: missing", missing, "image-missing", "there is no file"),
        ("row 39: zero bytes", lambda p: put(p, b""), "image-unreadable", "0 bytes"),
        ("row 39: folder", folder, "image-unreadable", "directory"),
        ("row 39: web page", lambda p: put(p, b"<html><body>"), "image-format", "HTML page"),
        (
            "row 39: Git-LFS pointer",
            lambda p: put(p, b"version https://git-lfs.github.com/spec/v1\n"),
            "image-format",
            "git lfs pull",
        ),
        (
            "row 35: other size",
            other_size,
            "image-size-differs",
            "width 90 and height 80, its record width 100 and height 80",
        ),
        ("row 35: swapped", swapped, "image-size-differs", "swapped"),
    ]


@pytest.mark.parametrize(("breaks", "code", "words"), [b[1:] for b in breaks()], ids=[b[0] for b in breaks()])
@pytest.mark.parametrize("decode", [False, True])
def test_an_unusable_image_is_an_error_or_left_out_and_counted(
    dataset, pictures, breaks, code, words, decode
):
    breaks(pictures)
    with pytest.raises(DataError) as error:
        usable_images(dataset, decode=decode)
    (finding,) = error.value.findings
    assert (finding.code, finding.id, finding.severity) == (code, 7, Severity.ERROR)
    assert words in finding.message
    assert "a.png" in finding.path
    assert finding.hint
    kept = usable_images(dataset, decode=decode, skip_invalid=True)
    assert [image.id for image in kept.images] == [4]
    assert kept.num_annotations == 1
    assert [f.code for f in kept.findings] == [code, "images-dropped"]
    assert kept.findings[1].message == "1 of 2 images are not used, with 2 objects: a.png"
    with pytest.raises(DataError):
        usable_images(dataset, decode=decode, skip_invalid=True, strict=True)


def test_all_bad_images_are_found_in_one_pass(dataset, pictures):
    put(pictures, b"")
    (pictures / "sub" / "b.png").unlink()
    assert {(f.code, f.id) for f in check_images(dataset)} == {("image-unreadable", 7), ("image-missing", 4)}


def test_a_missing_folder_is_said_once(dataset, pictures):
    pictures.rename(pictures.parent / "elsewhere")
    (finding,) = check_images(dataset)
    assert finding.code == "file-missing"
    assert str(pictures) in finding.message


def test_images_that_are_all_missing_are_said_once(dataset, pictures):
    (pictures / "a.png").unlink()
    (pictures / "sub" / "b.png").unlink()
    for options in ({}, {"skip_invalid": True}):
        (finding,) = check_images(dataset, **options)
        assert (finding.code, finding.severity) == ("file-missing", Severity.ERROR)
        assert finding.message == f"none of the 2 images is in {pictures}, beginning with sub/b.png"
        assert finding.hint == "Put them there, or give the folder that `file_name` is relative to."


def test_images_in_another_folder_are_pointed_to(content, write, pictures):
    dataset = read_coco(write(content), pictures)
    pictures.rename(pictures.parent / "photos")
    lost = replace(
        dataset, images=tuple(replace(i, path=pictures.parent / i.file_name) for i in dataset.images)
    )
    (finding,) = check_images(replace(lost, image_root=pictures.parent))
    assert (
        finding.hint == f"{pictures.parent / 'photos'} has it: rename it to images, or set data.images to it."
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("A.png", "a.png"),
        ("sub/B.PNG", "sub/b.png"),
        ("images/a.png", "a.png"),
        ("images/sub/b.png", "sub/b.png"),
    ],
)
def test_row_38_a_name_that_is_nearly_right(content, write, pictures, name, meant):
    content["images"][0]["file_name"] = name
    (finding,) = check_images(read_coco(write(content), pictures))
    assert finding.code == "image-missing"
    assert finding.hint == f"Did you mean {meant!r}?"


def test_row_38_the_images_prefix_just_works_where_the_root_is_free(content, write, pictures):
    for image in content["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    dataset = read_coco(write(content))
    assert dataset.image_root == pictures.parent
    assert check_images(dataset) == ()


def test_row_40_half_a_picture_is_found_by_decoding(dataset, pictures):
    data = noisy_jpeg()
    put(pictures, data[: len(data) // 2] + b"\xff\xd9")
    assert check_images(dataset) == ()
    (finding,) = check_images(dataset, decode=True)
    assert (finding.code, finding.id) == ("image-damaged", 7)


def test_row_40_data_left_over_after_the_picture_are_suspicious(dataset, pictures):
    data = noisy_jpeg()
    put(pictures, data[:-2] + bytes(range(1, 200)) + b"\xff\xd9")
    (finding,) = check_images(dataset, decode=True)
    assert (finding.code, finding.severity) == ("image-surplus", Severity.WARNING)
    put(pictures, data)
    assert check_images(dataset, decode=True) == ()


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_row_45_an_undecidable_rotation_is_a_warning_that_states_the_choice(dataset, pictures, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (100, 80)).save(pictures / "a.png", exif=exif)
    (finding,) = check_images(dataset)
    assert (finding.code, finding.severity) == ("image-orientation", Severity.WARNING)
    assert f"EXIF orientation {orientation}" in finding.message
    assert "is applied" in finding.message
    assert len(usable_images(dataset)) == 2


@pytest.mark.parametrize(("stored_wh", "told"), [((100, 80), ["image-orientation-kept"]), ((80, 100), [])])
def test_row_45_a_quarter_turn_is_decided_and_told_where_it_is_not_applied(
    dataset, pictures, stored_wh, told
):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", stored_wh).save(pictures / "a.png", exif=exif)
    found = check_images(dataset, decode=True, strict=True)
    assert [finding.code for finding in found] == told
    assert all(finding.severity is Severity.INFO for finding in found)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_row_47_several_frames(dataset, pictures, kind):
    frames = [Image.new("RGB", (100, 80), colour) for colour in ("red", "blue", "green")]
    frames[0].save(pictures / "a.png", kind, save_all=True, append_images=frames[1:])
    (finding,) = check_images(dataset, decode=True)
    assert (finding.code, finding.severity, finding.id) == ("image-animated", Severity.WARNING, 7)


def test_row_48_a_very_large_image_is_a_warning(dataset, pictures, monkeypatch):
    monkeypatch.setattr(image_check, "LARGE_PIXELS", 100 * 80 - 1)
    findings = check_images(dataset)
    assert [(f.code, f.severity) for f in findings] == [("image-large", Severity.WARNING)] * 2
    assert image_check.LARGE_PIXELS < 120_000_000


# ---------------------------------------------------------------- folders


def test_row_49_a_folder_with_all_sorts_of_things(pictures):
    (pictures / "README.md").write_text("words")
    (pictures / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    records, findings = images_of_folder(pictures)
    assert [(r.id, r.file_name, r.size_hw) for r in records] == [
        ("a.png", "a.png", (80, 100)),
        ("sub/b.png", "sub/b.png", (80, 100)),
    ]
    assert all(record.path.is_file() for record in records)
    assert {(f.path, f.code, f.severity) for f in findings} == {
        ("README.md", "not-an-image", Severity.WARNING),
        (".DS_Store", "not-an-image", Severity.WARNING),
        ("broken.jpg", "image-damaged", Severity.WARNING),
    }


def test_row_45_records_of_a_folder_have_the_upright_size(pictures):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (100, 80)).save(pictures / "a.png", exif=exif)
    assert images_of_folder(pictures).records[0].size_hw == (100, 80)
    assert images_of_folder(pictures).findings == ()


def test_row_49_nothing_to_predict(tmp_path):
    (tmp_path / "README").write_text("words")
    with pytest.raises(DataError, match="no image"):
        images_of_folder(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        images_of_folder(tmp_path / "missing")
