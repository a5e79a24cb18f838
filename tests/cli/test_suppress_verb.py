"""The verb suppress: tuned or given settings of suppression on results of any tool, all else in them kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from combine.planted import planted
from scantling.cli.app import app
from scantling.combine.tuned import read_tuned
from scantling.data.coco.records import to_rle
from scantling.data.detections import detections_of, results_of
from scantling.models.suppression import suppress_detections

HW = (60, 80)
MASK = to_rle({"size": list(HW), "counts": [0, 100, 60 * 80 - 100]}, HW)
RESULTS = [
    {"image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10], "score": 0.5, "segmentation": MASK, "track": 4},
    {"image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 8], "score": 0.9, "note": {"by": ["a"]}},
    {"image_id": 1, "category_id": 5, "bbox": [0, 0, 10, 9], "score": 0.0004},
    {"image_id": 2, "category_id": 3, "score": 1, "segmentation": MASK, "file_name": "/elsewhere/b.jpg"},
]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = [{"id": 1 + n, "file_name": f"{'ab'[n]}.jpg", "width": 80, "height": 60} for n in range(2)]
    categories = [{"id": 3, "name": "bolt"}, {"id": 5, "name": "nut"}]
    Path("data.json").write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    Path("found.json").write_text(json.dumps(RESULTS))
    return tmp_path


def suppressed(*arguments):
    done = run("suppress", "found.json", "--data", "data.json", "--out", "left.json", *arguments)
    assert done.exit_code == 0, done.output
    return json.loads(Path("left.json").read_text()), done.output


def refused(*arguments):
    done = run("suppress", "found.json", "--data", "data.json", "--out", "left.json", *arguments)
    assert (done.exit_code, Path("left.json").exists()) == (2, False), done.output
    return done.output


def named(result, name):
    return {"file_name": name, "category_name": {3: "bolt", 5: "nut"}[result["category_id"]], **result}


def test_what_stays_keeps_its_mask_and_every_key(folder):
    left, told = suppressed("--set", "method=hard")
    assert left == [named(RESULTS[1], "a.jpg"), named(RESULTS[2], "a.jpg"), named(RESULTS[3], "b.jpg")]
    assert "3 of 4 predictions are left, in left.json" in told


def test_a_lowered_score_is_all_that_changes(folder):
    left, told = suppressed("--set", "method=soft_linear", "--json")
    (lowered,) = [result for result in left if "track" in result]
    assert lowered == {**named(RESULTS[0], "a.jpg"), "score": pytest.approx(0.5 * 0.2)}
    assert json.loads(told[told.index("{") :]) == {
        "num_results": 4,
        "num_kept": 3,  # soft suppression drops what is below min_score
        "num_lowered": 1,
        "left_out": {"score_threshold": 0, "method": 1, "max_per_image": 0},
        "out": "left.json",
    }


def test_a_score_threshold_applies_where_one_is_given(folder):
    left, _ = suppressed("--set", "method=none", "--set", "score_threshold=0.6")
    assert [result["score"] for result in left] == [0.9, 1]


def test_what_left_out_how_many_is_told(folder):
    _, told = suppressed("--set", "method=none", "--set", "max_per_image=1")
    assert "2 of 4 predictions are left, in left.json; left out: 2 by max_per_image" in told
    limits = ("--set", "score_threshold=0.6", "--set", "max_per_image=1")
    assert "left out: 2 by score_threshold" in suppressed("--set", "method=none", *limits)[1]
    assert "left.json; left out: 1 by method" in suppressed("--set", "method=hard")[1]
    _, told = suppressed("--set", "method=none")
    assert "left out" not in told


def test_tuned_settings_are_those_that_tuning_measured(tmp_path, monkeypatch):
    """From one file of any tool to the tuned file to the results: the way the tuned numbers come about."""
    monkeypatch.chdir(tmp_path)
    dataset, candidates = planted()
    Path("data.json").write_text(json.dumps(dataset.to_coco()))
    Path("found.json").write_text(json.dumps(results_of(candidates, dataset)))
    quick = ("--set", "search.bootstrap=40", "--set", "search.methods=[hard]")
    done = run("tune", "found.json", "--data", "data.json", "--out", "tuned.yaml", *quick)
    assert done.exit_code == 0, done.output
    left, _ = suppressed("--tuned", "tuned.yaml")
    config = read_tuned("tuned.yaml").suppress
    rows, scores = suppress_detections(
        candidates, config.model_copy(update={"score_threshold": 0.0}), dataset.class_names
    )
    found = detections_of(left, dataset)
    assert np.array_equal(found.boxes, candidates.boxes[rows])
    assert np.array_equal(found.scores, scores)
    wider, _ = suppressed("--tuned", "tuned.yaml", "--set", "iou_threshold=1")
    assert len(wider) > len(left)


def test_each_verb_names_the_one_that_applies_a_section(folder):
    Path("tuned.yaml").write_text("suppress: {method: hard}\n")
    Path("weights.yaml").write_text("ensemble: {method: wbf}\n")
    assert "`scantling ensemble A.json B.json --tuned FILE`" in refused("--tuned", "weights.yaml")
    done = run("ensemble", "found.json", "--data", "data.json", "--out", "left.json", "--tuned", "tuned.yaml")
    assert (done.exit_code, "`scantling suppress RESULTS --tuned FILE`" in done.output) == (2, True)
    done = run("predict", "data.json", "--run", "nowhere", "--tuned", "weights.yaml")
    assert (done.exit_code, "section 'ensemble'" in done.output) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give --tuned FILE, --set KEY=VALUE, or both"),
        (("--set", "methd=hard"), "did you mean 'method'"),
        (("--set", "iou_threshold={bolts: 0.5, default: 0.4}"), "unknown categories ['bolts']"),
        (("--set", "max_candidates=10"), "a setting of detectors"),
        (("--tuned", "nowhere.yaml"), "there is no such file of tuned settings"),
    ],
)
def test_mistakes_are_told(folder, arguments, told):
    assert told in refused(*arguments)


def test_what_is_read_is_never_written_over(folder):
    done = run("suppress", "found.json", "--data", "data.json", "--out", "found.json", "--set", "method=hard")
    assert (done.exit_code, json.loads(Path("found.json").read_text())) == (2, RESULTS)


def test_what_was_suppressed_before_is_noticed(folder):
    Path("found.json").write_text(json.dumps(RESULTS[1:]))
    assert "suppressed before" in suppressed("--set", "method=hard")[1]


def test_the_user_says_what_numbers_are(folder):
    data = json.loads(Path("data.json").read_text())
    for image, number in zip(data["images"], (2, 1), strict=True):
        image["file_name"] = f"{number}.jpg"
    Path("data.json").write_text(json.dumps(data))
    numbers = [{key: r[key] for key in ("image_id", "category_id", "bbox", "score")} for r in RESULTS[:2]]
    Path("found.json").write_text(json.dumps(numbers))
    assert "--image-ids id or file" in refused("--set", "method=hard")
    for meaning, name in (("id", "2.jpg"), ("file", "1.jpg")):
        left, _ = suppressed("--set", "method=hard", "--image-ids", meaning)
        assert {result["file_name"] for result in left} == {name}
