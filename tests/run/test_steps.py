"""The steps after prediction: a run and prediction with it do the same ones, in the same order."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from scantling.data.coco import CocoDataset, to_results, write_results
from scantling.errors import ConfigError, UsageError
from scantling.predict.loaded import ImagePredictor
from scantling.recipe.recipe import Recipe, parse_recipe
from scantling.run.context import PREDICTIONS, TrainingJob
from scantling.run.pipeline import prepared_run, stages_of
from scantling.run.predictor import RunDetectors, load_run
from scantling.run.results import own_results
from scantling.run.stage import RECORD
from scantling.run.steps import Folds, only, run_steps, step_file, steps_before, steps_of
from scantling.structures.detections import Detections
from scantling.synth.synth import SynthConfig, write_synth

MEMBER = """
    model: {name: faster_rcnn_r18_small, backbone: test_resnet, init: random, fpn_channels: 16, fc_channels: 16,
            num_train_proposals: 50, num_test_proposals: 30, num_rois: 16}
    augment: {short_side: 48, long_side: 64}
    train: {epochs: 1, batch_size: 4, workers: 0, warmup_steps: 2}
    predict: {scales: 48, long_side: 64, batch_size: 4,
              suppress: {method: soft_linear, score_threshold: 0.0, max_per_image: 12}}
