"""Predicting images with a detector or a whole run: to COCO results and pictures."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from scantling.data.coco import (
    Category,
    ImageId,
    ImageRecord,
    to_results,
    with_names,
)
from scantling.data.coco.records import told_apart
from scantling.data.findings import name_some, tell
from scantling.data.images.open import open_image
from scantling.data.images.white import with_white
from scantling.data.io import replacing, write_json
from scantling.errors import Finding, UsageError
from scantling.evaluate.inputs import Result
from scantling.predict.loaded import ImagePredictor
from scantling.predict.sources import none_readable, place_of_output, portions_of
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
    source: Path | str,
    predictor: ImagePredictor,
    *,
    out: Path | None = None,
    overlays: Path | None = None,
    skip_invalid: bool = False,
) -> Predictions:
    """Look at every image of a source; those that cannot be read are left out and counted.

    Args:
        source: Any that `predict.listing` lists; of a data set, its own category ids are written.
        predictor: A detector (`load_detector`), or a run's (`run.predictor.load_run`).
        out: COCO results file to write.
        overlays: Folder for copies of the images with what scores at least 0.3 drawn on them.
        skip_invalid: Leave out and count faulty records, and what is found of a category that the data set does not
            have, instead of refusing them.

    Raises:
        DataError: There is no usable image.
        UsageError: `overlays` would overwrite the images that are looked at, or the data set lacks a category.
    """
    naming: OwnCategories | None = None
    found, findings, used = list[Result](), list[Finding](), 0
    for portion in portions_of(source, skip_invalid=skip_invalid):
        records = with_white(portion.records, predictor.white)
        if overlays is not None:
            _refuse_overwriting(overlays, records)
        if records:
            log.info("%s: %d images", source, len(records))
        naming = naming or OwnCategories.of(
            source, portion.categories, predictor.categories, skip_unknown=skip_invalid
        )
        results: dict[ImageId, Sequence[Result]] = {}
        for record, instances in predictor.predict(records):
            results[record.id] = naming.results_of(record, instances)
            if overlays is not None:
                _write_overlay(
                    overlay_path(overlays, record), record, naming.known_in(instances), naming.names
                )
        found += [result for record in records for result in results.get(record.id, ())]
        findings += [*portion.findings, *portion.told(predictor.take_findings())]
        used += len(results)
    if not used:
        raise none_readable(source, findings)
    tell(findings, log)
    if out is not None:
        write_json(out, found)
    return Predictions(
        results=found,
        num_images=used,
        findings=tuple(findings),
        out=out,
        left_out=dict(naming.left_out) if naming else {},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCategories:
    """What is found, written with the category ids of a data set.

    Attributes:
        categories: By label of the predictor, with the id that is written.
        known: (K,) whether the data set has the category; what is found of others is left out.
        left_out: Objects left out so far, by the name of their category.
    """

    categories: tuple[Category, ...]
    known: torch.Tensor
    left_out: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(
        cls, source: object, declared: Sequence[Category], found: Sequence[Category], *, skip_unknown: bool
    ) -> OwnCategories:
        """By the names of the categories.

        Args:
            source: For messages.
            declared: Of the data set; none where it is no data set, and the predictor's ids are written.
            found: The predictor's, in label order.
            skip_unknown: Leave out what is found of a category that the data set does not have.

        Raises:
            UsageError: The data set lacks a category, and that is to be refused.
        """
        ids = _ids_for(source, declared, found, skip_unknown=skip_unknown)
        categories = tuple(
            replace(category, id=ids.get(label, category.id)) for label, category in enumerate(found)
        )
        known = torch.tensor([label in ids for label in range(len(categories))], dtype=torch.bool)
        return cls(categories=categories, known=known)

    @property
    def names(self) -> list[str]:
        """Of the categories, in label order."""
        return [category.name for category in self.categories]

    def known_in(self, instances: Instances) -> Instances:
        """Those of categories that the data set has."""
        return instances[self.known[instances.labels]]

    def results_of(self, record: ImageRecord, instances: Instances) -> Sequence[Result]:
        """COCO results of an image with the names of file and categories; what is left out is counted."""
        names, lost = self.names, instances.labels[~self.known[instances.labels]]
        self.left_out.update(names[label] for label in lost.tolist())
        results = to_results(record.id, self.known_in(instances), self.categories)
        return with_names(results, [record], self.categories)


def overlay_path(folder: Path, record: ImageRecord) -> Path:
    """Where the picture of an image goes: its own name, made a JPEG."""
    path = place_of_output(folder, record.file_name)
    return path if path.suffix.lower() in {".jpg", ".jpeg"} else path.with_name(f"{path.name}.jpg")


def _ids_for(
    source: object,
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
