"""Rows and settings of YOLO that can mean two things: read as the settings say, or refused with both readings."""

from __future__ import annotations

import pytest
from PIL import Image

from scantling.data.coco import ReadOptions
from scantling.data.formats.locations import read_location
from scantling.errors import DataError, Severity

POSE = (0.5, 0.5, 0.2, 0.4, 0.45, 0.4, 2, 0.55, 0.65, 1, 0.5, 0.5, 0, 0.42, 0.35, 2)
POSE_2D = (0.5, 0.5, 0.2, 0.4, 0.45, 0.4, 0.55, 0.65, 0.42, 0.35)
ROTATED = (0.5, 0.2, 0.6, 0.4, 0.5, 0.6, 0.4, 0.4)
UPRIGHT = (0.4, 0.3, 0.6, 0.3, 0.6, 0.7, 0.4, 0.7)
TRIANGLE = (0.4, 0.3, 0.6, 0.3, 0.5, 0.7)


def row(*values):
    return " ".join(["0", *map(str, values)])


def data_set(root, rows, settings=""):
    """A folder with one image of 100 x 50 per row."""
    for number, line in enumerate(rows):
        for folder in ("images", "labels"):
            (root / folder / "train").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 50)).save(root / "images" / "train" / f"{number}.png")
        (root / "labels" / "train" / f"{number}.txt").write_text(line + "\n")
    (root / "data.yaml").write_text(f"train: images/train\nnames: [nut]\n{settings}")
    return root


def boxes(dataset):
    return [a.box_xywh for many in dataset.annotations for a in many]


def refused(root, **options):
    with pytest.raises(DataError) as error:
        read_location(root, ReadOptions(**options))
    return error.value.findings


@pytest.mark.parametrize(("values", "shape"), [(POSE, "[4, 3]"), (POSE_2D, "[3, 2]")])
def test_rows_with_key_points_are_boxes_where_the_settings_say_so(tmp_path, values, shape):
    dataset = read_location(data_set(tmp_path, [row(*values)] * 3, f"kpt_shape: {shape}\n"))
    assert boxes(dataset) == [pytest.approx((40, 15, 20, 20))] * 3
    assert all(a.segmentation is None for many in dataset.annotations for a in many)
    assert "3 rows have key points" in next(f.message for f in dataset.findings if f.code == "yolo-keypoints")
    assert boxes(read_location(data_set(tmp_path, [row(*values)], "task: pose\n")))[0] == pytest.approx(
        (40, 15, 20, 20)
    )


@pytest.mark.parametrize(("values", "shape"), [(POSE, "[4, 3]"), (POSE_2D, "[3, 2]")])
def test_key_points_that_could_be_polygons_are_refused_with_both_readings(tmp_path, values, shape):
    (found, *_) = refused(data_set(tmp_path, [row(*values)] * 3))
    assert found.code == "yolo-reading"
    assert "task: segment" in found.message
    assert f"kpt_shape: {shape}" in found.message
    dataset = read_location(data_set(tmp_path, [row(*POSE_2D)] * 3, "task: segment\n"))
    assert dataset.annotations[0][0].segmentation is not None


def test_key_points_in_an_even_number_of_values_are_recognised(tmp_path):
    (found,) = (f for f in refused(data_set(tmp_path, [row(*POSE[:7])])) if f.code == "yolo-line")
    assert "kpt_shape: [1, 3]" in found.message
    (found,) = (f for f in refused(data_set(tmp_path, [row(*POSE[:4], 0.9)])) if f.code == "yolo-line")
    assert "6 are a box and its score (`save_conf`): predictions, not labels" in found.message
    assert "without the score: `save_conf=False`" in found.hint
    (found,) = (f for f in refused(data_set(tmp_path, [row(*TRIANGLE, 0.9)])) if f.code == "yolo-line")
    assert "8 can be a polygon and its score" in found.message


def test_a_row_of_another_length_than_the_settings_is_refused(tmp_path):
    root = data_set(tmp_path, [row(*POSE), row(*POSE[:4]), row(*TRIANGLE)], "kpt_shape: [4, 3]\n")
    (found,) = (f for f in refused(root) if f.code == "yolo-line")
    assert "`kpt_shape` makes it 17" in found.message
    assert read_location(root, ReadOptions(skip_invalid=True)).num_annotations == 2


