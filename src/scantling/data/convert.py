"""One data set, written in another tool's files: COCO, YOLO or VOC.

What a format cannot hold is counted and told, never dropped in silence:

| | boxes | masks | crowds | difficult | categories' ids and further keys |
|---|---|---|---|---|---|
| COCO | exact | exact | yes | yes, `ignore` too | yes |
| YOLO | clipped to the image; corners beside polygons | one polygon each | left out | left out | in `categories.json` |
| VOC | exact | none | as `difficult`, and `iscrowd` for scantling | yes | in `categories.json` |

Keys of annotations that only COCO can hold, such as key points, are counted by name, and so is what is not read at all,
such as rotations of boxes.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from scantling.data.coco import CocoDataset, ReadOptions, write_coco
from scantling.data.coco.annotations import MARKS
from scantling.data.coco.dataset import objects_text
from scantling.data.coco.layout import alias_of
from scantling.data.coco.records import Annotation, ImageId, ImageRecord
from scantling.data.findings import summarise, tell_warnings
from scantling.data.formats.delftbikes import STATES, TARGETS
from scantling.data.formats.document import CATEGORIES_FILE
from scantling.data.formats.locations import read_splits
from scantling.data.formats.voc import FLAGS
from scantling.data.formats.write_voc import voc_text
from scantling.data.formats.write_yolo import label_text, settings_text, yolo_rows
from scantling.data.formats.yolo import label_path
from scantling.data.health.images import usable_images
from scantling.data.io import atomic_write, temporary_beside, write_json
from scantling.errors import UsageError

_logger = logging.getLogger(__name__)

Target = Literal["coco", "yolo", "voc"]


class WrittenCounts(NamedTuple):
    """Images, objects, crowd regions, and difficult or ignored objects in the files of a split."""

    images: int
    objects: int
    crowds: int = 0
    ignored: int = 0

    def __str__(self) -> str:
        return f"{self.images} images, {objects_text(self.objects, self.crowds, self.ignored)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What was written.

    Attributes:
        out: The folder.
        target: Its format.
        counts: What was written, by split.
        losses: How often something could not be kept, by what it was.
    """

    out: Path
    target: Target
    counts: Mapping[str, WrittenCounts]
    losses: Mapping[str, int]

    def to_text(self) -> str:
        """For people."""
        lines = [f"{self.out}: {self.target.upper()}"]
        lines += [f"  {name}: {counts}" for name, counts in self.counts.items()]
        lines += [f"  not kept: {count} {what}" for what, count in self.losses.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """For programs."""
        splits = {name: counts._asdict() for name, counts in self.counts.items()}
        return {"out": str(self.out), "format": self.target, "splits": splits, "not_kept": dict(self.losses)}


@dataclass(kw_only=True)
class _Job:
    """A conversion under way.

    Attributes:
        folder: Temporary, renamed at the end.
        link: Link images instead of copying them.
        boxes_only: Leave masks out where the target could hold them.
        losses: Counted while writing.
        taken: File name in use, by its stem, and the image it belongs to.
    """

    folder: Path
    link: bool
    boxes_only: bool
    losses: Counter[str] = field(default_factory=Counter)
    taken: dict[str, Path] = field(default_factory=dict)


def convert_data(
    source: Path | str,
    target: Target,
    out: Path,
    *,
    link: bool = False,
    boxes_only: bool = False,
    states: tuple[str, ...] = (),
    options: ReadOptions | None = None,
) -> Converted:
    """Read every split of a data set with its images' headers, and write it; see `convert_splits`.

    Args:
        source: Folder, or one of its splits.
        target: Format to write.
        out: As in `convert_splits`, like `link` and `boxes_only`.
        link: Link images.
        boxes_only: Leave masks out.
        states: DelftBikes parts in these states are kept; none means all but absent ones.
        options: How strictly; objects marked `difficult` or `ignore` that count are ordinary ones, which YOLO can hold.

    Raises:
        DataError: With the findings of the first split that cannot be used.
        UsageError: A state is unknown, or the folder is in use.
    """
    kept = tuple(state for state in STATES if state in (states or TARGETS))
    if set(states) - set(kept):
        raise UsageError(f"--states: known are {', '.join(STATES)}")
    options = options or ReadOptions()
    read = read_splits(source, options, states=kept)
    splits = {
        name: usable_images(dataset, skip_invalid=options.skip_invalid) for name, dataset in read.items()
    }
    for name, dataset in splits.items():
        counts = f"{dataset.counts_text()}, {len(dataset.categories)} categories"
        _logger.info("%s: %s; %s", name, counts, summarise(dataset.findings))
        tell_warnings(dataset.findings, _logger, rest="`scantling check` tells all")
    return convert_splits(splits, target, out, link=link, boxes_only=boxes_only)


def convert_splits(
    splits: Mapping[str, CocoDataset],
    target: Target,
    out: Path,
    *,
    link: bool = False,
    boxes_only: bool = False,
) -> Converted:
    """Write data sets with their images.

    Args:
        splits: By name; in YOLO and VOC they must have the same classes.
        target: Format to write.
        out: Folder; must not exist or be empty. It appears complete or not at all.
        link: Hard links (else symbolic ones) instead of copies; the images must then never be edited in place.
        boxes_only: Leave masks out.

    Raises:
        UsageError: The folder is in use, the classes of the splits differ, or an image is missing.
    """
    _require_same_classes(splits, target)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not an empty folder", hint="Nothing was changed. Choose another --out.")
    job = _Job(folder=temporary_beside(out), link=link, boxes_only=boxes_only)
    try:
        {"coco": _write_coco, "yolo": _write_yolo, "voc": _write_voc}[target](splits, job)
        if out.is_dir():
            out.rmdir()
        job.folder.replace(out)
    finally:
        shutil.rmtree(job.folder, ignore_errors=True)
    _count_keys(splits, target, job)
    job.losses.update(what for annotation in _annotations_of(splits.values()) for what in annotation.unread)
    counts = {name: _counts(dataset, target) for name, dataset in splits.items()}
    return Converted(out=out, target=target, counts=counts, losses=dict(+job.losses))


def _counts(dataset: CocoDataset, target: Target) -> WrittenCounts:
    """What the files of a split hold: YOLO's neither crowd regions nor ignored objects."""
    others = (dataset.num_crowd, dataset.num_ignored) if target != "yolo" else (0, 0)
    return WrittenCounts(len(dataset), dataset.num_objects, *others)


def _count_keys(splits: Mapping[str, CocoDataset], target: Target, job: _Job) -> None:
    """Count the further keys of annotations that the format has no place for."""
    kept = {"yolo": (), "voc": (*FLAGS, *MARKS)}
    for annotation in _annotations_of(splits.values()) if target in kept else ():
        for key in sorted(annotation.extra.keys() - set(kept[target])):
            job.losses[f"{key} of annotations"] += annotation.extra[key] not in (None, 0, [], {}, "")


def _annotations_of(datasets: Iterable[CocoDataset]) -> Iterator[Annotation]:
    return (a for dataset in datasets for many in dataset.annotations for a in many)


def _write_coco(splits: Mapping[str, CocoDataset], job: _Job) -> None:
    flat = _one_folder_is_enough(splits)
    for split, dataset in splits.items():
        folder = job.folder / "images" if flat else job.folder / "images" / split
        for record in dataset.images:
            _place_image(record, folder / record.file_name, job)
        if job.boxes_only:
            job.losses["masks"] += sum(a.segmentation is not None for a in _annotations_of([dataset]))
        content = (_without_masks(dataset) if job.boxes_only else dataset).to_coco()
        write_coco(_with_ignore(content), job.folder / "annotations" / f"{split}.json")


def _with_ignore(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a COCO file in which what VOC calls difficult has COCO's own mark too."""
    marked = [{**a, "ignore": 1} if a.get("difficult") in (1, True) else a for a in content["annotations"]]
    return content | {"annotations": marked}


def _write_yolo(splits: Mapping[str, CocoDataset], job: _Job) -> None:
    rows = {
        split: [
            yolo_rows(record, objects, job.losses, boxes_only=job.boxes_only)
            for record, objects in zip(dataset.images, dataset.annotations, strict=True)
        ]
        for split, dataset in splits.items()
    }
    polygons = any(row.is_polygon for many in rows.values() for own in many for row in own)
    if polygons:
        what = "plain boxes (written as their four corners: YOLO does not mix boxes and polygons)"
        job.losses[what] += sum(
            a.is_object and a.segmentation is None for a in _annotations_of(splits.values())
        )
    for split, dataset in splits.items():
        names = _names_in_split(split, dataset)
        for record, within, own in zip(dataset.images, names, rows[split], strict=True):
            name = _unique(PurePosixPath(split) / within, record, job)
            _place_image(record, job.folder / "images" / name, job)
            job.losses["images that Ultralytics does not open (GIF)"] += name.suffix.lower() == ".gif"
            file = label_path(job.folder / "images" / name, job.folder)
            atomic_write(file, label_text(own, polygons=polygons))
    first = next(iter(splits.values()))
    atomic_write(job.folder / "data.yaml", settings_text(tuple(splits), first.class_names, polygons=polygons))
    _write_categories(first, job)


def _write_voc(splits: Mapping[str, CocoDataset], job: _Job) -> None:
    chosen = _names_for_all(splits)
    for split, dataset in splits.items():
        names: dict[ImageId, PurePosixPath] = {}
        for record, objects in zip(dataset.images, dataset.annotations, strict=True):
            name = names[record.id] = _unique(chosen[record.path], record, job)
            _place_image(record, job.folder / "JPEGImages" / name, job)
            text = voc_text(name, record, objects, dataset.class_names, job.losses)
            atomic_write(job.folder / "Annotations" / name.with_suffix(".xml"), text)
        listed = "".join(f"{name.with_suffix('')}\n" for name in names.values())
        atomic_write(job.folder / "ImageSets" / "Main" / f"{split}.txt", listed)
    _write_categories(next(iter(splits.values())), job)


def _write_categories(dataset: CocoDataset, job: _Job) -> None:
    records = [category.to_coco() for category in dataset.categories]
    write_json(job.folder / CATEGORIES_FILE, records, indent=1)


def _require_same_classes(splits: Mapping[str, CocoDataset], target: Target) -> None:
    if not splits:
        raise UsageError("there is no split to convert")
    first, dataset = next(iter(splits.items()))
    others = [name for name, other in splits.items() if other.class_names != dataset.class_names]
    if others and target != "coco":
        hint = f"Convert one split alone: FOLDER:{others[0]}."
        raise UsageError(f"the classes of {', '.join(others)} are not those of {first}", hint=hint)
    if len(set(dataset.class_names)) < len(dataset.class_names) and target == "voc":
        raise UsageError("two categories have one name, by which VOC tells them apart", hint="Rename one.")


def _one_folder_is_enough(splits: Mapping[str, CocoDataset]) -> bool:
    """Whether no two different images have the same name."""
    paths: dict[str, Path] = {}
    records = (record for dataset in splits.values() for record in dataset.images)
    return all(paths.setdefault(record.file_name, record.path) == record.path for record in records)


def _names_in_split(split: str, dataset: CocoDataset) -> list[PurePosixPath]:
    """Names of a split's images; the folder that is called like the split, if all lie in it, is no part of them."""
    names = [PurePosixPath(record.file_name) for record in dataset.images]
    while names and all(len(name.parts) > 1 for name in names):
        folders = {name.parts[0] for name in names}
        if len(folders) > 1 or alias_of(split, folders) is None:
            break
        names = [PurePosixPath(*name.parts[1:]) for name in names]
    return names


def _names_for_all(splits: Mapping[str, CocoDataset]) -> dict[Path, PurePosixPath]:
    """A name for each image file where all splits share a folder: without their folders unless names would repeat."""
    short: dict[Path, PurePosixPath] = {}
    for split, dataset in splits.items():
        for record, name in zip(dataset.images, _names_in_split(split, dataset), strict=True):
            short[record.path] = min(short.get(record.path, name), name, key=lambda name: len(name.parts))
    if len({name.with_suffix("") for name in short.values()}) == len(short):
        return short
    return {
        record.path: PurePosixPath(record.file_name)
        for dataset in splits.values()
        for record in dataset.images
    }


def _unique(name: PurePosixPath, record: ImageRecord, job: _Job) -> PurePosixPath:
    """The name, changed where another image has the same one up to its suffix (`a.jpg` and `a.png`)."""
    candidate, number = name, 2
    while job.taken.setdefault(str(candidate.with_suffix("")), record.path) != record.path:
        candidate = name.with_stem(f"{name.stem}_{number}")
        number += 1
    job.losses["image names (renamed: another image has the same one)"] += candidate != name
    return candidate


def _place_image(record: ImageRecord, target: Path, job: _Job) -> None:
    """Copy or link an image, whose name may be there already from another split."""
    if target.exists():
        return
    if not record.path.is_file():
        raise UsageError(
            f"{record.path}: the image is missing", hint="Leave such images out with --skip-invalid."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    if not job.link:
        shutil.copyfile(record.path, target)
        return
    try:
        os.link(record.path.resolve(), target)
    except OSError:  # another file system
        target.symlink_to(record.path.resolve())


def _without_masks(dataset: CocoDataset) -> CocoDataset:
    stripped = tuple(tuple(replace(a, segmentation=None) for a in many) for many in dataset.annotations)
    return replace(dataset, annotations=stripped)
