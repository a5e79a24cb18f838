"""Predicting images with a detector or a whole run: to COCO results and pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from scantling.data.coco import Category, ImageId, ImageRecord, to_results, write_results
from scantling.data.images.open import open_image
from scantling.data.images.white import with_white
from scantling.data.io import replacing
from scantling.errors import Finding, UsageError
from scantling.evaluate.problem import Result
from scantling.predict.loaded import Finder
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
    """

    results: list[Result]
    num_images: int
    findings: tuple[Finding, ...]
    out: Path | None

    def to_text(self) -> str:
        """For people: how much was found, and where it is."""
        where = f" in {self.out}" if self.out else ""
        return f"{len(self.results)} objects in {self.num_images} images{where}"

    def to_dict(self) -> dict[str, Any]:
        """For programs, where the results themselves are in a file."""
        return {
            "out": str(self.out) if self.out else None,
            "num_images": self.num_images,
            "num_results": len(self.results),
            "num_unusable": len({finding.id for finding in self.findings}),
        }


def predict_source(
    source: Path, finder: Finder, *, out: Path | None = None, overlays: Path | None = None
) -> Predictions:
    """Look at every image of a source; those that cannot be read are left out and counted.

    Args:
        source: An image, a folder, a COCO file, or a split of a data set in any format (`FOLDER:SPLIT`), whose own
            category ids are then written.
        finder: A detector (`load_detector`), or a run's (`run_prediction.load_run`).
        out: COCO results file to write.
        overlays: Folder for copies of the images with what scores at least 0.3 drawn on them.

    Raises:
        DataError: There is no usable image.
        UsageError: `overlays` would overwrite the images that are looked at.
    """
    records, findings, own = open_source(source)
    records = with_white(records, finder.white)
    if overlays is not None:
        _refuse_overwriting(overlays, records)
    log.info("%s: %d images", source, len(records))
    categories, names = _categories_for(source, own, finder), [c.name for c in finder.categories]
    results: dict[ImageId, Sequence[Result]] = {}
    for record, instances in finder.find(records):
        results[record.id] = to_results(record.id, instances, categories)
        if overlays is not None:
            _write_overlay(overlay_path(overlays, record), record, instances, names)
    found = [result for record in records for result in results.get(record.id, ())]
    findings = (*findings, *finder.findings)
    for finding in findings:
        log.warning("%s", str(finding).removeprefix("warning "))
    if out is not None:
        write_results(found, out)
    return Predictions(results=found, num_images=len(results), findings=findings, out=out)


def overlay_path(folder: Path, record: ImageRecord) -> Path:
    """Where the picture of an image goes: its own name, made a JPEG."""
    name = PurePosixPath(record.file_name)
    return folder / (name if name.suffix.lower() in {".jpg", ".jpeg"} else f"{name}.jpg")


def _categories_for(source: Path, declared: Iterable[Category], detector: Finder) -> tuple[Category, ...]:
    """The detector's categories, with the ids that the data set uses for these names."""
    own = {category.name: category for category in declared}
    unknown = [category.name for category in detector.categories if category.name not in own]
    if own and unknown:
        log.warning("%s has no categories %s; the checkpoint's ids are written", source, ", ".join(unknown))
    return detector.categories if unknown else tuple(own[category.name] for category in detector.categories)


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
