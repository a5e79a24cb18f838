"""Whether a run tunes by boxes or by masks: by what it will be judged by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reference.masked_parts import write_masked_parts
from scantling.recipe.recipe import parse_recipe
from scantling.run.pipeline import prepared_run
from scantling.run.stages.detecting import tune_stage, tuned_by
from scantling.run.stages.evaluation import judged_by

MASKS, BOXES = "mask_rcnn_r18_small", "faster_rcnn_r18_small"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_masked_parts(root / "parts", {"train": 2, "val": 2})
    labels = json.loads((root / "parts/annotations/val.json").read_text())
    keys = ("image_id", "category_id", "bbox", "segmentation")
    masked = [{key: a[key] for key in keys} | {"score": 0.5} for a in labels["annotations"]]
    bare = [{key: value for key, value in result.items() if key != "segmentation"} for result in masked]
    for name, results in (("masked", masked), ("bare", bare)):
        (root / f"{name}.json").write_text(json.dumps(results))
    return root


@pytest.mark.parametrize(
    ("members", "iou_type", "expected"),
    [
        ({"a": MASKS}, "auto", "segm"),
        ({"a": MASKS}, "bbox", "bbox"),
        ({"a": BOXES}, "auto", "bbox"),
        ({"a": MASKS, "b": BOXES}, "auto", "bbox"),
        ({"a": MASKS, "b": BOXES}, "segm", "segm"),
        ({"a": MASKS, "b": "masked.json"}, "auto", "segm"),
        ({"a": MASKS, "b": "bare.json"}, "auto", "bbox"),
    ],
)
def test_by_what_the_run_will_be_judged_by(world, tmp_path, members, iou_type, expected):
    given = {
        name: f"{{predictions: {world / what}}}"
        if what.endswith(".json")
        else f"{{model: {{name: {what}, init: random}}}}"
        for name, what in members.items()
    }
    listed = ", ".join(f"{name}: {text}" for name, text in given.items())
    text = (
        f"members: {{{listed}}}\ncombine: {{tune: {{weights: false}}}}\nevaluate: {{iou_type: {iou_type}}}\n"
    )
    recipe = parse_recipe(text, file="r.yaml").on(data=world / "parts")
    with prepared_run(recipe, tmp_path / "run", device="cpu", overwrite=False) as (context, _):
        assert tuned_by(context) == expected
        by_masks = expected == "segm"
        stage = tune_stage(context, "a")
        assert (stage.resources.gpus, context.units_of("a")[0].weights in stage.needs) == (
            int(by_masks),
            by_masks,
        )
        if iou_type == "auto":  # and what it is judged by in the end, where members find what they can
            files = [
                what if what.endswith(".json") else {MASKS: "masked.json", BOXES: "bare.json"}[what]
                for what in members.values()
            ]
            lists = [json.loads((world / file).read_text()) for file in files]
            assert judged_by(context.recipe, context.data, lists) == expected
