"""The shards as stages: each reads its lines of the list, predicts its images, and leaves two files.

    images.jsonl ── lines of the shard ──► records ── every member, every step ──► predictions.jsonl  summary.json

A shard holds its own images and results, and forgets them when it ends.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from scantling.data.coco import ImageId
from scantling.data.images.white import with_white
from scantling.data.io import atomic_write, json_text, write_json
from scantling.errors import DataError, Finding
from scantling.evaluate.inputs import Result
from scantling.predict.listing import ListedImage
from scantling.predict.loaded import ImagePredictor
from scantling.predict.sources import opened_images
from scantling.run.context import Workplace
from scantling.run.predictions import OwnCategories
from scantling.run.shards.model import ChosenModel
from scantling.run.shards.plan import ShardPlan, images_of, shard_folder
from scantling.run.stage import Inputs, Resources, Stage
from scantling.settings.shards import PartOfShards

PREDICTIONS, SUMMARY = "predictions.jsonl", "summary.json"
_LINE_SECONDS = 30.0
_ABSENT = ("image-missing", "image-unreachable")
_OF_THIS_PROCESS = ("loaded", "predictor")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PredictContext(Workplace):
    """What every shard may look at.

    Attributes:
        plan: What is predicted, in which shards.
        model: What predicts.
        part: The shards that are done here.
        loaded: The model, where this process has loaded it already.
    """

    plan: ShardPlan
    model: ChosenModel
    part: PartOfShards = PartOfShards()
    loaded: ImagePredictor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process, which loads its own predictor."""
        return {name: value for name, value in super().__getstate__().items() if name not in _OF_THIS_PROCESS}

    @cached_property
    def predictor(self) -> ImagePredictor:
        """What predicts, loaded when it is first needed in this process."""
        return self.loaded or self.model.load(str(self.device))

    def categories(self) -> OwnCategories:
        """How what is found is written, counted anew.

        Raises:
            UsageError: The data set lacks a category that the predictor finds.
        """
        found, skips = self.predictor.categories, bool(self.plan.identity["skip_invalid"])
        return OwnCategories.of(self.plan.source, self.plan.declared, found, skip_unknown=skips)


def shards_of(context: PredictContext) -> tuple[Stage, ...]:
    """The shards that are done here; none needs anything of another."""
    indices = context.part.of(context.plan.num_shards)
    return tuple(
        Stage(
            folder=shard_folder(index),
            name=shard_folder(index),
            inputs=partial(inputs_of, context.plan, context.root, index),
            outputs=outputs_of(index),
            action=partial(predict_shard, context, index),
            whole_files=True,
            resources=Resources(gpus=1),
        )
        for index in indices
    )


def outputs_of(index: int) -> tuple[str, str]:
    """The files that a shard leaves: its results, one a line, and what came of it in numbers."""
    folder = shard_folder(index)
    return f"{folder}/{PREDICTIONS}", f"{folder}/{SUMMARY}"


def inputs_of(plan: ShardPlan, root: Path, index: int) -> Inputs:
    """What decides a shard: the plan, and the images that are its own."""
    return {"plan": plan.sha256, "images": hashlib.sha256(plan.lines(root, index)).hexdigest()}


def predict_shard(context: PredictContext, index: int) -> None:
    """Predict the images of a shard; those that cannot be read are counted, also where it is all of them.

    Where not one of them is there, a drive is away or a network is down, and nothing is recorded.

    Args:
        context: Where it is done.
        index: Of the shard.

    Raises:
        DataError: Not one image of the shard is there, or can be reached.
        ScantlingError: The model cannot be used, or the folder cannot be written to.
    """
    began, root = time.monotonic(), context.root
    for leftover in (root / shard_folder(index)).glob(".*.tmp"):  # of a process that was killed
        leftover.unlink(missing_ok=True)
    images, naming = images_of(context.plan.lines(root, index)), context.categories()
    found, findings = _found_in(context, images, naming, index)
    lines = [f"{json_text(result)}\n" for image in images for result in found.get(image.id, ())]
    unreadable = [image.file_name for image in images if image.id not in found]
    absent = [finding for finding in findings if finding.code in _ABSENT]
    if unreadable and len(absent) == len(images):
        told = f"not one of its {len(images)} images is there; {absent[0].id}: {absent[0].message}"
        raise DataError(told, hint="Is the drive or the network away? The same command does the shard again.")
    summary = {
        "images": len(images),
        "predicted": len(found),
        "unreadable": len(unreadable),
        "objects": len(lines),
        "left_out": dict(naming.left_out),
        "findings": [_as_record(finding) for finding in findings],
        "seconds": round(time.monotonic() - began, 3),
    }
    predictions, told = outputs_of(index)
    atomic_write(root / predictions, "".join(lines))
    write_json(root / told, summary, indent=2)


def _found_in(
    context: PredictContext, images: Sequence[ListedImage], naming: OwnCategories, index: int
) -> tuple[dict[ImageId, Sequence[Result]], list[Finding]]:
    """Results by the id of each image that can be read, and what there is to say of the others."""
    predictor, found, told = context.predictor, dict[ImageId, Sequence[Result]](), time.monotonic()
    predictor.take_findings()  # of a shard that failed half way
    with opened_images(images, context.plan.root) as opened:
        for record, instances in predictor.predict(with_white(opened.records, predictor.white)):
            found[record.id] = naming.results_of(record, instances)
            if time.monotonic() - told > _LINE_SECONDS:
                log.info("shard %05d: %d of %d images", index, len(found), len(images))
                told = time.monotonic()
        findings = [*opened.findings, *opened.told(predictor.take_findings())]
    return found, findings


def _as_record(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "severity": str(finding.severity),
        "id": finding.id,
        "file": finding.file,
        "message": finding.message,
    }