def test_rotated_boxes_are_told_from_polygons_by_the_settings(tmp_path):
    rows = [row(*ROTATED), row(*UPRIGHT)]
    (found, *_) = refused(data_set(tmp_path, rows))
    assert found.code == "yolo-reading"
    assert "task: obb" in found.message
    assert "task: segment" in found.message
    around = [pytest.approx((40, 10, 20, 20)), pytest.approx((40, 15, 20, 20))]
    for settings, has_mask in (("task: obb\n", False), ("task: segment\n", True)):
        dataset = read_location(data_set(tmp_path, rows, settings))
        assert boxes(dataset) == around
        assert [a.segmentation is not None for many in dataset.annotations for a in many] == [has_mask] * 2


def test_corners_that_can_only_be_one_thing_need_no_settings(tmp_path):
    """Upright rectangles are the same either way; rows of several lengths, in whatever split, are polygons."""
    assert len(boxes(read_location(data_set(tmp_path / "upright", [row(*UPRIGHT)] * 2)))) == 2
    assert len(boxes(read_location(data_set(tmp_path / "mixed", [row(*ROTATED), row(*TRIANGLE)])))) == 2
    root = data_set(tmp_path / "splits", [row(*ROTATED)])
    data_set(root / "more", [row(*TRIANGLE)])
    (root / "data.yaml").write_text("train: more/images/train\nval: images/train\nnames: [nut]\n")
    assert len(boxes(read_location(f"{root}:val"))) == 1


def test_coordinates_less_than_a_percent_outside_are_clipped(tmp_path):
    rows = [
        row(0.3040172, 0.5002812, 0.6080344, 1.0004374),
        row(0.7292, 0.1852, 1.0021, 0.1852, 1.0021, 0.7407, 0.7292, 0.7407),
        row(-0.0042, 0.2778, 0.2083, 0.2778, 0.2083, 0.6481, -0.0042, 0.6481),
    ]
    dataset = read_location(data_set(tmp_path, rows))
    assert dataset.num_annotations == 3
    clipped = [dataset.instances(index).boxes[0].tolist() for index in range(3)]
    assert clipped[1] == pytest.approx([72.92, 9.26, 100, 37.035], abs=1e-3)
    assert clipped[2] == pytest.approx([0, 13.89, 20.83, 32.405], abs=1e-3)
    assert clipped[0][3] == pytest.approx(50)
    assert not [f for f in dataset.findings if f.code == "box-clipped"]
    wide = read_location(
        data_set(tmp_path / "wide", [row(0.5, 0.5, 1.0, 0.5, 1.0099, 0.9, 0.4, 0.9)] * 2, "task: segment\n")
    )
    assert not [f for f in wide.findings if f.code == "box-clipped"]


