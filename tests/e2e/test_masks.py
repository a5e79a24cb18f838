"""Masks from the labels to the report: every stage of a run, and prediction with it, carries them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from reference.masked_parts import SIZE_HW, write_masked_parts

DRAWS = ("mask_rcnn_r18_small", "cascade_mask_rcnn_r18_small", "scnet_r18_small")
MODEL = """{{name: {name}, backbone: test_resnet, fpn_channels: 16, fc_channels: 16, num_train_proposals: 50,
            num_test_proposals: 30, num_rois: 16{more}}}"""
MEMBER = """
    model: {model}
    augment: {{short_side: 48, long_side: 64, vertical_flip: 0.5}}
    train: {{epochs: 1, batch_size: 4, workers: 0, warmup_steps: 2, log_every: 1}}
    predict: {{{look}, long_side: 72, batch_size: 4, suppress: {{score_threshold: 0.0, max_per_image: 12}}}}
"""
OTHER = "other.json"


def member(look: str, name: str = "mask_rcnn_r18_small", options: str = "") -> str:
    more = ", mask_channels: 8" if name in DRAWS else ""
    more += ", mask_convs: 1" if "mask" in name else ""
    more += options
    return MEMBER.format(model=MODEL.format(name=name, more=more), look=look)


def recipe(members: dict[str, str], rest: str) -> str:
    return (
        "members:\n" + "".join(f"  {name}:{text}" for name, text in members.items()) + rest + "\n"
        "evaluate: {bootstrap: 20}\n"
    )


SEGMENTER = """
    segmenter: {name: fpn_r18_small, backbone: test_resnet, channels: 16}
    augment: {short_side: 48, long_side: 64}
    train: {epochs: 1, batch_size: 8, workers: 0, warmup_steps: 2, log_every: 1}
    predict: {scales: 48, long_side: 64}
"""
SEMANTIC = "semantic: {score_threshold: 0.05, map_threshold: 0.02}"
SIZES = member("scales: [40, 48], flip: true", options=", mask_iou: true")
ONE_SIZE = member("scales: 48")
JUDGING = member("scales: 48", options=", mask_iou: true")
RECIPES = {
    "sizes and mirror": recipe({"a": SIZES}, "combine: {tune: {}}"),
    "folds, ensemble": "data: {folds: 2}\n"
    + recipe(
        {"a": ONE_SIZE, "b": member("scales: 48", "cascade_mask_rcnn_r18_small"), "maps": SEGMENTER},
        f"combine: {{tune: {{}}, ensemble: {{method: mask_vote, iou_threshold: 0.2}}, {SEMANTIC}, eliminate: {{}}}}",
    ),
    "tiles": recipe(
        {
            "a": member("scales: 48, tile: 32, overview: true", "scnet_r18_small"),
            "maps": SEGMENTER,
        },
        f"combine: {{{SEMANTIC}}}",
    ),
    "soft, refined": recipe(
        {"a": JUDGING.replace("score_threshold", "method: soft_linear, score_threshold")},
        "refine: {model: {backbone: test_resnet, side: 32, pooling: flatten, hidden: 16},"
        " train: {epochs: 1, batch_size: 8, workers: 0}, gate: null}",
    ),
}


def read(path: Path):
    return json.loads(path.read_text())


def outcome(run: Path) -> list[dict]:
    """What a run ends with."""
    last = read(run / "metrics.json")["stage"]
    member = run / "members" / last
    return read((member if member.is_dir() else run / last) / "predictions.json")


def check_masks(results: list[dict]) -> None:
    """Every result has a mask of its image's size, and some of them are not empty."""
    assert results
    masks = [result["segmentation"] for result in results]
    assert all(mask["size"] == list(SIZE_HW) for mask in masks)
    areas = coco_mask.area(masks)
    assert (areas >= 0).all()
    assert (areas > 0).any()


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "parts"
    write_masked_parts(root, {"train": 8, "val": 3})
    return root


