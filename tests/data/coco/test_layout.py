"""A split never vanishes: what lies in a place of annotations is read, or is an error with its reason."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from reference.vision_layout import write_vision_set
from scantling.cli import main
from scantling.data.coco import find_split
from scantling.data.coco.layout import coco_splits
from scantling.data.convert import convert_data
from scantling.data.formats.layouts import detect_format
from scantling.data.health.check import check_data
from scantling.data.splits import DataConfig, read_run_data
from scantling.errors import DataError
from scantling.pretrain.config import PretrainConfig
from scantling.pretrain.source import read_crops

LABELS = {
    "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 12]}],
    "categories": [{"id": 1, "name": "dent"}],
}
TEXT = json.dumps(LABELS)
PADDED = json.dumps({"info": {"text": "x" * (3 << 20)}, **LABELS})
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
LATIN = TEXT.replace("dent", "\xd6se").encode("latin-1")
BROKEN = {
    "Git-LFS pointer": (POINTER, "json-foreign", "git lfs pull"),
    "empty": (b"", "file-empty", "0 bytes"),
    "white space": (b"\n  \n", "json-syntax", "too early"),
    "UTF-16": (TEXT.encode("utf-16"), "json-encoding", "UTF-16"),
    "Latin-1": (LATIN, "json-encoding", "not UTF-8"),
    "HTML": (b"<!DOCTYPE html><html>404</html>", "json-foreign", "HTML"),
    "CSV": (b"file,x,y,w,h\na.png,1,2,3,4\n", "json-syntax", "line 1"),
    "a list": (b"[]", "coco-is-results", "list"),
    "another object": (b'{"version": 1}', "key-missing", "'images'"),
    "cut late": (TEXT[:-9].encode(), "json-syntax", "too early"),
    "cut early": (b'{"info": {"year": 2026', "json-syntax", "too early"),
}
PLACES = {
    "annotations/": ("annotations/{}.json", "images"),
    "COCO": ("annotations/instances_{}2017.json", "{}2017"),
    "Roboflow": ("{}/_annotations.coco.json", "{}"),
    "beside": ("{}.json", "."),
}


def write(root, place, **files):
    """Annotations by split, and the picture that they name."""
    where, images = PLACES[place]
    for split, content in files.items():
        path = root / where.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        folder = root / images.format(split)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (90, 200, 10)).save(folder / "a.png")
    return root


def errors(call):
    with pytest.raises(DataError) as error:
        call()
    return {finding.code for finding in error.value.findings if finding.severity == "error"}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_of_a_split_is_an_error_with_its_reason(tmp_path, place, kind):
    content, code, reason = BROKEN[kind]
    root = write(tmp_path, place, train=content, val=TEXT)
    assert [name.removesuffix("2017") for name in coco_splits(root)] == ["train", "val"]
    health = check_data(str(root), pixels=False)
    found = [finding for finding in health.findings if finding.severity == "error"]
    assert {finding.code for finding in found} == {code}
    assert any(reason in str(finding) for finding in found)
    assert all("train" in finding.file for finding in found)


@pytest.mark.parametrize("kind", ["Git-LFS pointer", "a list", "cut early"])
def test_every_way_to_read_a_folder_refuses_it(tmp_path, kind, capsys, monkeypatch):
    content, code, _ = BROKEN[kind]
    root = write(tmp_path / "data", "annotations/", train=content, val=TEXT)
    assert errors(lambda: convert_data(root, "yolo", tmp_path / "out")) == {code}
    assert errors(lambda: read_crops(root, PretrainConfig())) == {code}
    assert errors(lambda: read_run_data(DataConfig(root=str(root)), "val")) == {code}
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("sys.argv", ["scantling", "check", str(root)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert code in capsys.readouterr().out


@pytest.mark.parametrize("place", PLACES)
def test_pointers_alone_are_no_folder_without_labels(tmp_path, place):
    root = write(tmp_path, place, train=POINTER, val=POINTER)
    assert errors(lambda: read_crops(root, PretrainConfig())) == {"json-foreign"}


@pytest.mark.parametrize("place", PLACES)
def test_lists_behind_the_first_megabyte_are_found_and_their_images(tmp_path, place):
    root = write(tmp_path, place, train=PADDED, val=TEXT)
    layout = detect_format(root)
    assert [name.removesuffix("2017") for name in layout.splits] == ["train", "val"]
    file, images = find_split(root, layout.splits[0])
    assert (images / "a.png").is_file()
    assert "train" in file.relative_to(root).as_posix()
    assert not check_data(str(root), pixels=False).failed


def test_other_names_of_annotations_count_too(tmp_path):
    root = write(tmp_path, "annotations/", labels=POINTER, val=TEXT)
    (root / "annotations" / "val.json").rename(root / "annotations" / "val.JSON")
    assert list(coco_splits(root)) == ["val", "labels"]
    assert find_split(root, "val")[0].name == "val.JSON"


def test_readable_files_of_another_kind_are_no_splits(tmp_path):
    root = write(tmp_path, "beside", train=TEXT, val=TEXT)
    (root / "val_predictions.json").write_text("[]")
    (root / "settings.json").write_text('{"name": "parts"}')
    (root / "annotations").mkdir()
    (root / "annotations" / "found.json").write_text("[]")
    assert list(coco_splits(root)) == ["train", "val"]


def test_a_folder_of_another_tool_s_files_is_not_taken_for_coco(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "a.json").write_text('{"shapes": []}')
    (tmp_path / "annotations" / "b.json").write_bytes(b"")
    (tmp_path / "test.json").write_text("[]")
    assert coco_splits(tmp_path) == {}


def test_a_broken_file_of_parts_is_a_split(tmp_path):
    parts = {"a.png": {"parts": {"bell": {"object_state": "absent"}}}}
    (tmp_path / "val_annotations.json").write_text(json.dumps(parts))
    (tmp_path / "train_annotations.json").write_bytes(POINTER)
    assert errors(lambda: convert_data(tmp_path, "yolo", tmp_path / "out")) == {"json-foreign"}


def test_a_split_that_is_only_predicted_needs_no_labels(tmp_path):
    root = tmp_path / "Cable"
    write_vision_set(root, {"train": 2, "val": 2, "inference": 3})
    data = read_run_data(DataConfig(root=str(root)), "test", with_masks=True)
    assert (len(data.target), data.target.num_annotations) == (3, 0)
    assert data.target.categories == data.train.categories
    (root / "val/_annotations.coco.json").write_bytes(
        (root / "inference/_annotations.coco.json").read_bytes()
    )
    with pytest.raises(DataError, match="the key 'annotations' is missing"):
        read_run_data(DataConfig(root=str(root)), "test", with_masks=True)


def sliced(root, *splits):
    """As SAHI's `coco slice` leaves them: each split's pictures in a folder that is called after it in its own way."""
    for split in splits:
        picture = root / f"{split}_images_256_02" / "a.png"
        picture.parent.mkdir(parents=True)
        Image.new("RGB", (40, 30), (90, 200, 10)).save(picture)
        (root / f"{split}_256_02.json").write_text(TEXT)
    return root


def test_pictures_are_found_in_the_one_folder_that_has_them_whatever_its_name(tmp_path):
    one = sliced(tmp_path / "one", "train")
    assert find_split(one, "train_256_02")[1] == one / "train_images_256_02"
    two = sliced(tmp_path / "two", "train", "val")  # pictures of the same names
    assert [find_split(two, f"{split}_256_02")[1].name for split in ("train", "val")] == [
        "train_images_256_02",
        "val_images_256_02",
    ]
    assert {finding.code for finding in check_data(two).findings} == {"split-same-file"}


def test_two_folders_that_could_have_the_pictures_are_not_chosen_between(tmp_path):
    (tmp_path / "labels.json").write_text(TEXT)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / name / "a.png")
    assert find_split(tmp_path, "labels")[1] == tmp_path
    assert "image-missing" in {finding.code for finding in check_data(tmp_path / "labels.json").findings}


def test_paths_may_begin_at_a_folder_further_up(tmp_path):
    """As labelme2coco writes them: as they were typed where it ran."""
    file = tmp_path / "work" / "out" / "dataset.json"
    file.parent.mkdir(parents=True)
    picture = tmp_path / "work" / "photos" / "a.png"
    picture.parent.mkdir()
    Image.new("RGB", (40, 30)).save(picture)
    file.write_text(TEXT.replace("a.png", "work/photos/a.png"))
    assert find_split(file.parent, "dataset")[1] == tmp_path


def test_the_advice_to_split_goes_with_spaces_in_names(tmp_path):
    root = write(tmp_path / "my parts", "annotations/", train=TEXT)
    with pytest.raises(DataError) as error:
        find_split(root, "val")
    assert f"`scantling split '{root}:train' --out splits`" in error.value.findings[0].hint
