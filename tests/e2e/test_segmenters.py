"""Segmenters as members of a run: trained in the one loop, their maps kept, measured and made again for new images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from reference.masked_parts import SIZE_HW, write_masked_parts
from scantling.data.coco import read_coco
from scantling.data.map_files import VALUES_KEY, read_score_maps
from scantling.data.score_maps import load_score_maps
from scantling.data.splitting import deal_folds
from scantling.evaluate.semantic import evaluate_score_maps

DETECTOR = """
    model: {name: faster_rcnn_r18_small, backbone: test_resnet, norm: default, fpn_channels: 16, fc_channels: 16,
            num_train_proposals: 50, num_test_proposals: 30, num_rois: 16}
    augment: {short_side: 48, long_side: 64}
    train: {epochs: 1, batch_size: 8, workers: 0, warmup_steps: 2, log_every: 1}
    predict: {scales: 48, long_side: 72, batch_size: 4, suppress: {score_threshold: 0.0, max_per_image: 12}}
"""
SEGMENTER = """
    segmenter: {{name: fpn_r18_small, backbone: test_resnet, channels: 16{more}}}
    augment: {{short_side: 48, long_side: 64}}
    train: {{epochs: 1, batch_size: 4, workers: 0, optimizer: adamw, lr: 0.003, warmup_steps: 2, log_every: 1}}
    predict: {{{look}, long_side: 64}}
"""


def segmenter(look: str = "scales: 48", more: str = "") -> str:
    return SEGMENTER.format(look=look, more=more)


def recipe(members: dict[str, str], rest: str = "") -> str:
    return (
        "members:\n" + "".join(f"  {name}:{text}" for name, text in members.items()) + rest + "\n"
        "evaluate: {bootstrap: 0}\n"
    )


def read(path: Path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "parts"
    write_masked_parts(root, {"train": 8, "val": 3})
    return root


@pytest.fixture
def run_with(command, parts, tmp_path):
    """Run a recipe's text; the folder."""

    def run(text: str, *options: object, code: int = 0):
        (tmp_path / "r.yaml").write_text(text)
        done = command("run", tmp_path / "r.yaml", "--data", parts, "--out", tmp_path / "run", *options)
        assert done.exit_code == code, done.output + done.stderr
        return tmp_path / "run", done

    return run


