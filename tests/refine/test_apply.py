"""Refined results: whose boxes change, what stays as it was, and that crops are those of training."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from refine.conftest import SIZE_HW, TINY
from scantling.data.coco import read_coco, read_results
from scantling.data.coco.records import told_apart
from scantling.errors import CheckpointError, DataError
from scantling.ops.rle import rle_decode, rle_encode
from scantling.refine import apply as apply_module
from scantling.refine.apply import (
    ApplyConfig,
    labels_for,
    load_refiner,
    refine_boxes,
    refine_results,
    refine_rows,
    refine_truth,
)
from scantling.refine.bbrefinement import Refiner, RefinerConfig
from scantling.refine.crops import cut
from scantling.refine.train import RefineConfig, refiner_meta
from scantling.train.checkpoint import model_tensors, save_checkpoint

NAMES = ("plate", "slab")
ONCE = ApplyConfig()


def shrinking(share: float, names=NAMES, **config: object) -> Refiner:
    """A refiner that always answers with the crop's middle: boxes shrink to `share` of their sides."""
    refiner = Refiner(RefinerConfig.model_validate({**TINY, "padding": 0.5} | config), names).eval()
    low = torch.full((2,), (1 - share / 2) / 2)
    torch.nn.init.zeros_(refiner.output.weight)
    refiner.output.bias.data = torch.logit(torch.cat([low, 1 - low]))
    return refiner


def stirred(**config: object) -> Refiner:
    """A refiner whose answer depends on everything it is given."""
    torch.manual_seed(2)
    refiner = Refiner(RefinerConfig.model_validate({**TINY, **config}), NAMES).eval()
    torch.nn.init.normal_(refiner.output.weight, std=0.3)
    return refiner


def results_for(dataset, **extra: object) -> list[dict]:
    ids = dataset.category_ids
    return [
        {"image_id": image.id, "category_id": ids[a.label], "bbox": list(a.box_xywh), "score": 0.5, **extra}
        for image, annotations in zip(dataset.images, dataset.annotations, strict=True)
        for a in annotations
    ]


def test_boxes_are_moved_as_the_network_says(picture):
    boxes = np.array([[20.0, 20.0, 40.0, 60.0]])
    found = refine_boxes(picture, boxes, np.array([0]), shrinking(0.5), ONCE)
    assert found == pytest.approx(np.array([[25, 30, 35, 50]]), abs=1e-4)
    twice = refine_boxes(picture, boxes, np.array([0]), shrinking(0.5), ApplyConfig(iterations=2))
    assert 5 - 1e-4 <= twice[0, 2] - twice[0, 0] <= 5.5  # the window of 20 px may be rounded outwards to 22
    assert refine_boxes(picture, np.zeros((0, 4)), np.zeros(0, int), shrinking(0.5), ONCE).shape == (0, 4)