"""
REFINE = "{model: {backbone: test_resnet, side: 32}, train: {epochs: 1, repeats: 1}, gate: null}"
ELIMINATE = "{min_score: 0, min_ratio: 1, min_support: 1, min_iou: 0.05, iou_margin: 0, count_margin: 0}"
BOTH = "members:\n  one:" + MEMBER + "  two:" + MEMBER + "evaluate: {bootstrap: 0}\n"


def read(path: Path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "parts"
    splits = {"train": 8, "val": 3}
    write_synth(root, SynthConfig(size_hw=(72, 96)), splits=splits, seed=0, layout="delftbikes")
    return root


@pytest.fixture(scope="module", params=[None, 2], ids=["whole", "folds"])
def trained(request, parts, tmp_path_factory):
    """A folder in which each recipe goes on with what the ones before have trained, and its number of folds."""
    return tmp_path_factory.mktemp("runs") / "run", request.param


def recipe_with(folds: int | None, data: Path, steps: tuple[bool, bool, bool], *changes: str) -> Recipe:
    ensemble, eliminate, refine = steps
    settings = {
        "data.folds": folds if folds else "null",
        "combine.tune": "{}" if folds else "null",
        "combine.ensemble": "{}" if ensemble else "null",
        "combine.members": "null" if ensemble or not any(steps) else "[two]",
        "combine.eliminate": ELIMINATE if eliminate else "null",
        "refine": REFINE if refine else "null",
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return parse_recipe(BOTH, file="r.yaml", overrides=[*overrides, *changes]).on(data=data)


def outcome_of(recipe: Recipe, folder: Path) -> tuple[list[dict], CocoDataset]:
    """The results that a run ends with, and the images they are about."""
    with prepared_run(recipe, folder, device="cpu", overwrite=False) as (context, run):
        for stage in stages_of(context):
            if stage.title != "report":
                run.do(stage)
    last = read(folder / "metrics.json")["stage"]
    files = {step.name: step_file(step) for step in run_steps(recipe, folder)}
    return read(folder / files.get(last, f"members/{last}/{PREDICTIONS}")), context.data.target


def predicted(detectors: ImagePredictor, images: CocoDataset) -> list[dict]:
    """What prediction finds in the same images."""
    found = {record.id: one for record, one in detectors.predict(images.images)}
    return [
        result
        for record in images.images
        for result in to_results(record.id, found[record.id], detectors.categories)
    ]


def assert_equal(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected) > 0

    def place(result: dict) -> tuple:
        return result["image_id"], result["category_id"], round(result["score"], 4), round(result["bbox"][0])

    for one, other in zip(sorted(found, key=place), sorted(expected, key=place), strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.02)


@pytest.mark.parametrize("steps", list(product((False, True), repeat=3)))
def test_run_and_prediction_with_it_agree_for_every_subset_of_steps(trained, parts, steps):
    folder, folds = trained
    recipe = recipe_with(folds, parts, steps)
    expected, images = outcome_of(recipe, folder)
    names = [step.name for step in steps_of(recipe, folder)]
    wanted = zip((folds is not None, *steps), ("folds", "ensemble", "eliminate", "refine"), strict=True)
    assert names == [name for done, name in wanted if done]
    detectors = load_run(folder, device="cpu")
    assert isinstance(detectors, RunDetectors) == bool(names)
    assert_equal(predicted(detectors, images), expected)
    if steps[1]:
        assert read(folder / "eliminate/removed.json")["num_removed"] > 0
    if steps[2]:
        before = read(
            folder / ("eliminate" if steps[1] else "ensemble" if steps[0] else "members/two") / PREDICTIONS
        )
        assert [r["bbox"] for r in before] != [r["bbox"] for r in expected]


def test_the_outcome_is_the_same_however_many_images_go_through_at_once(trained, parts):
    folder, folds = trained
    _, images = outcome_of(recipe_with(folds, parts, (True, True, True)), folder)
    detectors = load_run(folder, ["batch_size=1"], device="cpu")
    assert isinstance(detectors, RunDetectors)
    assert detectors.images_at_once >= len(images) == 3
    whole = predicted(detectors, images)
    for count in (1, 2):
        detectors.images_at_once = count
        assert predicted(detectors, images) == whole


@pytest.mark.parametrize(
    ("changes", "members"),
    [
        (
            ["combine.members=[two]"],
            ["one", "two"],
        ),  # an ensemble of one member, which drops its own duplicates
        (["combine.ensemble=null"], ["two"]),  # an elimination after the only member, which is named nowhere
    ],
)
def test_they_agree_about_a_single_member(trained, parts, changes, members):
    folder, folds = trained
    recipe = recipe_with(folds, parts, (True, True, False), *changes)
    recipe = recipe.model_copy(update={"members": {name: recipe.members[name] for name in members}})
    expected, images = outcome_of(recipe, folder)
    assert_equal(predicted(load_run(folder, device="cpu"), images), expected)


def test_another_tools_member_cannot_be_asked_again(parts, tmp_path):
    theirs = tmp_path / "theirs.json"
    theirs.write_text("[]")
    text = f"members: {{theirs: {{predictions: {theirs}}}}}\nevaluate: {{bootstrap: 0}}\n"
    recipe = parse_recipe(text, file="r.yaml").on(data=parts)
    outcome_of(recipe, tmp_path / "run")
    with pytest.raises(UsageError, match="theirs was predicted by another tool"):
        load_run(tmp_path / "run", device="cpu")
    theirs.unlink()
    with pytest.raises(ConfigError, match=r"members\.theirs\.predictions: there is no file"):
        outcome_of(recipe, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_steps_before_one_are_those_of_the_order(tmp_path):
    recipe = recipe_with(2, tmp_path, (True, True, True))
    steps = steps_of(recipe, tmp_path)
    assert [step.name for step in steps_before(steps, "refine")] == ["folds", "ensemble", "eliminate"]
    assert steps_before(steps, "nothing") == steps
    assert [step.name for step in run_steps(recipe, tmp_path)] == ["ensemble", "eliminate", "refine"]


def detections(*scores: float) -> Detections:
    count = len(scores)
    boxes = np.tile([0.0, 0.0, 8.0, 8.0], (count, 1)) + 20 * np.arange(count)[:, None]
    none = np.zeros(count, dtype=np.int64)
    return Detections(images=none, labels=none, scores=np.array(scores), boxes=boxes)


class Images:
    class_names = ("part",)


def test_folds_speak_with_one_voice_and_other_tools_are_left_alone(tmp_path):
    theirs = "  theirs: {predictions: x.json}\n"
    text = BOTH.replace("evaluate", f"{theirs}evaluate")
    recipe = parse_recipe(text, file="r.yaml", overrides=["data.folds=2"])
    own, other = detections(0.8, 0.4), detections(0.6)
    found = {TrainingJob("two", 0).title: own, TrainingJob("two", 1).title: other, "theirs": own}
    voices = Folds(recipe).apply(found, Images())
    assert list(voices) == ["two", "theirs"]
    assert voices["theirs"] is own
    assert voices["two"].scores.tolist() == pytest.approx([(0.8 + 0.6) / 2, 0.4 / 2])
    with pytest.raises(ValueError, match="one source"):
        only(voices)


def test_a_results_file_that_was_changed_is_checked_again(trained, parts, tmp_path, monkeypatch):
    folder, folds = trained
    _, dataset = outcome_of(recipe_with(folds, parts, (True, False, False)), folder)
    checked: list[Path] = []
    monkeypatch.setattr(
        "scantling.run.results.read_results", lambda path, *_, **__: checked.append(path) or []
    )
    file = f"ensemble/{PREDICTIONS}"
    assert own_results(folder, file, dataset) == read(folder / file)
    assert checked == []
    (tmp_path / "ensemble").mkdir()
    (tmp_path / "ensemble" / RECORD).write_text((folder / "ensemble" / RECORD).read_text())
    write_results(read(folder / file)[1:], tmp_path / file, dataset)
    assert own_results(tmp_path, file, dataset) == []
    assert checked == [tmp_path / file]