@pytest.fixture(scope="module")
def alone(command, parts, tmp_path_factory) -> Path:
    """A run with a segmenter of categories and nothing else."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "r.yaml").write_text(
        recipe({"seg": segmenter("scales: [40, 48], flip: true", ", planes: categories")})
    )
    done = command("run", folder / "r.yaml", "--data", parts, "--out", folder / "run")
    assert done.exit_code == 0, done.output + done.stderr
    (folder / "told").write_text(done.stdout)
    return folder / "run"


def test_a_run_of_segmenters_alone_says_what_it_cannot_do(alone):
    told = (alone.parent / "told").read_text()
    assert "no member finds objects, so there is no AP, and nothing to combine, refine or audit" in told
    metrics = read(alone / "metrics.json")
    assert metrics.keys() == {"split", "semantic"}
    assert metrics["semantic"]["seg"].keys() >= {"semantic/mIoU", "semantic/IoU/dent", "semantic/found/spot"}
    page = (alone / "report.html").read_text()
    assert "Score maps of seg by category" in page
    assert f"mean IoU {metrics['semantic']['seg']['semantic/mIoU']:.3f}" in page
    assert "semantic/mIoU" in page.split('id="learning"')[1]
    assert 'id="results"' not in page
    assert "No member of this run finds objects" in page
    assert f"--run {alone} --maps maps" in page
    history = (alone / "members/seg/metrics.csv").read_text().splitlines()
    assert "val/semantic/mIoU" in history[0].split(",")


def test_the_number_is_that_of_the_maps_it_keeps(alone, parts):
    val = read_coco(parts / "annotations/val.json", task="segmentation")
    maps = read_score_maps(alone / "members/seg/maps-val.safetensors", val)
    assert evaluate_score_maps(maps, val).metrics == read(alone / "metrics.json")["semantic"]["seg"]
    assert maps[0].planes.shape[1:] == (48, 60)  # the largest view


def test_prediction_with_the_run_makes_the_same_maps(alone, command, parts, tmp_path):
    labels, val = parts / "annotations/val.json", read_coco(parts / "annotations/val.json")
    kept = read_score_maps(alone / "members/seg/maps-val.safetensors", val)
    for option in (("--run", alone), ("--checkpoint", alone / "members/seg/best.safetensors")):
        out = tmp_path / option[0]
        done = command("predict", labels, *option, "--maps", out)
        assert done.exit_code == 0, done.output + done.stderr
        assert "score maps of 3 images" in done.stdout
        again = read_score_maps(out, val)
        for one, other in zip(kept, again, strict=True):
            assert one.labels == other.labels
            assert np.array_equal(one.planes, other.planes)


def test_what_finds_no_objects_is_not_asked_for_any(alone, command, parts):
    labels = parts / "annotations/val.json"
    refused = command("predict", labels, "--run", alone)
    assert refused.exit_code == 2
    assert "no member of this run finds objects" in refused.stderr
    assert "--maps FOLDER" in refused.stderr
    refused = command("predict", labels, "--checkpoint", alone / "members/seg/best.safetensors")
    assert refused.exit_code == 2
    assert "found that of a segmenter" in refused.stderr
    refused = command("predict", labels, "--run", alone, "--maps", alone.parent / "m", "--out", "x.json")
    assert refused.exit_code == 2
    assert "give one of them" in refused.stderr


def test_a_second_run_keeps_all_and_a_changed_size_only_the_training(alone, command, parts, tmp_path):
    root = shutil.copytree(alone, tmp_path / "run")
    given = ("run", alone.parent / "r.yaml", "--data", parts, "--out", root, "--plan")
    planned = command(*given)
    assert planned.exit_code == 0, planned.output
    assert {line.split()[0] for line in planned.stdout.splitlines() if "seg" in line} == {"keep"}
    changed = command(*given, "--set", "members.seg.predict.scales=48")
    lines = [line.split() for line in changed.stdout.splitlines() if "seg" in line]
    assert {line[1]: line[0] for line in lines if "train" in line[1] or "score" in line[1]} == {
        "members/seg/train": "keep",
        "members/seg/score": "redo",
    }


def test_folds_beside_a_detector(run_with, parts, command, tmp_path):
    text = "data: {folds: 2}\n" + recipe({"box": DETECTOR, "seg": segmenter()}, "combine: {tune: {}}")
    run, done = run_with(text)
    metrics = read(run / "metrics.json")
    assert metrics["member"] == "box"
    assert metrics["members"].keys() == {"box"}
    assert metrics["semantic"]["seg"].keys() >= {"semantic/mIoU", "semantic/IoU/foreground"}
    assert "seg, IoU of pixels" in done.stdout
    train, val = (read_coco(parts / f"annotations/{split}.json") for split in ("train", "val"))
    # out of fold: each training image has the map of the one segmenter that has not learned from it
    held = read_score_maps(run / "members/seg/maps-held-out.safetensors", train)
    for number, positions in enumerate(deal_folds(train, 2, 0)):
        own = load_score_maps(
            run / f"members/seg/fold-{number}/maps-held-out.safetensors",
            train.subset(train.images[position].id for position in sorted(positions)),
        )
        for one, position in zip(own, sorted(positions), strict=True):
            assert np.array_equal(one.planes, held[position].planes)
    parts_of = [
        read_score_maps(run / f"members/seg/fold-{number}/maps-val.safetensors", val) for number in range(2)
    ]
    joined = read_score_maps(run / "members/seg/maps-val.safetensors", val)
    for position in range(3):
        both = np.stack([each[position].planes for each in parts_of]).astype(float)
        assert np.abs(both.mean(axis=0) - joined[position].planes).max() <= 0.5
    again = command("predict", parts / "annotations/val.json", "--run", run, "--maps", tmp_path / "maps")
    assert again.exit_code == 0, again.output + again.stderr
    wrong = run / "members/box/fold-0/best.safetensors"
    refused = command("predict", parts / "images", "--checkpoint", wrong, "--maps", tmp_path / "none")
    assert refused.exit_code == 2
    assert "expected a segmenter's checkpoint, found that of a detector" in refused.stderr
    onto = command("predict", parts / "annotations/val.json", "--run", run, "--maps", parts / "images")
    assert onto.exit_code == 2
    assert "would replace the image itself" in onto.stderr
    image = Image.open(tmp_path / "maps/9.png")
    assert image.info[VALUES_KEY] == "scores"
    written = np.asarray(image)
    assert np.array_equal(written, joined[0].scores(0))


MASKS = DETECTOR.replace("faster_rcnn_r18_small", "mask_rcnn_r18_small").replace(
    "num_rois: 16", "num_rois: 16, mask_channels: 8, mask_convs: 1"
)


@pytest.mark.parametrize("folds", [None, 2])
def test_a_run_that_fuses_masks_predicts_as_it_ran(folds, run_with, parts, command, tmp_path):
    fused = "combine: {semantic: {score_threshold: 0.0, mode: replace}}"
    text = (f"data: {{folds: {folds}}}\n" if folds else "") + recipe({"a": MASKS, "seg": segmenter()}, fused)
    run, _ = run_with(text)
    labels = parts / "annotations/val.json"
    done = command("predict", labels, "--run", run, "--out", tmp_path / "again.json", "--quiet")
    assert done.exit_code == 0, done.output + done.stderr

    def ordered(path: Path) -> list[dict]:
        return sorted(read(path), key=lambda r: (r["image_id"], r["category_id"], -r["score"], r["bbox"]))

    own, again = ordered(run / "semantic/predictions.json"), ordered(tmp_path / "again.json")
    first, second, before = (
        np.stack([coco_mask.decode(result["segmentation"]) for result in results])
        for results in (own, again, ordered(run / "members/a/predictions.json"))
    )
    # of a network that has hardly learned, a score in its last place decides about a pixel here and there
    assert (first != second).sum() <= 0.001 * first.size
    assert (first != before).sum() > 0.01 * first.size
    assert read(run / "metrics.json")["stage"] == "semantic"


@pytest.fixture
def foreign(parts, tmp_path) -> Path:
    """Maps of another tool: exact label maps of val, with the data set's category ids."""
    labels = read(parts / "annotations/val.json")
    folder = tmp_path / "foreign"
    folder.mkdir()
    for image in labels["images"]:
        numbers = np.zeros(SIZE_HW, np.uint8)
        for annotation in labels["annotations"]:
            if annotation["image_id"] == image["id"]:
                shape = annotation["segmentation"]
                rle = coco_mask.frPyObjects(shape, *SIZE_HW)[0] if isinstance(shape, list) else shape
                numbers[coco_mask.decode(rle) > 0] = annotation["category_id"]
        cv2.imwrite(str(folder / image["file_name"]), numbers)
    return folder


