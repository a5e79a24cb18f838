"""Predicting a source: the category ids and file names that are written are the data set's own."""

from __future__ import annotations

import json

import pytest

from predict.conftest import paint as paint  # noqa: PLC0414 - the fixture
from reference.colour_detector import CLASS_NAMES, ColourDetector
from scantling.data.coco import Category
from scantling.errors import UsageError
from scantling.predict.loaded import LoadedDetector
from scantling.predict.predictor import PredictConfig, Predictor
from scantling.run.predictions import predict_source

BOXES = {0: (5, 5, 25, 25), 1: (30, 5, 50, 25), 2: (5, 30, 25, 50)}


@pytest.fixture
def predictor():
    """Finds red, green and blue; its own ids are 1, 2, 3."""
    predictor = Predictor(ColourDetector(), PredictConfig(scales=60), CLASS_NAMES)
    return LoadedDetector(predictor=predictor, categories=tuple(map(Category, (1, 2, 3), CLASS_NAMES)))


@pytest.fixture
def declare(paint, tmp_path):
    """A picture with one rectangle of each colour in a data set that has these categories."""
    paint("a.png", (60, 60), BOXES)

    def declare(*categories):
        image = {"id": 9, "file_name": "a.png", "width": 60, "height": 60}
        named = [{"id": number, "name": name} for number, name in categories]
        path = tmp_path / "set.json"
        path.write_text(json.dumps({"images": [image], "annotations": [], "categories": named}))
        return path

    return declare


def ids_by_box(found):
    """Category id of the rectangle of each colour."""
    left_top = {box[:2]: name for name, box in zip(CLASS_NAMES, BOXES.values(), strict=True)}
    return {
        left_top[round(r["bbox"][0]), round(r["bbox"][1])]: r["category_id"]
        for r in found.results
        if r["score"] > 0.5
    }


def test_categories_are_matched_by_name(declare, predictor, tmp_path):
    source = declare((1, "blue"), (2, "red"), (7, "green"), (8, "none of these"))
    found = predict_source(source, predictor, out=tmp_path / "found.json")
    assert ids_by_box(found) == {"red": 2, "green": 7, "blue": 1}
    written = json.loads((tmp_path / "found.json").read_text())
    assert written == found.results
    assert {(result["image_id"], result["file_name"]) for result in written} == {(9, "a.png")}


def test_one_missing_name_changes_no_other_id(declare, predictor):
    """With the ids of the checkpoint for all, red would be written as 1, which here is blue."""
    source = declare((1, "blue"), (2, "red"))
    with pytest.raises(UsageError, match="green") as error:
        predict_source(source, predictor)
    assert "--skip-invalid" in (error.value.hint or "")
    found = predict_source(source, predictor, skip_invalid=True)
    assert ids_by_box(found) == {"red": 2, "blue": 1}
    assert list(found.left_out) == ["green"]
    assert found.left_out["green"] == found.to_dict()["left_out"]["green"] >= 1
    assert (
        f"left out, as the data set has no such categories: {found.left_out['green']} green"
        in found.to_text()
    )


def test_without_a_data_set_the_detectors_own_ids_are_written(declare, predictor, tmp_path):
    declare()
    found = predict_source(tmp_path / "a.png", predictor)
    assert ids_by_box(found) == {"red": 1, "green": 2, "blue": 3}
    assert {result["file_name"] for result in found.results} == {"a.png"}


def test_of_two_categories_of_one_name_the_second_is_the_second(declare, tmp_path):
    predictor = Predictor(ColourDetector(), PredictConfig(scales=60), CLASS_NAMES)
    own = tuple(map(Category, (1, 2, 3), ("part", "green", "part")))
    source = declare((4, "part"), (5, "part"), (6, "green"))
    found = predict_source(source, LoadedDetector(predictor=predictor, categories=own))
    assert ids_by_box(found) == {"red": 4, "green": 6, "blue": 5}
