"""Evaluations as files: what is read back is what was measured."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest

from scantling.errors import DataError
from scantling.evaluate.backends import Curves
from scantling.evaluate.coco_eval import evaluate_results, metrics_json
from scantling.evaluate.saved import files_of, kinds_of, load_evaluations, save_evaluations


@pytest.fixture
def evaluations(random_case):
    dataset, results = random_case(0)
    return [evaluate_results(dataset, results, bootstrap=12), evaluate_results(dataset, results[:0])]


def test_what_is_read_is_what_was_measured(evaluations, tmp_path):
    for number, evaluation in enumerate(evaluations):
        save_evaluations([evaluation], tmp_path, f"stage {number}")
        (read,) = load_evaluations(tmp_path, f"stage {number}")
        for field in fields(evaluation):
            if field.name not in ("curves", "resampled"):
                assert getattr(read, field.name) == getattr(evaluation, field.name), field.name
        for field in fields(Curves):
            assert np.array_equal(getattr(read.curves, field.name), getattr(evaluation.curves, field.name))
        assert metrics_json([read]) == metrics_json([evaluation])
    assert evaluations[0].metrics["AP"] not in (None, 0)
    assert any(found is not None for found in evaluations[0].intervals.values())


@pytest.mark.parametrize("spoil", ["no numbers", "no curves", "other keys", "cut curves"])
def test_a_damaged_file_is_told(evaluations, tmp_path, spoil):
    save_evaluations(evaluations[:1], tmp_path, "a")
    numbers, curves = (tmp_path / file for file in files_of(".", "a"))
    if spoil == "other keys":
        numbers.write_text(json.dumps([{"iou_type": "bbox"}]))
    elif spoil == "cut curves":
        curves.write_bytes(curves.read_bytes()[:100])
    else:
        (numbers if spoil == "no numbers" else curves).unlink()
    with pytest.raises(DataError, match=r"a\.(json|npz)"):
        load_evaluations(tmp_path, "a")


def test_kinds_are_what_both_sides_have(random_case):
    for masks, both, bare in ((False, ["bbox"], ["bbox"]), (True, ["bbox", "segm"], ["segm"])):
        dataset, results = random_case(0, masks=masks)
        mask = {"size": [9, 9], "counts": "x"}
        masked = [{**result, "bbox": [0, 0, 2, 2], "segmentation": mask} for result in results]
        assert kinds_of(dataset, []) == ["bbox"]
        assert kinds_of(dataset, masked) == both
        assert kinds_of(dataset, [{k: v for k, v in r.items() if k != "bbox"} for r in masked]) == bare