def test_the_mean_with_the_mirror_image_is_the_same_in_the_mirror_image(picture):
    """Which alone it is not: then the two answers differ by pixels."""
    width = picture.shape[1]
    boxes, refiner, labels = (
        np.array([[20.0, 10.0, 60.0, 50.0], [70, 20, 111, 55]]),
        stirred(),
        np.array([0, 1]),
    )
    turned = boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [width, 0, width, 0]
    mirror = np.ascontiguousarray(picture[:, ::-1])

    def both(config: ApplyConfig) -> tuple[np.ndarray, np.ndarray]:
        there = refine_boxes(mirror, turned, labels, refiner, config)
        back = there[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [width, 0, width, 0]
        return refine_boxes(picture, boxes, labels, refiner, config), back

    seen, flipped = both(ONCE)
    assert np.abs(seen - flipped).max() > 1
    mean, mean_flipped = both(ApplyConfig(flip=True))
    np.testing.assert_allclose(mean, mean_flipped, atol=0.05)
    np.testing.assert_allclose(mean, (seen + flipped) / 2, atol=0.05)


def test_boxes_are_clipped_and_one_outside_the_image_stays(picture):
    height, width = SIZE_HW
    boxes = np.array([[-10.0, 10.0, 30.0, 50.0], [width + 5.0, 10.0, width + 30.0, 40.0]])
    found = refine_boxes(picture, boxes, np.zeros(2, int), shrinking(1.9), ONCE)
    assert found[0] == pytest.approx([0, 0, 43.5, 68], abs=0.6)
    assert found[1].tolist() == [width, 10, width, 40]


def test_order_and_batches_do_not_matter(slabs):
    refiner = stirred()
    results = results_for(slabs)
    whole, counts = refine_results(results, slabs, refiner, ApplyConfig(batch_size=64))
    assert counts["refined"] == len(results) == 12
    for size in (1, 5):
        parts, _ = refine_results(results, slabs, refiner, ApplyConfig(batch_size=size))
        for one, other in zip(parts, whole, strict=True):
            assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)
    turned, _ = refine_results(results[::-1], slabs, refiner, ApplyConfig(batch_size=64))
    for one, other in zip(turned[::-1], whole, strict=True):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)
    moved = [one["bbox"] != other["bbox"] for one, other in zip(whole, results, strict=True)]
    assert all(moved)


def test_what_is_not_refined_stays_and_is_counted(slabs):
    results = results_for(slabs, note="kept", extra={"a": [1]})
    results[0]["score"] = 0.1
    results[1]["bbox"] = [5, 5, 30, 3]
    given = copy.deepcopy(results)
    refiner = shrinking(0.5, names=("slab", "bolt"))  # has never seen a plate
    found, counts = refine_results(results, slabs, refiner, ApplyConfig(min_score=0.2))
    plates = [row for row, result in enumerate(results) if result["category_id"] == 9]
    untouched = {0, 1, *plates}
    assert counts == {
        "refined": 12 - len(untouched),
        "unknown_category": len(plates),
        "too_small": len({1} - set(plates)),
        "below_score": len({0} - set(plates)),
        "no_box": 0,
        "gated": 0,
    }
    assert results == given
    for row, (before, after) in enumerate(zip(given, found, strict=True)):
        assert list(after) == list(before)
        assert (after == before) == (row in untouched)
        assert {**after, "bbox": None} == {**before, "bbox": None}


def test_categories_of_one_name_are_taken_in_their_order(slabs):
    alike = replace(slabs, categories=tuple(replace(c, name="slab") for c in slabs.categories))
    refiner = Refiner(RefinerConfig.model_validate(TINY), ("slab", "bolt", "slab"))
    assert labels_for(refiner, alike).tolist() == [0, 2]
    assert told_apart(["slab", "slab (2)", "slab", "slab"]) == ["slab", "slab (2)", "slab (3)", "slab (4)"]


def test_a_gate_decides_row_by_row(slabs):
    class EverySecond:
        def allows(self, detections, class_names):
            assert class_names == slabs.class_names
            return np.arange(len(detections)) % 2 == 0

    results = results_for(slabs)
    found, counts = refine_results(results, slabs, shrinking(0.5), ONCE, gate=EverySecond())
    assert (counts["refined"], counts["gated"]) == (6, 6)
    assert [after != before for after, before in zip(found, results, strict=True)] == [True, False] * 6


