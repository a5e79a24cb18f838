"""Every way to name images: which ones are meant, in which order, under which ids, and what is fetched and removed."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from reference.colour_detector import CLASS_NAMES, ColourDetector
from scantling.data.coco import Category
from scantling.errors import DataError, UsageError
from scantling.predict import sources
from scantling.predict.listing import list_source
from scantling.predict.loaded import LoadedDetector
from scantling.predict.predictor import PredictConfig, Predictor
from scantling.predict.sources import open_source, opened_images, place_of_output, portions_of
from scantling.run.predictions import predict_source

BOX = {0: (5, 5, 25, 25)}
NAMES = ("b.png", "a/z.png", "a.b.png", "a/sub/c.PNG")
ORDER = ["a/sub/c.PNG", "a/z.png", "a.b.png", "b.png"]
"""Folder by folder, as a folder's images come when it is predicted."""


@pytest.fixture
def photos(paint, tmp_path) -> Path:
    for name in NAMES:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        paint(f"photos/{name}", (40, 60), BOX)
    return tmp_path / "photos"


@pytest.fixture
def elsewhere(photos):
    """The same photos at `memory://`, where nothing is a local file."""
    system = fsspec.filesystem("memory")
    for name in NAMES:
        system.pipe_file(f"/bucket/photos/{name}", (photos / name).read_bytes())
    yield system
    system.rm("/bucket", recursive=True)


def ids(source) -> list:
    return [image.id for image in list_source(source).images]


def test_a_folder_is_listed_as_it_is_predicted(photos):
    (photos / ".hidden").mkdir()
    (photos / ".hidden" / "h.png").write_bytes(b"")
    (photos / "notes.txt").write_text("no image")
    (photos / "named_by_nobody").write_bytes((photos / "b.png").read_bytes())
    (photos / "Makefile").write_text("all:")
    listing = list_source(photos)
    assert [image.id for image in listing.images] == [*ORDER, "named_by_nobody"]
    assert [record.id for record in open_source(photos).records] == [*ORDER, "named_by_nobody"]
    (finding,) = listing.findings
    assert finding.code == "not-an-image"
    assert "2 files are no images and are not used: Makefile, notes.txt" in finding.message


@pytest.mark.parametrize("url", [False, True])
def test_patterns(photos, elsewhere, url):
    root = "memory://bucket/photos" if url else photos
    assert ids(f"{root}/**/*.png") == (["a/z.png", "a.b.png", "b.png"])
    assert ids(f"{root}/a/*") == ["z.png"]
    assert ids(f"{root}/[ab].png") == ["b.png"]
    with pytest.raises(UsageError, match="no file fits"):
        list_source(f"{root}/*.jpg")


def test_a_file_whose_name_has_wildcards_is_that_file(paint, tmp_path):
    paint("a[1].png", (40, 60), BOX)
    assert ids(tmp_path / "a[1].png") == ["a[1].png"]


def test_lists_are_relative_to_themselves_and_may_hold_urls(photos, elsewhere, tmp_path):
    lines = [
        "photos/b.png",
        str(photos / "a/z.png"),
        "memory://bucket/photos/b.png",
        "",
        "photos/b.png",
        "#1.png",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8-sig")
    listing = list_source(tmp_path / "list.txt")
    images = list(listing.images)
    assert [image.id for image in images] == [*lines[:3], "#1.png"]
    assert [finding.code for finding in listing.findings] == ["image-name-twice"]
    with opened_images(images, listing.root) as opened:
        assert [record.id for record in opened.records] == lines[:3]
        assert [(finding.code, finding.id) for finding in opened.findings] == [("image-missing", "#1.png")]
    elsewhere.pipe_file("/bucket/list.txt", b"photos/b.png\nphotos/a/z.png\n")
    assert list_source("memory://bucket/list.txt").root == "memory:///bucket"
    assert ids("memory://bucket/list.txt") == ["photos/b.png", "photos/a/z.png"]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\n\n"])
def test_a_list_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"list\.txt"):
        list_source(tmp_path / "list.txt")


def test_a_data_set_keeps_its_ids_sizes_and_categories(photos, tmp_path):
    images = [{"id": 7, "file_name": "b.png", "width": 60, "height": 40}]
    content = {"images": images, "annotations": [], "categories": [{"id": 9, "name": "red"}]}
    (photos / "val.json").write_text(json.dumps(content))
    listing = list_source(photos / "val.json")
    (image,) = listing.images
    assert (image.id, image.file_name, image.place, image.size_hw) == (7, "b.png", "b.png", (40, 60))
    assert [category.id for category in listing.categories] == [9]


def test_urls_of_folders_and_images(photos, elsewhere):
    assert ids("memory://bucket/photos") == ORDER
    assert ids("memory://bucket/photos/a/z.png") == ["z.png"]
    assert ids(f"file://{photos}") == ORDER
    with pytest.raises(UsageError, match="no such file or folder"):
        list_source("memory://bucket/nothing")


def test_what_a_protocol_needs_is_said():
    with pytest.raises(UsageError, match=r"package that reads s3:// is not installed") as caught:
        list_source("s3://bucket/photos")
    assert "s3fs" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="no protocol s4://"):
        list_source("s4://bucket/photos")


def test_copies_are_there_while_they_are_looked_at_and_no_longer(elsewhere):
    elsewhere.pipe_file("/bucket/photos/bad.png", b"nothing")
    listing = list_source("memory://bucket/photos")
    images = [*listing.images, *list_source("memory://bucket/photos/b.png").images]
    elsewhere.rm("/bucket/photos/a.b.png")
    with opened_images(images[:5], listing.root) as opened:
        paths = [record.path for record in opened.records]
        assert all(path.is_file() for path in paths)
        assert [(f.code, f.id) for f in opened.findings] == [
            ("image-missing", "a.b.png"),
            ("image-format", "bad.png"),
        ]
        assert opened.urls[str(paths[0])] == "memory:///bucket/photos/a/sub/c.PNG"
    assert not any(path.exists() for path in paths)


def test_images_elsewhere_are_predicted_as_local_ones_some_at_a_time(photos, elsewhere, monkeypatch):
    elsewhere.pipe_file("/bucket/photos/bad.png", (photos / "b.png").read_bytes()[:60])
    monkeypatch.setattr(sources, "_PORTION", 2)
    assert [len(portion.records) for portion in portions_of("memory://bucket/photos")] == [2, 2, 1, 0]

    def detector():
        predictor = Predictor(ColourDetector(), PredictConfig(scales=40), CLASS_NAMES)
        return LoadedDetector(predictor=predictor, categories=tuple(map(Category, (1, 2, 3), CLASS_NAMES)))

    far = predict_source("memory://bucket/photos", detector())
    assert far.results == predict_source(photos, detector()).results
    assert len(far.results) == 4
    (finding,) = far.findings
    assert (finding.file, finding.id) == ("memory:///bucket/photos/bad.png", "bad.png")


@pytest.mark.parametrize("name", ["x/a.png", "/x/a.png", "../x/a.png", "s3://x/a.png"])
def test_what_is_made_of_an_image_stays_in_its_folder(name):
    assert place_of_output(Path("out"), name) == Path("out/x/a.png")
