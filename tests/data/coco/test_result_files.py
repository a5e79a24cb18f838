"""What is given as a results file: the kinds that are read, and what is said of others."""

from __future__ import annotations

import json
import logging

import pytest

from scantling import api
from scantling.data.coco import check_results, read_checked, read_coco, read_results
from scantling.errors import DataError

FOUND = [
    {
        "image_id": number,
        "file_name": f"{number}.png",
        "category_id": 1,
        "bbox": [1.5, 2.0, 30.0, 20.0],
        "score": 0.5,
    }
    for number in (1, 2)
]


@pytest.fixture
def file(tmp_path):
    images = [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in (1, 2, 3)]
    truths = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 2, 30, 20]} for n in (1, 2)]
    content = {"images": images, "annotations": truths, "categories": [{"id": 1, "name": "bolt"}]}
    (tmp_path / "set.json").write_text(json.dumps(content))
    return tmp_path / "set.json"


def refusal(path, file):
    with pytest.raises(DataError) as error:
        read_results(path, read_coco(file))
    (finding,) = error.value.findings
    return finding.code, finding.message, finding.hint


def test_lines_are_read_and_a_damaged_one_is_named(file, tmp_path):
    lines = tmp_path / "found.jsonl"
    lines.write_text("".join(f"{json.dumps(each)}\n" for each in FOUND))
    assert read_results(lines, read_coco(file)) == FOUND
    lines.write_text(f"{json.dumps(FOUND[0])}\n{{'a': 1}}\n")
    with pytest.raises(DataError) as error:
        read_results(lines, read_coco(file))
    assert error.value.findings[0].path == "line 2 column 2"
    lines.write_text("\n" + "".join(f"{json.dumps(each)}\r\n\r\n" for each in FOUND))
    assert read_results(lines, read_coco(file)) == FOUND
    lines.write_text("\n")
    assert read_results(lines, read_coco(file)) == []


def test_parquet_is_read_with_and_without_masks(file, tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    mask = {"size": [48, 64], "counts": "`1`1Pm2"}
    rows = [{**FOUND[0], "segmentation": None}, {**FOUND[1], "segmentation": mask}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "found.parquet")
    content = check_results([FOUND[0], rows[1]], read_coco(file)).records
    assert read_results(tmp_path / "found.parquet", read_coco(file)) == content
    (tmp_path / "found.parquet").write_bytes(b"PAR1 cut off")
    code, message, _ = refusal(tmp_path / "found.parquet", file)
    assert (code, message.startswith("no parquet file, or damaged")) == ("file-unreadable", True)


def test_what_is_no_results_file_is_told_apart(file, tmp_path):
    labels = tmp_path / "predict" / "labels"
    labels.mkdir(parents=True)
    (labels / "1.txt").write_text("0 0.5 0.5 0.1 0.1 0.9\n")
    for path in (labels, labels.parent, labels / "1.txt"):
        code, message, hint = refusal(path, file)
        assert "YOLO label files are not results" in message
        assert "val(save_json=True)" in hint
    (tmp_path / "found.csv").write_text("x_min,y_min\n1,2\n")
    code, message, hint = refusal(tmp_path / "found.csv", file)
    assert (code, message) == ("json-foreign", "a table (CSV), which is not read as results")
    assert "JSON list of objects" in hint
    shards = tmp_path / "found it"
    (shards / "shards").mkdir(parents=True)
    (shards / "plan.json").write_text("{}")
    code, _, hint = refusal(shards, file)
    assert (code, f"`scantling merge '{shards}' --out FILE.json`" in hint) == ("file-is-folder", True)
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty", file)[1:] == (
        "this is a folder, a file is needed",
        "Name the file itself.",
    )


def test_keys_that_all_lack_are_told_once_with_those_found(file):
    """As supervision's JSONSink writes them."""
    rows = [
        {"x_min": 1.0, "y_min": 2.0, "class_id": 0, "confidence": 0.5, "file_name": f"{n}.png"}
        for n in (1, 2)
    ]
    with pytest.raises(DataError) as error:
        check_results(rows, read_coco(file))
    keys = "this one has class_id, confidence, file_name, x_min, y_min"
    told = {f.code: (f.path, f.message) for f in error.value.findings if f.severity.value == "error"}
    assert told["results-score"] == ("[0]", f"2 of 2 predictions have no score; {keys}")
    assert told["results-shapeless"] == (
        "[0]",
        f"2 of 2 predictions have neither bbox nor segmentation; {keys}",
    )
    assert len(error.value.findings) == len({finding.code for finding in error.value.findings})


def test_a_warning_is_told_once_and_with_the_file(file, tmp_path, caplog):
    path = tmp_path / "found.json"
    path.write_text(json.dumps(FOUND))
    with caplog.at_level(logging.WARNING):
        evaluation = api.evaluate(path, file)
    assert [line for line in caplog.messages if "results-uncovered" in line] == [
        str(f)[8:] for f in evaluation.findings
    ]
    assert [(f.code, f.file) for f in evaluation.findings] == [("results-uncovered", str(path))]
    assert [f.code for f in read_checked(path, read_coco(file)).findings] == ["results-uncovered"]


def test_a_result_is_named_by_its_image(file):
    with pytest.raises(DataError, match=r"\[1\]\.score: image 2: the score is not a finite number"):
        check_results([FOUND[0], {**FOUND[1], "score": "0.5"}], read_coco(file))