def test_masks_are_left_alone_or_refitted(slabs):
    height, width = SIZE_HW
    mask = np.zeros((height, width), dtype=bool)
    mask[20:60, 20:40] = True
    rle = rle_encode(mask)
    (first, *_), image = slabs.images, slabs.images[0]
    results = [
        {"image_id": image.id, "category_id": 3, "bbox": [20, 20, 20, 40], "segmentation": rle, "score": 1.0},
        {"image_id": first.id, "category_id": 3, "segmentation": rle, "score": 1.0},
    ]
    kept, counts = refine_results(results, slabs, shrinking(0.5), ONCE)
    assert kept[0]["segmentation"] == rle
    assert kept[1] == results[1]
    assert (counts["refined"], counts["no_box"]) == (1, 1)
    fitted, counts = refine_results(results, slabs, shrinking(0.5), ApplyConfig(masks="refit"))
    assert counts["refined"] == 2
    for result in fitted:
        moved = rle_decode(result["segmentation"])
        assert moved.sum() == pytest.approx(mask.sum() / 4, rel=0.1)
        assert np.flatnonzero(moved.any(axis=1))[[0, -1]] == pytest.approx([30, 49], abs=1)
    assert "bbox" not in fitted[1]


def test_the_area_of_another_tool_follows_the_mask_or_the_box(slabs):
    mask = np.zeros(SIZE_HW, dtype=bool)
    mask[20:60, 20:40] = True
    plain = {
        "image_id": slabs.images[0].id,
        "category_id": 3,
        "bbox": [20, 20, 20, 40],
        "score": 1.0,
        "area": 800,
    }
    masked = {**plain, "segmentation": rle_encode(mask)}
    fitted, _ = refine_results([plain, masked], slabs, shrinking(0.5), ApplyConfig(masks="refit"))
    assert fitted[0]["area"] == pytest.approx(fitted[0]["bbox"][2] * fitted[0]["bbox"][3])
    assert fitted[0]["area"] == pytest.approx(200, rel=0.1)
    assert fitted[1]["area"] == rle_decode(fitted[1]["segmentation"]).sum() < 250
    alone, _ = refine_results([masked], slabs, shrinking(0.5), ONCE)
    assert alone[0]["area"] == 800


def test_a_mask_is_refitted_from_the_part_of_its_box_in_the_image(slabs):
    """The box as the refiner sees it, 0..40, keeps its middle half: so does the mask."""
    mask = np.zeros(SIZE_HW, dtype=bool)
    mask[20:60, :40] = True
    across = {"image_id": slabs.images[0].id, "category_id": 3, "bbox": [-40, 20, 80, 40], "score": 1.0}
    fitted, _ = refine_results(
        [{**across, "segmentation": rle_encode(mask)}], slabs, shrinking(0.5), ApplyConfig(masks="refit")
    )
    assert fitted[0]["bbox"] == pytest.approx([10, 30, 20, 20], abs=0.5)
    columns = np.flatnonzero(rle_decode(fitted[0]["segmentation"]).any(axis=0))
    assert columns[[0, -1]] == pytest.approx([10, 29], abs=1)


def test_no_more_crops_exist_than_a_batch_holds(slabs, monkeypatch):
    made = []

    def counted(pixels, windows, side):
        made.append(len(windows))
        return cut(pixels, windows, side)

    monkeypatch.setattr(apply_module, "cut", counted)
    results = results_for(slabs)[:2] * 40  # of one image
    _, counts = refine_results(results, slabs, stirred(), ApplyConfig(batch_size=16, iterations=2))
    assert counts["refined"] == 80
    assert made == [16] * 10


def test_the_truth_is_refined_in_its_order(slabs):
    refiner = stirred()
    found = refine_truth(slabs, refiner, ONCE)
    results, _ = refine_results(results_for(slabs), slabs, refiner, ONCE)
    xywh = np.array([result["bbox"] for result in results])
    assert found == pytest.approx(np.column_stack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]), abs=1e-3)
    unknown = Refiner(RefinerConfig.model_validate(TINY), ("bolt",)).eval()
    labelled = np.array([a.box_xywh for image in slabs.annotations for a in image])
    labelled[:, 2:] += labelled[:, :2]
    assert np.array_equal(refine_truth(slabs, unknown, ONCE), labelled)