def test_the_advice_about_coordinates_fits_them(tmp_path):
    (far,) = (f for f in refused(data_set(tmp_path, [row(50, 25, 20, 20)])) if f.code == "yolo-range")
    (near,) = (f for f in refused(data_set(tmp_path, [row(0.5, 0.5, 1.03, 0.5)])) if f.code == "yolo-range")
    assert "Divide" in far.hint
    assert "Divide" not in near.hint
    assert "3.0%" in near.message


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[007, 1.10, null, true, 1e3, ~]", ("007", "1.10", "null", "true", "1e3", "~")),
        ("{0: 007, 1: null}", ("007", "null")),
        ("\n  0: 1.10\n  1: 'a, 1: b'\n", ("1.10", "a, 1: b")),
        ("\n- 08\n- off\n", ("08", "off")),
    ],
)
def test_names_of_classes_stay_as_they_are_written(tmp_path, names, expected):
    data_set(tmp_path, [row(0.5, 0.5, 0.2, 0.2)])
    for mark in ("", "\ufeff"):
        (tmp_path / "data.yaml").write_text(f"{mark}names: {names}\ntrain: images/train\n", encoding="utf-8")
        assert read_location(tmp_path).class_names == expected


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le"])
def test_class_lists_and_settings_that_are_not_utf8_are_refused(tmp_path, encoding):
    data_set(tmp_path, [row(0.5, 0.5, 0.2, 0.2)])
    settings = (tmp_path / "data.yaml").read_text().replace("nut", "Stütze")
    if encoding != "utf-16-le":
        (tmp_path / "data.yaml").write_bytes(settings.encode(encoding))
        assert [found.code for found in refused(tmp_path)] == ["text-encoding"]
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_bytes("Stütze\nÖse\n".encode(encoding))
    assert [found.code for found in refused(tmp_path)] == ["text-encoding"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_an_empty_line_in_a_class_list_shifts_nothing(tmp_path, end):
    data_set(tmp_path, [row(0.5, 0.5, 0.2, 0.2)])
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_bytes(f"nut{end}big bolt{end}{end}".encode())
    assert read_location(tmp_path).class_names == ("nut", "big bolt")
    (tmp_path / "classes.txt").write_bytes(f"nut{end}{end}bolt{end}".encode())
    (found,) = refused(tmp_path)
    assert (found.code, found.path) == ("class-list", "line 2")


def test_darknet_as_cvat_writes_it(tmp_path):
    folder = tmp_path / "obj_train_data"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (100, 50)).save(folder / f"frame_{number}.PNG")
        (folder / f"frame_{number}.txt").write_text("1 0.5 0.5 0.2 0.4\n" * number)
    (tmp_path / "obj.names").write_text("car\ntruck\n")
    lines = "".join(f"data/obj_train_data/frame_{number}.PNG\n" for number in range(3))
    (tmp_path / "train.txt").write_text(lines)
    (tmp_path / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    )
    dataset = read_location(f"{tmp_path}:train")
    assert (dataset.class_names, [len(many) for many in dataset.annotations]) == (("car", "truck"), [0, 1, 2])
    assert boxes(dataset) == [pytest.approx((40, 15, 20, 20))] * 3
    with pytest.raises(DataError) as error:
        read_location(folder)
    assert f"give {tmp_path}" in error.value.findings[0].hint
    (tmp_path / "obj.data").unlink()
    assert read_location(tmp_path).num_annotations == 3


def test_settings_without_splits_take_the_usual_folders(tmp_path):
    data_set(tmp_path, [row(0.5, 0.5, 0.2, 0.2)])
    (tmp_path / "data.yaml").write_text("nc: 1\nnames: [nut]\n")
    assert read_location(f"{tmp_path}:train").num_annotations == 1


@pytest.mark.parametrize(
    "damaged", ["", "version https://git-lfs.github.com/spec/v1\noid sha256:0", "train: images/train"]
)
def test_settings_that_name_no_classes_are_no_reason_to_guess_the_splits(tmp_path, damaged):
    data_set(tmp_path, [row(0.5, 0.5, 0.2, 0.2)])
    (tmp_path / "classes.txt").write_text("nut\n")
    (tmp_path / "data.yaml").write_text(damaged)
    (finding,) = refused(tmp_path)
    assert finding.file == str(tmp_path / "data.yaml")
    (tmp_path / "data.yaml").unlink()
    assert read_location(f"{tmp_path}:train").num_annotations == 1


@pytest.mark.parametrize(
    ("settings", "longer"),
    [("task: segment\n", TRIANGLE), ("task: obb\n", ROTATED), ("kpt_shape: [4, 3]\n", POSE)],
)
def test_a_label_file_of_boxes_and_longer_rows_is_told_since_ultralytics_drops_its_image(
    tmp_path, settings, longer
):
    box = row(0.5, 0.5, 0.2, 0.4)
    mixed = data_set(tmp_path / "mixed", [f"{row(*longer)}\n{box}", row(*longer), box], settings)
    (finding,) = [f for f in read_location(mixed).findings if f.code == "yolo-mixed"]
    assert finding.severity is Severity.WARNING
    assert finding.message.startswith("1 label files have rows of boxes beside longer ones: ")
    assert finding.message.endswith(str(mixed / "labels" / "train" / "0.txt"))
    assert "its corners" in finding.hint
    alike = data_set(tmp_path / "alike", [f"{row(*longer)}\n{row(*longer)}", f"{box}\n{box}"], settings)
    assert "yolo-mixed" not in {finding.code for finding in read_location(alike).findings}
