"""The verbs tune and eliminate: files in, files out, and a user's mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from combine.planted import dataset_of, planted
from scantling.cli.app import app
from scantling.combine.tuned import read_tuned
from scantling.data.coco.records import to_rle
from scantling.data.detections import results_of
from scantling.models.suppression import SuppressConfig, suppress_detections

WHEEL, SADDLE, HUB = (0.0, 0.0, 100.0, 100.0), (200.0, 0.0, 260.0, 30.0), (45.0, 45.0, 55.0, 55.0)
QUICK = ("--set", "search.bootstrap=40", "--set", "search.methods=[hard]")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(*arguments) -> str:
    """Standard output of a command that works."""
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*arguments) -> str:
    """What is said of a user's mistake."""
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    return done.output


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set, its candidates, and two detectors one of which is useless."""
    monkeypatch.chdir(tmp_path)
    dataset, candidates = planted()
    Path("data.json").write_text(json.dumps(dataset.to_coco()))
    some = candidates[candidates.labels < 2]
    best = SuppressConfig(iou_threshold={"default": 0.4, "tooth": 0.7}, score_threshold=0.0)
    good = some[suppress_detections(some, best, dataset.class_names)[0]]
    moved = results_of(good, dataset)
    for result in moved:
        result["bbox"][1] += 70
    for name, results in {
        "candidates": results_of(candidates, dataset),
        "good": results_of(good, dataset),
    }.items():
        Path(f"{name}.json").write_text(json.dumps(results))
    Path("useless.json").write_text(json.dumps(moved))
    return tmp_path


def test_one_file_tunes_suppression(folder):
    text = told("tune", "candidates.json", "--data", "data.json", "--out", "tuned.yaml", *QUICK)
    found = read_tuned("tuned.yaml")
    assert found.suppress.iou_threshold == {"default": 0.4, "tooth": 0.7}
    assert found.ensemble is None
    assert "1 of 3 categories have a setting of their own" in text
    assert Path("tuned.yaml").read_text().splitlines()[0][2:] == text.splitlines()[0]


def test_several_files_tune_weights_that_an_ensemble_takes(folder):
    arguments = ("good.json", "useless.json", "--data", "data.json")
    apart = ("--set", "ensemble.iou_threshold=0.65")
    printed = json.loads(told("tune", *arguments, "--out", "tuned.yaml", *QUICK, *apart, "--json"))
    assert (printed["what"], printed["out"]) == ("weights", "tuned.yaml")
    assert printed["rows"][0]["kept"]
    assert printed["config"]["weights"]["useless"] < printed["config"]["weights"]["good"]
    assert read_tuned("tuned.yaml").ensemble.weights == printed["config"]["weights"]
    told("ensemble", *arguments, "--tuned", "tuned.yaml", "--out", "fused.json")
    assert json.loads(Path("fused.json").read_text())


def test_settings_in_use_can_be_given(folder):
    given = (
        "--set",
        "suppress.min_score=0.01",
        "--set",
        "suppress.max_per_image=50",
        "--set",
        "search.folds=4",
    )
    told("tune", "candidates.json", "--data", "data.json", "--out", "tuned.yaml", *QUICK, *given)
    found = read_tuned("tuned.yaml").suppress
    assert (found.min_score, found.max_per_image) == (0.01, 50)


def test_what_was_suppressed_before_is_noticed(folder):
    thinned = [each for each in json.loads(Path("candidates.json").read_text()) if each["category_id"] == 3][
        ::4
    ]
    Path("thin.json").write_text(json.dumps(thinned))
    done = run("tune", "thin.json", "--data", "data.json", "--out", "tuned.yaml", *QUICK)
    assert (done.exit_code, "nothing to suppress" in done.output) == (0, True), done.output


def test_mistakes_of_tuning_are_told(folder):
    data, out = ("--data", "data.json"), ("--out", "tuned.yaml")
    assert "good.json" not in refused("tune", "nowhere.json", *data, *out)
    assert "two or more" in refused("tune", "good.json", *data, *out, "--what", "weights")
    assert "from one" in refused("tune", "good.json", "useless.json", *data, *out, "--what", "suppress")
    by_masks = ("--iou-type", "segm")
    assert "no prediction has a mask" in refused("tune", "candidates.json", *data, *out, *by_masks)
    assert "good.json: no prediction has a mask" in refused(
        "tune", "good.json", "useless.json", *data, *out, *by_masks
    )
    assert "did you mean 'folds'" in refused("tune", "candidates.json", *data, *out, "--set", "search.fold=3")
    empty = {**json.loads(Path("data.json").read_text()), "annotations": []}
    Path("empty.json").write_text(json.dumps(empty))
    assert "no objects" in refused("tune", "candidates.json", "--data", "empty.json", *out)
    assert not Path("tuned.yaml").exists()


@pytest.fixture
def bikes(tmp_path, monkeypatch):
    """Training bikes with a wheel and a saddle beside it; a prediction of a saddle upon the wheel."""
    monkeypatch.chdir(tmp_path)
    truths = [(image, label, box) for image in range(40) for label, box in enumerate((WHEEL, SADDLE))]
    dataset = dataset_of(truths, num_images=40, names=("wheel", "saddle"))
    Path("train.json").write_text(json.dumps(dataset.to_coco()))
    turned = dataset_of([], num_images=2, names=("saddle", "wheel")).to_coco()
    Path("data.json").write_text(json.dumps(turned))
    mask = to_rle({"size": [400, 400], "counts": [0, 100, 400 * 400 - 100]}, (400, 400))
    results = [
        {"image_id": 100, "category_id": 5, "bbox": [0.0, 0.0, 100.0, 100.0], "score": 0.9, "track": "a"},
        {"image_id": 100, "category_id": 3, "bbox": [0.0, 0.0, 100.0, 99.0], "score": 0.3, "track": "b"},
        {"image_id": 101, "category_id": 3, "score": 0.2, "segmentation": mask, "track": 7},
    ]
    Path("found.json").write_text(json.dumps(results))
    return results


def with_name(result):
    """As it is written: with the names of its image's file and of its category."""
    names = {3: "saddle", 5: "wheel"}
    file_name, category_name = f"{result['image_id'] - 100}.png", names[result["category_id"]]
    return {**result, "file_name": file_name, "category_name": category_name}


