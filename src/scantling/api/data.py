"""The verbs about labelled data as functions; `api` has them too.

Importing this module loads nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scantling.settings.paths import (
    GivenResults,
    ResultsFile,
    folder_of,
    require_existing,
    require_output,
)

if TYPE_CHECKING:
    from scantling.data.coco.image_lists import Submission
    from scantling.data.convert import Converted
    from scantling.data.health.check import DataHealth
    from scantling.data.splitting import SplitResult


def convert(
    source: str | Path,
    to: Literal["coco", "yolo", "voc"],
    out: str | Path,
    *,
    link: bool = False,
    boxes_only: bool = False,
    states: Iterable[str] = (),
    skip_invalid: bool = False,
    count_difficult: bool = False,
) -> Converted:
    """Write a data set in another tool's files; what these cannot hold is counted.

    Args:
        source: Folder of the data set in any known format, or one split of it (`FOLDER:SPLIT`).
        to: Format to write.
        out: Folder; must not exist or be empty.
        link: Link the images instead of copying them.
        boxes_only: Leave masks out.
        states: DelftBikes parts in these states are kept; none means all but absent ones.
        skip_invalid: Leave out unusable records and images, counted, instead of stopping.
        count_difficult: Objects marked `difficult` (VOC) or `ignore` (COCO) are ordinary ones.

    Raises:
        ScantlingError: The data or the folder cannot be used; then nothing was written.
    """
    require_existing(folder_of(source), "data set")
    from scantling.data.coco import ReadOptions
    from scantling.data.convert import convert_data

    options = ReadOptions(skip_invalid=skip_invalid, count_difficult=count_difficult)
    return convert_data(
        source,
        to,
        Path(out),
        link=link,
        boxes_only=boxes_only,
        states=tuple(states),
        options=options,
    )


def submission(
    results: GivenResults,
    data: str | Path,
    to: Literal["deepsport"],
    out: str | Path,
    *,
    skip_invalid: bool = False,
) -> Submission:
    """Write predictions in the layout in which a challenge takes them.

    Args:
        results: COCO results file with masks; a `ResultsFile` says what the numbers in it are.
        data: What was predicted, whole: a COCO file, or a split of a data set (`FOLDER:SPLIT`).
        to: `deepsport`: labels, scores, boxes and masks image by image, in the order of the annotations file.
        out: JSON file to write.
        skip_invalid: Leave faulty predictions out, counted, instead of stopping.

    Raises:
        ScantlingError: A file cannot be used, or a prediction has no mask; then nothing was written.
    """
    file = ResultsFile.of(results)
    require_existing(file.path, "results file")
    require_existing(folder_of(data), "data set")
    require_output(Path(out), "submission", [file, data])
    from scantling.data.coco import read_results
    from scantling.data.coco.image_lists import write_image_lists
    from scantling.data.formats.locations import read_given

    dataset = read_given(data)
    found = read_results(file.path, dataset, image_ids=file.image_ids, skip_invalid=skip_invalid)
    return write_image_lists(found, dataset, to, Path(out))


def check(
    data: str | Path, *, pixels: bool = True, html: str | Path | None = None, strict: bool = False
) -> DataHealth:
    """Health of a data set: labels, images, classes, sizes, and leaks between its splits.

    Args:
        data: Folder of the data set in any known format, or one split of it (`FOLDER:SPLIT`).
        pixels: Decode every image, and look for the same scene in two places.
        html: Page to write, with pictures of the worst.
        strict: Warnings count as errors.

    Raises:
        DataError: There is no data set.
    """
    require_existing(folder_of(data), "data set")
    from scantling.data.health.check import check_data

    health = check_data(str(data), pixels=pixels, strict=strict)
    if html is not None:
        from scantling.report.health import write_health_page

        write_health_page(Path(html), health)
    return health


def split(
    data: str | Path,
    out: str | Path,
    *,
    ratios: Mapping[str, float] | None = None,
    folds: int | None = None,
    group: str | None = None,
    stratify: bool = True,
    seed: int = 0,
) -> SplitResult:
    """Divide a data set into lists of image ids, which every verb takes in place of an annotations file.

    Args:
        data: A COCO file, a folder of one split, or a split of a folder (`FOLDER:SPLIT`).
        out: Folder for the lists.
        ratios: Share of each split by name; None is 80 % train, 20 % val.
        folds: Number of folds, instead of ratios.
        group: Regular expression: images whose names match equally stay together.
        stratify: Give every class its share in every split.
        seed: Same seed, same lists.

    Raises:
        ScantlingError: The data or the plan cannot be used; then nothing was written.
    """
    require_existing(folder_of(data), "data set")
    from scantling.data.formats.locations import parse_location, read_location
    from scantling.data.splitting import SplitPlan, split_data

    plan = SplitPlan(ratios=ratios, folds=folds, group=group, stratify=stratify, seed=seed)
    return split_data(read_location(str(data)), parse_location(str(data)), Path(out), plan)


def synth(
    out: str | Path,
    *,
    splits: Mapping[str, int],
    layout: Literal["coco", "delftbikes"] = "coco",
    overrides: Iterable[str] = (),
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Generate labelled inspection scenes.

    Args:
        out: Folder to write to.
        splits: Number of pictures by split.
        layout: `coco` or `delftbikes`.
        overrides: `KEY=VALUE` texts for the properties of the scenes, such as `noise.missing=0.1`.
        seed: Same seed, same files.
        overwrite: Write into a folder that is not empty.

    Returns:
        The annotation file of every split.
    """
    from scantling.settings.draft import Draft
    from scantling.synth.synth import SynthConfig, write_synth

    config = Draft.of(SynthConfig, overrides).check()
    return write_synth(Path(out), config, splits=splits, seed=seed, layout=layout, overwrite=overwrite)
