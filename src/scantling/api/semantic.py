"""The fusion of masks with a segmenter's maps as functions; `api` has them too.

Importing this module loads nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from scantling.api.drafts import draft_of
from scantling.settings.paths import (
    GivenMaps,
    GivenResults,
    MapsFolder,
    ResultsFile,
    folder_of,
    require_existing,
    require_output,
)

if TYPE_CHECKING:
    from scantling.combine.semantic_files import SemanticSummary
    from scantling.combine.tune_files import TuneSummary


def fuse_semantic(
    results: GivenResults,
    data: str | Path,
    maps: GivenMaps,
    out: str | Path,
    *,
    tuned: str | Path | None = None,
    overrides: Iterable[str] = (),
    skip_invalid: bool = False,
) -> SemanticSummary:
    """Give the masks of predictions the pixels that a segmenter calls foreground inside their boxes.

    Args:
        results: COCO results file of any detector of masks; boxes, scores and further keys stay.
        data: The data set that was predicted: a COCO file, a split file, or a split of a folder (`FOLDER:SPLIT`).
        maps: A folder of any segmenter's maps, one PNG or NPY per image and called like it, or a file of score maps
            that scantling wrote; a `MapsFolder` says what the numbers in them are.
        out: COCO results file to write.
        tuned: YAML file with settings in a section `semantic`, as `tune_semantic` writes it.
        overrides: `KEY=VALUE` texts that replace settings, such as `mode=replace` or `score_threshold=0.3`.
        skip_invalid: Leave faulty records and maps out, counted, instead of stopping.

    Raises:
        ScantlingError: Files, data or settings cannot be used; then nothing was written.
    """
    file, folder = ResultsFile.of(results), MapsFolder.of(maps)
    require_existing(file.path, "results file")
    require_existing(folder.path, "folder or file of score maps")
    if tuned is not None:
        require_existing(Path(tuned), "file of tuned settings")
    require_existing(folder_of(data), "data set")
    require_output(Path(out), "results file", [file, data, tuned, folder.path])
    from scantling.combine.semantic import SemanticConfig
    from scantling.combine.semantic_files import fuse_semantic_file
    from scantling.data.formats.locations import read_given
    from scantling.data.map_files import read_score_maps

    config = draft_of(SemanticConfig, "semantic", Path(tuned) if tuned else None, overrides).check()
    dataset = read_given(data, skip_invalid=skip_invalid)
    found = read_score_maps(folder.path, dataset, values=folder.values, skip_invalid=skip_invalid)
    return fuse_semantic_file(file, dataset, found, config, Path(out), skip_invalid=skip_invalid)


def tune_semantic(
    results: GivenResults,
    data: str | Path,
    maps: GivenMaps,
    out: str | Path,
    *,
    max_dets: int = 100,
    overrides: Iterable[str] = (),
    skip_invalid: bool = False,
    count_difficult: bool = False,
) -> TuneSummary:
    """Find how masks are fused with score maps, by category where that is surely better.

    Args:
        results: As for `fuse_semantic`, of images that neither detector nor segmenter was trained on.
        data: Their truth: a COCO file, a split file, or a split of a folder (`FOLDER:SPLIT`).
        maps: As for `fuse_semantic`.
        out: YAML file to write, which `fuse_semantic` takes.
        max_dets: Predictions counted per image and category, as in `evaluate`.
        overrides: `KEY=VALUE` texts: how to search, such as `search.folds=10`, and the settings in use, such as
            `semantic.mode=replace`.
        skip_invalid: Leave faulty records and maps out, counted, instead of stopping.
        count_difficult: Objects marked `difficult` (VOC) or `ignore` (COCO) are ordinary ones.

    Raises:
        ScantlingError: Files, data or settings cannot be used; then nothing was written.
    """
    file, folder = ResultsFile.of(results), MapsFolder.of(maps)
    require_existing(file.path, "results file")
    require_existing(folder.path, "folder or file of score maps")
    require_existing(folder_of(data), "data set")
    require_output(Path(out), "file of tuned settings", [file, data, folder.path])
    from scantling.combine.semantic_files import SemanticTuneRequest, tune_semantic_file
    from scantling.data.formats.locations import read_given
    from scantling.data.map_files import read_score_maps
    from scantling.settings.draft import Draft

    given = [f"max_dets={max_dets}"] if max_dets != 100 else []
    request = Draft.of(SemanticTuneRequest, [*overrides, *given]).check()
    dataset = read_given(data, skip_invalid=skip_invalid, count_difficult=count_difficult)
    found = read_score_maps(folder.path, dataset, values=folder.values, skip_invalid=skip_invalid)
    return tune_semantic_file(file, dataset, found, request, Path(out), skip_invalid=skip_invalid)
