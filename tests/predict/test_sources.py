"""What a path given to `predict` stands for."""

from __future__ import annotations

import pytest
from PIL import Image

from scantling.data.io import write_json
from scantling.errors import DataError, ScantlingError, Severity, UsageError
from scantling.predict.sources import open_source


def test_a_single_image(paint):
    record = paint("a.png", (50, 60), {})
    (found,), findings, _ = open_source(record.path)
    assert (found.id, found.path, found.size_hw, findings) == ("a.png", record.path, (50, 60), ())


def test_a_single_image_gets_the_warnings_it_would_get_in_a_folder(tmp_path):
    """An animation, of which one frame counts."""
    frames = [Image.new("RGB", (60, 50), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    alone, together = open_source(tmp_path / "a.gif"), open_source(tmp_path)
    assert (
        [finding.code for finding in alone.findings] == [finding.code for finding in together.findings] != []
    )
    assert alone.records == together.records


def test_a_folder_with_other_things_in_it(paint, tmp_path):
    for name in ("b.png", "a.PNG"):
        paint(name, (50, 60), {})
    (tmp_path / "README.md").write_text("read me")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0")
    (tmp_path / "page.jpg").write_text("<html></html>")
    records, findings, _ = open_source(tmp_path)
    assert [record.id for record in records] == ["a.PNG", "b.png"]
    assert sorted(finding.path for finding in findings) == [".DS_Store", "README.md", "page.jpg"]
    assert all(finding.severity is Severity.WARNING for finding in findings)


def test_a_coco_file_without_annotations(paint, tmp_path):
    paint("a.png", (50, 60), {})
    write_json(
        tmp_path / "test.json", {"images": [{"id": 9, "file_name": "a.png", "width": 60, "height": 50}]}
    )
    (record,), *_ = open_source(tmp_path / "test.json")
    assert (record.id, record.path.resolve()) == (9, (tmp_path / "a.png").resolve())


def test_nothing_there(tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        open_source(tmp_path / "nowhere")


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match=str(tmp_path)):
        open_source(tmp_path)


def test_a_file_that_is_no_image(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no pixels here")
    with pytest.raises(ScantlingError, match=r"notes\.txt"):
        open_source(path)
