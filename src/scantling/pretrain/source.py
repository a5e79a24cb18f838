"""From what a person names to the crops to learn from: labelled splits in any format, or a folder of images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from scantling.data.coco import CocoDataset, ImageRecord, ReadOptions
from scantling.data.findings import tell_warnings
from scantling.data.formats.layouts import Layout, announce, detect_format
from scantling.data.formats.locations import Location, parse_location, read_location, split_name
from scantling.data.health.images import Look, images_of_folder, look_before_training, usable_images
from scantling.data.images.white import dataset_with_white, range_message, white_of, with_white
from scantling.errors import DataError
from scantling.pretrain.config import PretrainConfig
from scantling.pretrain.crops import CropPlan, image_crops, object_crops

log = logging.getLogger(__name__)

_FOLDER = "folder"
_REST = "`scantling check` tells all"


def read_crops(data: Path | str, config: PretrainConfig, *, seed: int = 0) -> CropPlan:
    """What is to be cut out of the data a person named; only headers of images are read.

    Args:
        data: A data set in any format, one split of it (`FOLDER:SPLIT`), an annotations or split file, or a folder
            of images.
        config: Which splits, what to cut out of them, and how strictly they are read.
        seed: Of random parts.

    Raises:
        DataError: With every finding, if the data cannot be used.
    """
    options = ReadOptions(
        skip_invalid=config.skip_invalid,
        strict=config.strict,
        require_labels=config.source in ("auto", "objects"),
    )
    location = parse_location(data)
    layout = _layout(location, config)
    if location.path.is_dir() and layout is None:
        found = images_of_folder(location.path, look=Look(decode=True, leftovers=False))
        tell_warnings(found.findings, log, rest=_REST)
        records = with_white(found.records, white_of(found.records))
        return _without_objects({_FOLDER: records}, config, seed)
    splits = {}
    for name, dataset in _read_splits(location, layout, config, options).items():
        look = look_before_training(dataset, decode=None, skip_invalid=config.skip_invalid)
        splits[name] = usable_images(
            dataset, decode=look, skip_invalid=config.skip_invalid, strict=config.strict
        )
    white = white_of(record for dataset in splits.values() for record in dataset.images)
    splits = {name: dataset_with_white(dataset, white) for name, dataset in splits.items()}
    if white is not None:
        log.info("%s", range_message(white))
    tell_warnings((f for dataset in splits.values() for f in dataset.findings), log, rest=_REST)
    return plan_crops(splits, config, seed=seed)


def plan_crops(splits: Mapping[str, CocoDataset], config: PretrainConfig, *, seed: int = 0) -> CropPlan:
    """What is to be cut out of data sets that are read already.

    Args:
        splits: By name.
        config: Says whether objects, images or random parts are cut out.
        seed: Of random parts.
    """
    if config.source in ("auto", "objects"):
        return object_crops(splits, config.crops)
    return _without_objects({name: dataset.images for name, dataset in splits.items()}, config, seed)


def _without_objects(
    records: Mapping[str, Sequence[ImageRecord]], config: PretrainConfig, seed: int
) -> CropPlan:
    parts = config.random_per_image if config.source == "random" else 0
    return image_crops(records, random_per_image=parts, seed=seed)


def _layout(location: Location, config: PretrainConfig) -> Layout | None:
    """The format of a folder; None for a file, and for a folder of images unless objects are asked for."""
    if not location.path.is_dir():
        return None
    try:
        layout = detect_format(location.path, states=config.states)
    except DataError as error:
        unknown = any(finding.code == "format-unknown" for finding in error.findings)
        if unknown and config.source != "objects" and location.split is None:
            log.info("%s: no labels, all of its images are used", location.path)
            return None
        raise
    announce(layout)
    return layout


def _read_splits(
    location: Location, layout: Layout | None, config: PretrainConfig, options: ReadOptions
) -> dict[str, CocoDataset]:
    if layout is None:
        return {split_name(location): read_location(location, options, states=config.states)}
    if location.split is not None:
        names: Sequence[str] = (layout.split_named(location.split),)
    elif len(layout.splits) == 1:
        names = layout.splits
    else:
        names = tuple(dict.fromkeys(layout.split_named(name) for name in config.splits))
    return {name: layout.read(name, options) for name in names}
