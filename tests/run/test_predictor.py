"""A run predicts with all of its detectors, some images at a time, and tells what any of them could not look at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from scantling.combine.eliminate import EliminateConfig, learn_relations
from scantling.data.coco import Category, CocoDataset, ImageRecord, read_coco, to_results
from scantling.data.io import write_json
from scantling.errors import Finding, Severity
from scantling.recipe.recipe import parse_recipe
from scantling.run.map_predictions import score_maps_of
from scantling.run.predictor import RunDetectors
from scantling.run.steps import RELATIONS, steps_of
from scantling.structures.instances import Instances
from scantling.structures.masks import RoiMasks
from scantling.structures.sample import Frame
from scantling.structures.score_maps import ScoreMap, ScoreMaps

RECIPE = "members: {one: {model: {}}, two: {model: {}}}\ncombine: {ensemble: {method: nms}}\n"
RECORDS = tuple(
    ImageRecord(id=number, file_name=f"{number}.png", path=Path(f"{number}.png"), size_hw=(20, 20))
    for number in range(3)
)


class Seeing:
    """A detector that finds one box in every image, but for those it cannot read."""

    categories = (Category(id=7, name="dent"),)

    def __init__(self, *unreadable: int) -> None:
        self.unreadable = unreadable
        self.findings: list[Finding] = []

    def predict(self, records: Sequence[ImageRecord]) -> Iterator[tuple[ImageRecord, Instances]]:
        for record in records:
            if record.id in self.unreadable:
                self.findings.append(unreadable(record.id))
                continue
            boxes, labels = torch.tensor([[1.0, 1, 9, 9]]), torch.zeros(1, dtype=torch.int64)
            yield (
                record,
                Instances(size_hw=record.size_hw, boxes=boxes, labels=labels, scores=torch.tensor([0.5])),
            )

    def take_findings(self) -> tuple[Finding, ...]:
        taken = tuple(self.findings)
        self.findings.clear()
        return taken


def unreadable(number: int) -> Finding:
    return Finding(
        code="image-unreadable",
        severity=Severity.WARNING,
        message="cannot be read",
        file=f"{number}.png",
        id=number,
    )


def test_warnings_of_every_member_are_told_once():
    run = RunDetectors(
        root=Path(),
        steps=steps_of(parse_recipe(RECIPE, file="r.yaml"), Path()),
        members={"one": [Seeing(0)], "two": [Seeing(0, 2)]},
    )
    found = [record.id for record, _ in run.predict(RECORDS)]
    assert found == [1, 2]
    assert run.take_findings() == (unreadable(0), unreadable(2))
    assert run.take_findings() == ()


ALL = """
members: {one: {model: {name: mask_rcnn_r50}}, two: {model: {name: mask_rcnn_r50}}, map: {segmenter: {}}}
combine:
  ensemble: {method: mask_vote, iou_threshold: 0.3}
  tune: null
  semantic: {score_threshold: 0.1}
  eliminate: {min_score: 0, min_ratio: 1, min_support: 1, min_iou: 0.05, iou_margin: 0, count_margin: 0}
"""


class Guessing(Seeing):
    """Finds boxes with masks at places that depend on the image and the member alone; in some images none."""

    categories = (Category(id=7, name="dent"), Category(id=8, name="hole"))

    def __init__(self, seed: int) -> None:
        super().__init__(4)
        self.seed = seed

    def predict(self, records: Sequence[ImageRecord]) -> Iterator[tuple[ImageRecord, Instances]]:
        for record in reversed(records):  # as images of similar aspect come together
            if record.id in self.unreadable:
                self.findings.append(unreadable(record.id))
                continue
            random = torch.Generator().manual_seed(100 * self.seed + record.id)
            count = 0 if record.id == 2 else 6
            corner = torch.rand(count, 2, generator=random) * 10
            boxes = torch.cat([corner, corner + 3 + torch.rand(count, 2, generator=random) * 6], dim=1)
            yield (
                record,
                Instances(
                    size_hw=record.size_hw,
                    boxes=boxes,
                    labels=torch.randint(0, 2, (count,), generator=random),
                    scores=torch.rand(count, generator=random),
                    masks=RoiMasks(probabilities=torch.rand(count, 7, 7, generator=random)),
                ),
            )


def foreground(images_seen: list[int], _name: str, images: CocoDataset) -> ScoreMaps:
    """Maps by the image alone."""
    images_seen.append(len(images))

    def of(position: int) -> ScoreMap:
        record = images.images[position]
        plane = np.random.default_rng(record.id).integers(0, 256, (1, 20, 20), dtype=np.uint8)
        return ScoreMap(planes=plane, labels=None, frame=Frame.identity(record.size_hw))

    return ScoreMaps(len(images), of)


@pytest.fixture
def learned(tmp_path) -> Path:
    """A run folder with what the elimination has learned: that a dent and a hole are never near each other."""
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 5, 5]},
        {"id": 2, "image_id": 1, "category_id": 8, "bbox": [12, 12, 5, 5]},
    ]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 20, "height": 20}],
        "categories": [{"id": 7, "name": "dent"}, {"id": 8, "name": "hole"}],
        "annotations": annotations,
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    config = EliminateConfig(min_support=1)
    relations = learn_relations(read_coco(tmp_path / "train.json"), config)
    write_json(tmp_path / RELATIONS, relations.to_dict())
    return tmp_path


@pytest.mark.parametrize("images_at_once", [1, 2, 4, 7])
def test_no_step_looks_from_one_image_to_another(learned, images_at_once):
    records = [replace(RECORDS[0], id=number, file_name=f"{number}.png") for number in range(7)]
    recipe = parse_recipe(ALL, file="r.yaml")

    def outcome(count: int) -> tuple[list[dict], list[int]]:
        sizes = list[int]()
        steps = steps_of(recipe, learned, maps_of=partial(foreground, sizes))
        assert [step.name for step in steps] == ["ensemble", "semantic", "eliminate"]
        members = {"one": [Guessing(1)], "two": [Guessing(2)]}
        run = RunDetectors(root=Path(), steps=steps, members=members, images_at_once=count)
        found = [
            result
            for record, instances in run.predict(records)
            for result in to_results(record.id, instances, Guessing.categories)
        ]
        assert run.take_findings() == (unreadable(4),)
        return found, sizes

    whole, _ = outcome(100)
    some, sizes = outcome(images_at_once)
    assert some == whole
    assert len({result["image_id"] for result in whole}) == 5
    assert all("segmentation" in result for result in whole)
    assert max(sizes) == images_at_once


def test_several_segmenters_say_the_same_however_many_images_they_look_at_at_once():
    class Scoring:
        def __init__(self, seed: int) -> None:
            self.seed, self.seen = seed, list[int]()

        def predict(self, records):
            self.seen.append(len(records))
            for record in records:
                planes = np.random.default_rng((self.seed, record.id)).integers(
                    0, 256, (1, 20, 20), dtype=np.uint8
                )
                yield record, ScoreMap(planes=planes, labels=None, frame=Frame.identity(record.size_hw))

    def maps(count: int) -> list[bytes]:
        segmenters = [Scoring(1), Scoring(2), Scoring(3)]
        found = list(score_maps_of(segmenters, RECORDS, images_at_once=count))
        assert [record for record, _ in found] == list(RECORDS)
        assert max(segmenters[0].seen) == min(count, 3)
        return [one.planes.tobytes() for _, one in found]

    assert maps(1) == maps(2) == maps(99)
    assert len(set(maps(1))) == 3
