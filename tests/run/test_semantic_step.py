"""Masks fused with score maps as a step of a run: of other tools' results and maps, tuned, told apart from mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from reference.masked_parts import SIZE_HW, write_masked_parts
from scantling.errors import ConfigError
from scantling.ops.polygons import polygons_to_rle
from scantling.ops.rle import rle_decode, rle_encode
from scantling.recipe.recipe import Recipe, parse_recipe
from scantling.run.pipeline import plan_recipe, run_recipe
from scantling.run.plan import PlannedAction
from scantling.run.predictor import load_run

DETECTOR = """
    model: {name: mask_rcnn_r18_small, backbone: test_resnet, norm: default, fpn_channels: 16, fc_channels: 16,
            num_train_proposals: 50, num_test_proposals: 30, num_rois: 16, mask_channels: 8, mask_convs: 1}
    augment: {short_side: 48, long_side: 64}
    train: {epochs: 1, batch_size: 4, workers: 0, warmup_steps: 1}
    predict: {scales: 48, long_side: 64, suppress: {score_threshold: 0.0, max_per_image: 5}}
"""


def read(path: Path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Painted parts, another tool's results on val with eroded masks, and its exact maps."""
    root = tmp_path_factory.mktemp("world")
    write_masked_parts(root / "parts", {"train": 2, "val": 16})
    (root / "maps").mkdir()
    results, foreground = [], {}
    for number, annotation in enumerate(read(root / "parts/annotations/val.json")["annotations"]):
        shape, image = annotation["segmentation"], annotation["image_id"]
        mask = rle_decode(polygons_to_rle(shape, SIZE_HW) if isinstance(shape, list) else shape)
        foreground[image] = foreground.get(image, np.zeros(SIZE_HW, dtype=bool)) | mask
        eroded = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), dtype=np.uint8))
        keys = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        more = {"score": 0.9 - number / 100, "segmentation": rle_encode(eroded), "track": number}
        results.append(keys | more)
    (root / "theirs.json").write_text(json.dumps(results))
    for image, mask in foreground.items():
        cv2.imwrite(str(root / f"maps/{image}.png"), mask.astype(np.uint8) * 255)
    return root


def recipe(world: Path, *changes: str) -> Recipe:
    text = (
        f"members: {{theirs: {{predictions: {world}/theirs.json}}, segm: {{maps: {world}/maps}}}}\n"
        "combine: {semantic: {}}\nevaluate: {bootstrap: 50}\n"
    )
    return parse_recipe(text, file="r.yaml", overrides=changes).on(data=world / "parts")


def test_other_tools_results_and_maps(world, tmp_path):
    out = run_recipe(recipe(world), tmp_path / "run").out
    metrics = read(out / "metrics.json")
    assert (metrics["stage"], metrics["iou_type"]) == ("semantic", "segm")
    assert metrics["segm/AP"] > metrics["members"]["theirs"]["segm/AP"] + 0.05
    assert metrics["bbox/AP"] == metrics["members"]["theirs"]["bbox/AP"]
    given = {result["track"]: result for result in read(world / "theirs.json")}
    for result in read(out / "semantic/predictions.json"):
        assert {**given[result["track"]], "segmentation": result["segmentation"]}.items() <= result.items()


def test_what_is_tuned_decides(world, tmp_path):
    """Not fused as the recipe has it, but fusing surely helps; and the other way round where the maps are wrong."""
    tuned = ("combine.tune={bootstrap: 50}", "combine.semantic.score_threshold=1.0")
    out = run_recipe(recipe(world, *tuned), tmp_path / "run").out
    assert read(out / "semantic/counts.json")["num_changed"] > 16
    assert "fuse" not in (out / "tune/semantic.txt").read_text()
    assert "gain holds" in (out / "tune/semantic.txt").read_text()
    assert "What tuning chose for semantic" in (out / "report.html").read_text()
    kept = run_recipe(recipe(world, *tuned, "combine.tune.semantic=false"), tmp_path / "other").out
    assert read(kept / "semantic/counts.json")["num_changed"] == 0
    assert not (kept / "tune/semantic.txt").exists()


