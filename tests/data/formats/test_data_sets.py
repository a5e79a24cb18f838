"""The data sets of a folder: those whose format is known, whatever else lies there."""

from __future__ import annotations

import pytest
from PIL import Image

from reference.vision_layout import write_vision_set
from scantling.data.formats.layouts import detect_format, find_data_sets, is_data_set
from scantling.errors import DataError
from scantling.synth.synth import SynthConfig, write_synth


def test_sub_folders_in_a_known_format_are_data_sets(tmp_path):
    write_vision_set(tmp_path / "PCB_1", {"train": 1, "val": 1, "inference": 1})
    write_synth(tmp_path / "bolts", SynthConfig(size_hw=(96, 128)), splits={"train": 1}, seed=0)
    (tmp_path / "yolo/labels").mkdir(parents=True)
    (tmp_path / "yolo/data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    for other in (".cache", "readme", "pictures"):
        (tmp_path / other).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures/a.png")
    (tmp_path / "list.txt").write_text("PCB_1\n")
    found = find_data_sets(tmp_path)
    assert list(found) == ["PCB_1", "bolts", "yolo"]
    assert found["PCB_1"] == tmp_path / "PCB_1"
    assert detect_format(found["PCB_1"]).splits == ("train", "val", "inference")
    assert not is_data_set(tmp_path)
    assert find_data_sets(tmp_path / "readme") == {}
    with pytest.raises(DataError, match="there is no such folder"):
        find_data_sets(tmp_path / "nowhere")


def test_a_data_set_whose_labels_are_damaged_is_one(tmp_path):
    write_vision_set(tmp_path / "Cable", {"train": 1, "val": 1})
    for split in ("train", "val"):
        (tmp_path / f"Cable/{split}/_annotations.coco.json").write_text("{")
    assert list(find_data_sets(tmp_path)) == ["Cable"]


def test_cocos_files_without_instances_are_no_splits_and_alone_are_refused_for_what_they_are(tmp_path):
    """Datumaro writes `stuff_train.json` beside the instances; in panoptic files there were splits of 0 objects."""
    write_synth(tmp_path / "parts", SynthConfig(size_hw=(96, 128)), splits={"train": 1}, seed=0)
    annotations = tmp_path / "parts" / "annotations"
    for kind in ("stuff", "panoptic", "captions"):
        (annotations / f"{kind}_train.json").write_bytes((annotations / "train.json").read_bytes())
    layout = detect_format(tmp_path / "parts")
    assert layout.splits == ("train",)
    assert layout.notes == (
        "no splits of their own, not read: captions_train.json, panoptic_train.json, stuff_train.json",
    )
    (annotations / "train.json").unlink()
    for folder, prefix in ((tmp_path / "parts", "annotations/"), (annotations, "")):
        assert not is_data_set(folder)
        with pytest.raises(DataError) as error:
            detect_format(folder)
        (finding,) = error.value.findings
        assert finding.code == "format-unknown"
        assert f"hold no instances: {prefix}captions_train.json, {prefix}panoptic_train.json" in finding.hint
        assert "instances_SPLIT.json" in finding.hint
        assert "give that folder" not in finding.hint