def test_the_path_of_the_gpu_gives_nearly_the_same_boxes(slabs, monkeypatch):
    """`cut_on_device` in place of `cut`: the network sees the same kind of pixels."""
    refiner, rows = stirred(side=64), results_for(slabs)
    ours = np.array([result["bbox"] for result in refine_results(rows, slabs, refiner, ONCE)[0]])

    def cut(pixels, windows, side):
        return apply_module.cut_on_device(torch.from_numpy(pixels).permute(2, 0, 1), windows, side)

    monkeypatch.setattr(apply_module, "cut", cut)
    theirs = np.array([result["bbox"] for result in refine_results(rows, slabs, refiner, ONCE)[0]])
    assert (ours != theirs).any()
    assert np.abs(ours - theirs).max() < 0.5


def test_results_of_another_tool_with_any_ids_and_no_detector(tmp_path):
    """String image ids, category ids 1..90 with gaps, a category unknown to the refiner, a foreign order of records."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    ids = ["b/two.png", "a/one.png"]
    for name in ids:
        path = tmp_path / "images" / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "slab"}, {"id": 13, "name": "plate"}]
    labels = {
        "images": [{"id": name, "file_name": name, "width": 70, "height": 50} for name in ids],
        "annotations": [],
        "categories": categories,
    }
    results = [
        {
            "image_id": ids[0],
            "category_id": 13,
            "bbox": [10, 10, 20, 20],
            "score": 0.25,
            "source": "elsewhere",
        },
        {"image_id": ids[1], "category_id": 90, "bbox": [10, 10, 20, 20], "score": 0.75},
        {"image_id": ids[0], "category_id": 1, "bbox": [30.5, 5.25, 20, 30], "score": 0.5},
    ]
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    (tmp_path / "results.json").write_text(json.dumps(results))
    dataset = read_coco(tmp_path / "labels.json", tmp_path / "images")
    read = read_results(tmp_path / "results.json", dataset)
    found, counts = refine_results(read, dataset, shrinking(0.5), ONCE)
    assert (counts["refined"], counts["unknown_category"]) == (2, 1)
    assert [r["image_id"] for r in found] == [ids[0], ids[1], ids[0]]
    assert [r["category_id"] for r in found] == [13, 90, 1]
    assert found[0] == {**results[0], "bbox": pytest.approx([15, 15, 10, 10], abs=0.01)}
    assert found[1] == results[1]
    assert found[2]["bbox"] == pytest.approx([35.5, 12.75, 10, 15], abs=0.6)


def test_no_results_need_no_image_and_a_missing_image_is_named(slabs, tmp_path):
    assert refine_results([], slabs, shrinking(0.5), ONCE)[0] == []
    gone = read_coco(slabs.file, tmp_path)
    with pytest.raises(DataError, match=r"0\.png"):
        refine_results(results_for(gone)[:1], gone, shrinking(0.5), ONCE)
    rows = np.zeros(0, dtype=np.int64)
    assert refine_rows(slabs, rows, rows, np.zeros((0, 4)), shrinking(0.5), ONCE).shape == (0, 4)


def test_a_checkpoint_is_read_back_and_another_kind_is_refused(slabs, tmp_path, picture):
    refiner = stirred()
    config = RefineConfig.model_validate({"model": TINY})
    meta = refiner_meta(config, slabs, "hash").model_copy(update={"class_names": NAMES})
    save_checkpoint(tmp_path / "refiner.safetensors", model_tensors(refiner), meta)
    loaded = load_refiner(tmp_path / "refiner.safetensors", "cpu")
    boxes = np.array([[20.0, 20.0, 40.0, 60.0]])
    assert loaded.class_names == NAMES
    assert np.array_equal(
        *(refine_boxes(picture, boxes, np.array([1]), each, ONCE) for each in (refiner, loaded))
    )
    other = meta.model_copy(update={"kind": "detector"})
    save_checkpoint(tmp_path / "detector.safetensors", model_tensors(refiner), other)
    with pytest.raises(CheckpointError, match="expected a refiner's checkpoint, found that of a detector"):
        load_refiner(tmp_path / "detector.safetensors", "cpu")