def test_maps_of_another_tool(run_with, foreign):
    run, _ = run_with(recipe({"theirs": f" {{maps: {foreign}}}\n"}))
    found = read(run / "metrics.json")["semantic"]["theirs"]
    assert found["semantic/mIoU"] > 0.97  # polygons are rasterised once more on the way
    assert found["semantic/IoU/dent"] is not None


def test_maps_that_are_missing_or_wrong_are_told_before_or_when_they_are_read(run_with, foreign):
    theirs = f" {{maps: {foreign}}}\n"
    fused = "combine: {tune: {}, semantic: {}}"
    text = "data: {folds: 2}\n" + recipe({"box": DETECTOR, "theirs": theirs}, fused)
    _, refused = run_with(text, code=2)
    assert "members.theirs: no maps for held-out" in refused.stderr
    _, refused = run_with(recipe({"box": DETECTOR, "theirs": " {maps: nowhere}\n"}), code=2)
    assert "members.theirs.maps: there is nothing at nowhere" in refused.stderr
    (foreign / "9.png").unlink()
    _, refused = run_with(recipe({"theirs": theirs}), code=2)
    assert "maps-missing" in refused.stderr


@pytest.mark.parametrize(
    ("member", "rest", "told"),
    [
        (" {segmenter: {}, model: {}}\n", "", "give one of `model`"),
        (" {segmenter: {}, map_values: ids}\n", "", "there are none"),
        (" {segmenter: {}, predict: {suppress: {score_threshold: 0.5}}}\n", "", "a segmenter has none"),
        (" {segmenter: {name: fpn_r18_small, num_queries: 5}}\n", "", "num_queries"),
        (" {segmenter: {name: fpn_r19}}\n", "", "unknown model 'fpn_r19'"),
        (segmenter(), "combine: {ensemble: {}}", "combine: no member finds objects"),
        (segmenter(), "refine: {}", "refine: no member finds objects"),
    ],
)
def test_mistakes_in_a_recipe(member, rest, told, run_with):
    _, refused = run_with(recipe({"seg": member}, rest), code=2)
    assert told in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_segmenter_cannot_be_combined_as_if_it_had_boxes(run_with):
    text = recipe({"box": DETECTOR, "seg": segmenter()}, "combine: {members: [box, seg], ensemble: {}}")
    _, refused = run_with(text, code=2)
    assert "combine.members: seg has score maps, and no objects" in refused.stderr
