"""Results of another tool, with masks and keys that only it knows, through every verb that writes results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest

from reference.tiny_refiner import TINY_REFINER
from scantling import api
from scantling.data.coco import CocoDataset, read_coco, read_results
from scantling.data.coco.records import to_rle
from scantling.evaluate.coco_eval import evaluate_results
from scantling.recipe.recipe import parse_recipe
from scantling.run.pipeline import run_recipe
from scantling.synth.synth import SynthConfig, write_synth

QUICK = ["search.bootstrap=20", "search.methods=[hard]", "search.folds=2", "suppress.min_score=0"]


class World:
    """Generated scenes, results on their val split, and where verbs write.

    Attributes:
        parts: Folder of the data set.
        results: As the other tool wrote them; by `track` each is found again.
        root: Of all files.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.parts = root, root / "parts"
        write_synth(self.parts, SynthConfig(size_hw=(96, 128)), splits={"train": 4, "val": 3}, seed=0)
        self.val: CocoDataset = read_coco(self.parts / "annotations/val.json", self.parts / "images")
        self.results = [
            {
                "image_id": image.id,
                "category_id": self.val.category_ids[annotation.label],
                "bbox": [side + 0.1 for side in annotation.box_xywh],
                "score": 0.9 - 0.013 * number,
                "segmentation": to_rle(annotation.segmentation, image.size_hw),
                "track": f"{image.id}-{number}",
                "attributes": {"worn": [True, None], "by": "another tool"},
                "depth_m": 1.25,
            }
            for image, annotations in zip(self.val.images, self.val.annotations, strict=True)
            for number, annotation in enumerate(annotations)
        ]
        del self.results[1]["segmentation"]
        (root / "theirs.json").write_text(json.dumps(self.results))
        api.refine_train(self.parts, root / "refiner", overrides=TINY_REFINER, device="cpu")

    @property
    def data(self) -> str:
        """The data set that was predicted."""
        return f"{self.parts}:val"

    @property
    def given(self) -> Path:
        """The results file of the other tool."""
        return self.root / "theirs.json"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("foreign"))


def tuned(world: World, out: Path, iou_type: Literal["bbox", "segm"]) -> None:
    settings = out.with_suffix(".yaml")
    api.tune([world.given], world.data, settings, iou_type=iou_type, overrides=QUICK)
    api.suppress(world.given, world.data, out, tuned=settings)


def fused(world: World, out: Path, *settings: str) -> None:
    api.ensemble([world.given], world.data, out, overrides=settings)


def semantic(world: World, out: Path) -> None:
    maps = out.parent / "maps"
    maps.mkdir()
    for image in world.val.images:
        height, width = image.size_hw
        everything = np.full((height // 4, width // 4), 255, dtype=np.uint8)
        cv2.imwrite(str(maps / f"{Path(image.file_name).stem}.png"), everything)
    api.fuse_semantic(world.given, world.data, maps, out)


def eliminated(world: World, out: Path) -> None:
    api.eliminate(world.given, f"{world.parts}:train", world.data, out, overrides=["min_ratio=1e9"])


def refined(world: World, out: Path, masks: str) -> None:
    checkpoint = world.root / "refiner/best.safetensors"
    api.refine_apply(world.given, world.data, checkpoint, out=out, overrides=[f"masks={masks}"], device="cpu")


VERBS: dict[str, tuple[Callable[[World, Path], None], set[str]]] = {
    "tune by boxes, suppress": (lambda world, out: tuned(world, out, "bbox"), set()),
    "tune by masks, suppress": (lambda world, out: tuned(world, out, "segm"), set()),
    "ensemble, wbf": (lambda world, out: fused(world, out, "method=wbf"), set()),
    "ensemble, nmw": (lambda world, out: fused(world, out, "method=nmw"), set()),
    "ensemble, nms": (lambda world, out: fused(world, out, "method=nms"), set()),
    "ensemble, soft": (lambda world, out: fused(world, out, "method=soft_gaussian"), {"score"}),
    "eliminate": (eliminated, set()),
    "fuse-semantic": (semantic, {"segmentation"}),
    "refine, masks kept": (lambda world, out: refined(world, out, "keep"), {"bbox"}),
    "refine, masks refitted": (lambda world, out: refined(world, out, "refit"), {"bbox", "segmentation"}),
}
"""Verb -> how it is done, and the keys whose values it may change."""


def changed_keys(world: World, file: Path) -> set[str]:
    """Keys whose values are not those that the other tool wrote, in any of the results; no result may be missing."""
    written = {result["track"]: result for result in json.loads(file.read_text())}
    assert written.keys() == {result["track"] for result in world.results}
    assert all(written[r["track"]].keys() == {*r, "file_name", "category_name"} for r in world.results)
    return {
        key
        for result in world.results
        for key, value in result.items()
        if written[result["track"]][key] != (pytest.approx(value, abs=1e-9) if key == "bbox" else value)
    }


def mask_ap(world: World, file: Path) -> dict[str, float | None]:
    results = read_results(file, world.val)
    return dict(evaluate_results(world.val, results, iou_type="segm").metrics)


@pytest.mark.parametrize("verb", VERBS)
def test_masks_and_unknown_keys_survive(world, tmp_path, verb):
    do, may_change = VERBS[verb]
    do(world, tmp_path / "out.json")
    assert changed_keys(world, tmp_path / "out.json") <= may_change
    if not may_change & {"segmentation", "score"}:
        assert mask_ap(world, tmp_path / "out.json") == mask_ap(world, world.given)


def test_refitted_masks_follow_their_boxes(world, tmp_path):
    refined(world, tmp_path / "out.json", "refit")
    assert {"bbox", "segmentation"} <= changed_keys(world, tmp_path / "out.json")


def test_evaluation_compares_the_masks_and_leaves_the_file_as_it_is(world, tmp_path):
    before = world.given.read_bytes()
    evaluation = api.evaluate(world.given, world.data, out=tmp_path / "out", iou_type="segm", bootstrap=0)
    assert world.given.read_bytes() == before
    in_parts = {"OM": 1.0, "OIR": 1.0, "DPR": 1.0}  # no object of this set lies in several parts
    assert evaluation.metrics == mask_ap(world, world.given) | in_parts
    assert 0.5 < evaluation.metrics["AP"] < 1  # one result has no mask, some objects are hidden


def test_masks_and_unknown_keys_survive_a_whole_run(world, tmp_path):
    text = (
        f"members: {{theirs: {{predictions: {world.given}}}}}\n"
        "combine: {ensemble: {}, eliminate: {min_ratio: 1e9}}\nevaluate: {bootstrap: 0}\n"
        "refine: {gate: null, model: {backbone: test_resnet, side: 32, hidden: 8},"
        " train: {epochs: 1, repeats: 1, batch_size: 2}}\n"
    )
    out = run_recipe(parse_recipe(text, file="r.yaml").on(data=world.parts), tmp_path / "run").out
    changed = {
        step: changed_keys(world, out / step / "predictions.json")
        for step in ("members/theirs", "ensemble", "eliminate", "refine")
    }
    assert changed == {"members/theirs": set(), "ensemble": set(), "eliminate": set(), "refine": {"bbox"}}
    for step in ("members/theirs", "refine"):
        assert mask_ap(world, out / step / "predictions.json") == mask_ap(world, world.given)