ASKED = ("eliminate", "found.json", "--train", "train.json", "--data", "data.json")


def test_what_contradicts_goes_and_all_else_stays_as_it_was(bikes):
    text = told(*ASKED, "--out", "left.json")
    assert json.loads(Path("left.json").read_text()) == [with_name(bikes[0]), with_name(bikes[2])]
    assert text.splitlines()[0].split(maxsplit=1) == ["1", "saddle overlaps a stronger wheel"]
    assert text.splitlines()[-1] == "1 of 3 predictions contradict; the others are in left.json"


def test_a_list_writes_nothing(bikes):
    before = sorted(Path().iterdir())
    printed = json.loads(told(*ASKED, "--list", "--json"))
    assert printed["removed"] == [{"row": 1, "by": 0, "reason": "overlap"}]
    assert printed["pairs"] == [{"weaker": "saddle", "stronger": "wheel", "reason": "overlap", "count": 1}]
    assert (printed["out"], sorted(Path().iterdir())) == (None, before)


def test_settings_of_elimination_can_be_given(bikes):
    told(*ASKED, "--out", "left.json", "--set", "min_ratio=4")
    assert json.loads(Path("left.json").read_text()) == list(map(with_name, bikes))


def test_mistakes_of_elimination_are_told(bikes):
    assert "--out FILE or --list" in refused(*ASKED)
    assert "--out FILE or --list" in refused(*ASKED, "--out", "left.json", "--list")
    assert "this is read, and never written over" in refused(*ASKED, "--out", "found.json")
    assert "nowhere.json" in refused(
        "eliminate", "found.json", "--train", "nowhere.json", *ASKED[4:], "--list"
    )
    other = dataset_of([(0, 0, WHEEL)], num_images=1, names=("wheel", "bell")).to_coco()
    Path("train.json").write_text(json.dumps(other))
    assert "no categories ['saddle']" in refused(*ASKED, "--list")