@pytest.fixture(scope="module", params=RECIPES)
def finished(request, command, parts, tmp_path_factory) -> Path:
    """A finished run of each recipe."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.yaml").write_text(RECIPES[request.param])
    done = command("run", folder / "tiny.yaml", "--data", parts, "--out", folder / "run", "--quiet")
    assert done.exit_code == 0, done.output
    return folder / "run"


def test_a_run_is_judged_by_masks_and_keeps_them(finished):
    check_masks(outcome(finished))
    metrics = read(finished / "metrics.json")
    assert metrics["iou_type"] == "segm"
    for name in ("AP", "AR100"):
        low, high = metrics[f"segm/{name}_interval"]
        assert 0 <= low <= metrics[f"segm/{name}"] <= 1
        assert low <= high
    assert set(metrics) > {"bbox/AP", "bbox/AR100"}
    assert all("segm/AP" in of_category for of_category in metrics["categories"].values())
    page = (finished / "report.html").read_text()
    assert "<h3>Masks</h3>" in page
    assert "COCO table, masks of" in page
    curves = next((finished / "members/a").rglob("metrics.csv")).read_text().splitlines()
    assert "val/segm/AP" in curves[0].split(",")


def test_masks_are_fused_with_the_maps_of_the_runs_own_segmenter(finished):
    """Last but the elimination: the step has its row, its counts, its place in the report, and masks that changed."""
    if not (finished / "semantic").is_dir():
        assert "semantic" not in read(finished / "metrics.json")["members"]
        return
    counts, page = read(finished / "semantic/counts.json"), (finished / "report.html").read_text()
    assert counts["num_changed"] > 0
    assert f"Semantic fusion: {counts['num_changed']} of {counts['num_detections']} masks changed" in page
    rows = {row["name"]: row["base"] for row in read(finished / "evaluate/ingredients.json")["rows"]}
    folds = (finished / "ensemble").is_dir()
    assert rows["semantic"] == ("ensemble" if folds else "a")
    before = read(finished / ("ensemble" if folds else "members/a") / "predictions.json")
    after = read(finished / "semantic/predictions.json")
    changed = [one["segmentation"] != other["segmentation"] for one, other in zip(before, after, strict=True)]
    assert sum(changed) == counts["num_changed"]
    for one, other in zip(before, after, strict=True):
        assert {**one, "segmentation": None} == {**other, "segmentation": None}
    assert (finished / "tune/semantic.txt").is_file() == folds  # where there is something to tune


def test_prediction_with_a_run_draws_the_masks_of_the_run(finished, command, parts, tmp_path):
    labels = parts / "annotations/val.json"
    done = command("predict", labels, "--run", finished, "--out", tmp_path / "again.json", "--quiet")
    assert done.exit_code == 0, done.output

    def ordered(results: list[dict]) -> list[dict]:
        return sorted(results, key=lambda r: (r["image_id"], r["category_id"], -r["score"], r["bbox"]))

    own, again = ordered(outcome(finished)), ordered(read(tmp_path / "again.json"))
    assert len(own) == len(again)
    for first, second in zip(own, again, strict=True):
        assert first["bbox"] == pytest.approx(second["bbox"], abs=1e-3)
        assert first["score"] == pytest.approx(second["score"], abs=1e-5)
        assert first["segmentation"] == second["segmentation"]


@pytest.fixture
def planted(parts, tmp_path) -> Path:
    """Results of another tool: the truths of val, each mask moved by three pixels, some with a key of its own."""
    results = []
    for number, annotation in enumerate(read(parts / "annotations/val.json")["annotations"]):
        shape = annotation["segmentation"]
        rle = coco_mask.frPyObjects(shape, *SIZE_HW)[0] if isinstance(shape, list) else shape
        moved = np.roll(coco_mask.decode(rle), 3, axis=1)
        mask = coco_mask.encode(np.asfortranarray(moved))
        segmentation = {"size": list(SIZE_HW), "counts": mask["counts"].decode()}
        keys = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        results.append(keys | {"score": 0.9 - number / 100, "segmentation": segmentation, "tool": number})
    path = tmp_path / OTHER
    path.write_text(json.dumps(results))
    return path


def test_masks_of_another_tool_stand_beside_ours(command, parts, planted, tmp_path):
    members = {"a": ONE_SIZE, "other": f" {{predictions: {planted}}}\n"}
    (tmp_path / "r.yaml").write_text(recipe(members, "combine: {ensemble: {}, eliminate: {}}"))
    run = tmp_path / "run"
    done = command("run", tmp_path / "r.yaml", "--data", parts, "--out", run, "--quiet")
    assert done.exit_code == 0, done.output
    metrics = read(run / "metrics.json")
    assert metrics["iou_type"] == "segm"
    check_masks(outcome(run))
    given = {result["segmentation"]["counts"] for result in read(planted)}
    assert given & {result["segmentation"]["counts"] for result in outcome(run)}
    # boxes are right to the pixel, masks are moved
    assert metrics["members"]["other"]["segm/AP"] < metrics["members"]["other"]["bbox/AP"]
    labels = parts / "annotations/val.json"
    measured = command("evaluate", planted, "--data", labels, "--iou-type", "segm", "--json")
    assert measured.exit_code == 0, measured.output
    assert json.loads(measured.stdout)["segm/AP"] == pytest.approx(metrics["members"]["other"]["segm/AP"])
    compared = command(
        "compare",
        planted,
        run / "members/a/predictions.json",
        "--data",
        labels,
        *("--iou-type", "segm", "--bootstrap", 20),
    )
    assert compared.exit_code == 0, compared.output


def test_members_without_masks_in_an_ensemble_leave_it_to_boxes(command, parts, tmp_path):
    members = {"a": ONE_SIZE, "box": member("scales: 48", "faster_rcnn_r18_small")}
    (tmp_path / "r.yaml").write_text(recipe(members, "combine: {ensemble: {}}"))
    run, again = tmp_path / "run", tmp_path / "again.json"
    done = command("run", tmp_path / "r.yaml", "--data", parts, "--out", run, "--quiet")
    assert done.exit_code == 0, done.output
    assert read(run / "metrics.json")["iou_type"] == "bbox"
    done = command("predict", parts / "annotations/val.json", "--run", run, "--out", again, "--quiet")
    assert done.exit_code == 0, done.output
    assert len(read(again)) == len(outcome(run))
    assert "objects have no mask" in done.stderr


def test_a_run_of_masks_may_be_judged_by_its_boxes(command, parts, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPES["tiles"])
    run = tmp_path / "run"
    chosen = ("--set", "evaluate.iou_type=bbox", "--set", "members.a.predict.tile=null")
    done = command("run", tmp_path / "r.yaml", "--data", parts, "--out", run, "--quiet", *chosen)
    assert done.exit_code == 0, done.output
    metrics = read(run / "metrics.json")
    assert metrics["iou_type"] == "bbox"
    assert metrics["segm/AP"] is not None
    steps = read(run / "evaluate/ingredients.json")["rows"]
    assert steps[-1]["metrics"]["AP"] == pytest.approx(metrics["bbox/AP"], rel=1e-9)
    assert "<span>semantic, boxes</span>" in (run / "report.html").read_text()


def test_an_ablation_draws_the_masks_of_what_each_step_keeps(command, parts, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPES["sizes and mirror"])
    done = command("ablate", parts, "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "run", "--quiet")
    assert done.exit_code == 0, done.output
    rows = read(tmp_path / "run/ablation.json")["rows"]
    assert {row["group"] for row in rows} >= {"Test sizes", "Suppression"}
    last = read(tmp_path / "run/evaluate/ingredients.json")["rows"][-1]
    metrics = read(tmp_path / "run/metrics.json")
    assert last["metrics"]["AP"] == metrics["segm/AP"]


def test_an_annotation_without_a_mask_is_refused_or_left_out_and_counted(command, parts, tmp_path):
    root = shutil.copytree(parts, tmp_path / "parts")
    file = root / "annotations/train.json"
    labels = read(file)
    del labels["annotations"][3]["segmentation"]
    lacking = labels["annotations"][3]["id"]
    file.write_text(json.dumps(labels))
    (tmp_path / "r.yaml").write_text(RECIPES["sizes and mirror"])
    command_line = ("run", tmp_path / "r.yaml", "--data", root, "--out", tmp_path / "run")
    refused = command(*command_line)
    assert refused.exit_code == 2, refused.output
    assert "mask-missing" in refused.stderr
    assert f"{lacking}" in refused.stderr
    assert not (tmp_path / "run").exists()
    done = command(*command_line, "--skip-invalid")
    assert done.exit_code == 0, done.output
    assert "mask-missing" in done.stderr
    assert read(tmp_path / "run/data.json")["train"]["num_annotations"] == len(labels["annotations"]) - 1
