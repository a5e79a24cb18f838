"""A run predicts with all of its detectors, and tells what any of them could not look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from scantling.data.coco import Category, ImageRecord
from scantling.errors import Finding, Severity
from scantling.recipe.recipe import parse_recipe
from scantling.run.predictor import RunDetectors
from scantling.run.steps import steps_of
from scantling.structures.instances import Instances

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