def test_a_changed_map_is_fused_anew_and_nothing_else_is_done(world, tmp_path):
    maps, out = shutil.copytree(world / "maps", tmp_path / "maps"), tmp_path / "run"
    given = recipe(world, f"members.segm.maps={maps}")
    run_recipe(given, out)
    assert {stage.action for stage in plan_recipe(given, out).stages} == {PlannedAction.KEEP}
    before = read(out / "semantic/predictions.json")
    first = sorted(maps.glob("*.png"))[0]
    cv2.imwrite(str(first), np.zeros(SIZE_HW, dtype=np.uint8))
    planned = {stage.title: stage.action for stage in plan_recipe(given, out).stages}
    assert [title for title, action in planned.items() if action == PlannedAction.KEEP] == [
        "members/theirs/import"
    ]
    run_recipe(given, out)
    changed = {
        one["image_id"]
        for one, other in zip(before, read(out / "semantic/predictions.json"), strict=True)
        if one != other
    }
    assert changed == {int(first.stem)}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["combine.semantic.member=theirs"], "combine.semantic.member: theirs gives no score maps"),
        (["combine.semantic.member=segn"], "segn does not exist; did you mean 'segm'"),
        (["members.segm=null"], "members.segm"),
        (["combine.semantic.mode.dent=union"], "categories without a value ['spot']"),
        (["combine.semantic.tau=0.5"], "tau: unknown key"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(world, tmp_path, changes, told):
    with pytest.raises(ConfigError) as caught:
        run_recipe(recipe(world, *changes), tmp_path / "run")
    assert told in str(caught.value)
    assert not (tmp_path / "run").exists()


def refused(text: str, world: Path, out: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        run_recipe(parse_recipe(text, file="r.yaml").on(data=world / "parts"), out)
    assert not out.exists()
    return str(caught.value)


def test_members_that_have_no_masks_or_maps(world, tmp_path):
    theirs, segm = f"theirs: {{predictions: {world}/theirs.json}}", f"segm: {{maps: {world}/maps}}"
    boxes = "box: {model: {name: faster_rcnn_r18_small, backbone: test_resnet, norm: default}}"
    out = tmp_path / "run"
    assert "no members give score maps" in refused(
        f"members: {{{theirs}}}\ncombine: {{semantic: {{}}}}\n", world, out
    )
    two = f"members: {{{theirs}, {segm}, other: {{maps: {world}/maps}}}}\ncombine: {{semantic: {{}}}}\n"
    assert "2 members give score maps" in refused(two, world, out)
    both = f"members: {{{theirs}, {boxes}, {segm}}}\ncombine: {{%s}}\n"
    assert "there are several members and no ensemble" in refused(both % "semantic: {}", world, out)
    assert "masks are fused, and box draws none" in refused(both % "ensemble: {}, semantic: {}", world, out)
    matched = refused(both % "ensemble: {method: mask_nms}", world, out)
    assert "mask_nms matches masks, and box draws none" in matched


def test_another_tools_maps_cannot_be_made_for_new_images(world, tmp_path, caplog):
    text = (
        f"members:\n  own:{DETECTOR}  segm: {{maps: {world}/maps}}\n"
        "combine: {semantic: {score_threshold: 0.0}}\nevaluate: {bootstrap: 0}\n"
    )
    out = run_recipe(
        parse_recipe(text, file="r.yaml").on(data=world / "parts"), tmp_path / "run", device="cpu"
    ).out
    assert read(out / "semantic/counts.json")["num_changed"] > 0
    detectors = load_run(out, device="cpu")
    assert "masks are not fused with the maps of segm, another tool's" in caplog.text
    assert not hasattr(detectors, "steps")  # the only member alone
