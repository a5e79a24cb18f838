"""Predicting images with a detector or a whole run: to COCO results and pictures."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image

from scantling.data.coco import (
    Category,
    ImageId,
    ImageRecord,
    to_results,
    with_file_names,
    write_results,
)
from scantling.data.coco.records import told_apart
from scantling.data.findings import name_some
from scantling.data.images.open import open_image
from scantling.data.images.white import with_white
from scantling.data.io import replacing
from scantling.errors import Finding, UsageError
from scantling.evaluate.inputs import Result
from scantling.predict.loaded import ImagePredictor
from scantling.predict.sources import open_source
from scantling.report.draw import draw
from scantling.structures.instances import Instances

log = logging.getLogger(__name__)

DRAWN_SCORE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What was found.

    Attributes:
        results: COCO results.
        num_images: Images looked at.
        findings: Warnings about images that could not be used.
        out: Results file, if one was written.
        left_out: Objects left out by the name of their category, which the data set does not have.
    """

    results: Sequence[Result]
    num_images: int
    findings: tuple[Finding, ...]
    out: Path | None
    left_out: dict[str, int] = field(default_factory=dict)

    def to_text(self) -> str:
        """For people: how much was found, and where it is."""
        where = f" in {self.out}" if self.out else ""
        less = ", ".join(f"{count} {name}" for name, count in self.left_out.items())
        others = f"; left out, as the data set has no such categories: {less}" if less else ""
        return f"{len(self.results)} objects in {self.num_images} images{where}{others}"

    def to_dict(self) -> dict[str, Any]:
        """For programs, where the results themselves are in a file."""
        return {
            "out": str(self.out) if self.out else None,
            "num_images": self.num_images,
            "num_results": len(self.results),
            "num_unusable": len({finding.id for finding in self.findings}),
            "left_out": dict(self.left_out),
        }


def predict_source(
    source: Path,
    predictor: ImagePredictor,
    *,
    out: Path | None = None,
    overlays: Path | None = None,
    skip_invalid: bool = False,
) -> Predictions:
    """Look at every image of a source; those that cannot be read are left out and counted.

    Args:
        source: An image, a folder, a COCO file, or a split of a data set in any format (`FOLDER:SPLIT`), whose own
            category ids are then written.
        predictor: A detector (`load_detector`), or a run's (`run.predictor.load_run`).
        out: COCO results file to write.
        overlays: Folder for copies of the images with what scores at least 0.3 drawn on them.
        skip_invalid: Leave out and count faulty records, and what is found of a category that the data set does not
            have, instead of refusing them.

    Raises:
        DataError: There is no usable image.
        UsageError: `overlays` would overwrite the images that are looked at, or the data set lacks a category.
    """
    records, findings, own = open_source(source, skip_invalid=skip_invalid)
    records = with_white(records, predictor.white)
    if overlays is not None:
        _refuse_overwriting(overlays, records)
    log.info("%s: %d images", source, len(records))
    ids = _ids_for(source, own, predictor.categories, skip_unknown=skip_invalid)
    names = [category.name for category in predictor.categories]
    categories = [
        replace(category, id=ids.get(label, category.id))
        for label, category in enumerate(predictor.categories)
    ]
    known = torch.tensor([label in ids for label in range(len(names))], dtype=torch.bool)
    results: dict[ImageId, Sequence[Result]] = {}
    left_out: Counter[str] = Counter()
    for record, everything in predictor.predict(records):
        instances = everything[known[everything.labels]]
        left_out.update(names[label] for label in everything.labels[~known[everything.labels]].tolist())
        results[record.id] = to_results(record.id, instances, categories)
        if overlays is not None:
            _write_overlay(overlay_path(overlays, record), record, instances, names)
    listed = [result for record in records for result in results.get(record.id, ())]
    found = with_file_names(listed, records)
    findings = (*findings, *predictor.findings)
    for finding in findings:
        log.warning("%s", str(finding).removeprefix("warning "))
    if out is not None:
        write_results(found, out, records)
    return Predictions(
        results=found, num_images=len(results), findings=findings, out=out, left_out=dict(left_out)
    )


def overlay_path(folder: Path, record: ImageRecord) -> Path:
    """Where the picture of an image goes: its own name, made a JPEG."""
    name = PurePosixPath(record.file_name)
    return folder / (name if name.suffix.lower() in {".jpg", ".jpeg"} else f"{name}.jpg")


def _ids_for(
    source: Path,
    declared: Sequence[Category],
    found: Sequence[Category],
    *,
    skip_unknown: bool,
) -> dict[int, int]:
    """The category id that is written for each of the predictor's labels.

    That is the data set's own of the same name, the second for the second where several have one name; without a data
    set the predictor's.

    Raises:
        UsageError: The data set lacks a category, and that is to be refused.
    """
    if not declared:
        return {label: category.id for label, category in enumerate(found)}
    names = told_apart([category.name for category in declared])
    own = {name: category.id for name, category in zip(names, declared, strict=True)}
    wanted = told_apart([category.name for category in found])
    missing = [name for name in wanted if name not in own]
    if missing and not skip_unknown:
        raise UsageError(
            f"{source}: the detector finds categories that this data set does not have: {name_some(missing, 10)}",
            hint=f"It has {name_some(list(own), 10)}. Rename them there, or leave out what is found of the others with"
            " --skip-invalid.",
        )
    return {label: own[name] for label, name in enumerate(wanted) if name in own}


def _refuse_overwriting(overlays: Path, records: Iterable[ImageRecord]) -> None:
    for record in records:
        if overlay_path(overlays, record).resolve() == record.path.resolve():
            hint = "Nothing was changed. Choose another folder for --overlays."
            raise UsageError(f"{record.path}: its overlay would replace the image itself", hint=hint)


def _write_overlay(path: Path, record: ImageRecord, instances: Instances, class_names: Sequence[str]) -> None:
    shown = instances if instances.scores is None else instances[instances.scores >= DRAWN_SCORE]
    picture = draw(open_image(record.path, size_hw=record.size_hw, white=record.white), shown, class_names)
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="JPEG", quality=90)
