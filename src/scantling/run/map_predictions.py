"""Scoring the pixels of images with a segmenter, or with those of a run: to files that any tool reads.

    foreground of all categories ──► FOLDER/NAME.png, 8 bits, of the image's own size
    one plane for each category  ──► FOLDER/NAME.npy, bytes (K, h, w) in the order of the categories, as it was scored

`data.map_files` reads both. Several segmenters, such as those of folds, speak with one voice: the mean of their scores.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from scantling.data.coco import ImageRecord
from scantling.data.findings import tell
from scantling.data.images.white import with_white
from scantling.data.io import atomic_write
from scantling.data.map_files import VALUES_KEY
from scantling.data.score_maps import PackedMap
from scantling.errors import Finding, UsageError
from scantling.predict.loaded import LoadedSegmenter, load_segmenter
from scantling.predict.sources import none_readable, place_of_output, portions_of
from scantling.recipe.recipe import load_recipe
from scantling.run.context import TrainingJob
from scantling.run.folder import RECIPE
from scantling.structures.score_maps import ScoreMap

log = logging.getLogger(__name__)

MAPS_AT_ONCE = 64
"""Images of which the maps of all segmenters but one are held at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPredictions:
    """What was written.

    Attributes:
        folder: Where the maps are.
        num_images: Images scored.
        findings: Warnings about images that could not be used.
    """

    folder: Path
    num_images: int
    findings: tuple[Finding, ...]

    @property
    def results(self) -> list[Any]:
        """A segmenter finds no objects."""
        return []

    def to_text(self) -> str:
        """For people."""
        return f"score maps of {self.num_images} images in {self.folder}"

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        unusable = len({finding.id for finding in self.findings})
        return {"maps": str(self.folder), "num_images": self.num_images, "num_unusable": unusable}


def load_run_segmenters(
    root: Path, overrides: Iterable[str] = (), *, member: str | None = None, device: str = "auto"
) -> list[LoadedSegmenter]:
    """The segmenters of a semantic member of a finished run: one, or one for each fold.

    Args:
        root: The run folder.
        overrides: `KEY=VALUE` texts that replace settings of prediction.
        member: Which one; None for the only one.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        CheckpointError: Weights are missing or damaged.
        UsageError: The run has no segmenter, or several and none is named.
    """
    recipe, chosen = load_recipe(root / RECIPE), list(overrides)
    known = [name for name in recipe.members if recipe.members[name].segmenter is not None]
    wanted = known if member is None else [name for name in known if name == member]
    if len(wanted) != 1:
        there = f"it has {', '.join(known)}" if known else "it has none"
        which = "no segmenter" if member is None else f"no segmenter {member}"
        told = which if not wanted else "several segmenters"
        raise UsageError(f"{root}: {told} ({there})", hint="Name the checkpoint of one: --checkpoint FILE.")
    folds = recipe.data.folds
    units = [TrainingJob(wanted[0], fold) for fold in ([None] if folds is None else range(folds))]
    return [load_segmenter(root / unit.weights, chosen, device=device) for unit in units]


def score_maps_of(
    segmenters: Sequence[LoadedSegmenter],
    records: Sequence[ImageRecord],
    *,
    images_at_once: int = MAPS_AT_ONCE,
) -> Iterator[tuple[ImageRecord, ScoreMap]]:
    """The score map of each readable image: the mean of what the segmenters say.

    Args:
        segmenters: At least one; several must look at images in the same way.
        records: Images to read.
        images_at_once: Of several segmenters, each looks at so many images before the first map of these comes.
    """
    *others, last = segmenters
    if not others:
        yield from last.predict(records)
        return
    for start in range(0, len(records), images_at_once):
        some = records[start : start + images_at_once]
        said = [
            {id(record): PackedMap.of(one) for record, one in segmenter.predict(some)} for segmenter in others
        ]
        for record, one in last.predict(some):
            yield record, ScoreMap.mean([*(each[id(record)].unpack() for each in said), one])


def predict_maps(
    source: Path | str, segmenters: Sequence[LoadedSegmenter], folder: Path, *, skip_invalid: bool = False
) -> MapPredictions:
    """Score the pixels of every image of a source, and write a map for each.

    Args:
        source: Any that `predict.listing` lists.
        segmenters: At least one, all of one member.
        folder: Where the maps go; made if need be.
        skip_invalid: Leave out and count faulty records instead of refusing them.

    Raises:
        DataError: There is no usable image.
        UsageError: A map would overwrite an image, or two images would have one map.
    """
    first = segmenters[0]
    suffix = ".npy" if first.by_category else ".png"
    findings, count, taken = list[Finding](), 0, set[Path]()
    for portion in portions_of(source, skip_invalid=skip_invalid):
        records = with_white(portion.records, first.white)
        paths = _paths(records, folder, suffix, taken)
        if records:
            log.info("%s: %d images", source, len(records))
        for record, one in score_maps_of(segmenters, records):
            content = _npy(one, len(first.categories)) if first.by_category else _png(one)
            atomic_write(paths[id(record)], content)
            count += 1
        said = [segmenter.take_findings() for segmenter in segmenters]  # all say the same of an image
        findings += [*portion.findings, *portion.told(said[-1])]
    if not count:
        raise none_readable(source, findings)
    tell(findings, log)
    return MapPredictions(folder=folder, num_images=count, findings=tuple(findings))


def _paths(records: Sequence[ImageRecord], folder: Path, suffix: str, taken: set[Path]) -> dict[int, Path]:
    """Where each image's map goes, by the record's identity; none of the places is taken, and then all are."""
    paths = {id(record): place_of_output(folder, record.file_name).with_suffix(suffix) for record in records}
    if len(set(paths.values())) < len(records) or not taken.isdisjoint(paths.values()):
        raise UsageError(f"{folder}: two images differ in their ending alone, and would have one map")
    taken.update(paths.values())
    for record in records:
        if paths[id(record)].resolve() == record.path.resolve():
            hint = "Nothing was changed. Choose another folder for --maps."
            raise UsageError(f"{record.path}: its map would replace the image itself", hint=hint)
    return paths


def _png(one: ScoreMap) -> bytes:
    content, told = io.BytesIO(), PngInfo()
    told.add_text(VALUES_KEY, "scores")  # a segmenter that is sure of everything writes few different numbers
    Image.fromarray(one.scores(0)).save(content, format="PNG", pnginfo=told)
    return content.getvalue()


def _npy(one: ScoreMap, num_classes: int) -> bytes:
    planes = np.zeros((num_classes, *one.planes.shape[1:]), dtype=np.uint8)
    for label, plane in zip(one.labels or (), one.planes, strict=True):
        planes[label] = plane
    content = io.BytesIO()
    np.save(content, planes)
    return content.getvalue()
