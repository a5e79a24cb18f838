"""The verbs that make better predictions out of predictions as functions; `api` has them too.

Importing this module loads nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scantling.api.drafts import draft_of
from scantling.errors import ConfigError, UsageError
from scantling.settings.paths import (
    GivenResults,
    ResultsFile,
    folder_of,
    require_existing,
    require_output,
)

if TYPE_CHECKING:
    from scantling.combine.eliminate_files import EliminateSummary
    from scantling.combine.ensemble import EnsembleConfig
    from scantling.combine.members import EnsembleSummary, NamedFile
    from scantling.combine.suppress_files import SuppressSummary
    from scantling.combine.tune_files import TuneSummary
    from scantling.settings.yaml import KeyPath


def ensemble(
    files: Iterable[GivenResults],
    data: str | Path,
    out: str | Path,
    *,
    masks: bool = False,
    weights: str | None = None,
    tuned: str | Path | None = None,
    overrides: Iterable[str] = (),
    skip_invalid: bool = False,
) -> EnsembleSummary:
    """Fuse the boxes, or the masks, of several detectors.

    Args:
        files: COCO results files of any tools, of the same images; `NAME=FILE` or a `ResultsFile` says what a member is
            called.
        data: The data set that was predicted: a COCO file, a split file, or a split of a folder (`FOLDER:SPLIT`).
        out: COCO results file to write.
        masks: Match predictions by their masks: `nms` (where no method is set), `soft_linear` and `soft_gaussian` then
            go by the overlap of masks; `mask_vote` makes one mask of those that match.
        weights: `NAME=2,OTHER=0.5`, or `2,1` in the order of the files. A file that was given no name has its own
            without ending or, where these are alike, that of the folder that differs. What is not named keeps its
            weight.
        tuned: YAML file whose section `ensemble` has the settings.
        overrides: `KEY=VALUE` texts that replace settings, such as `iou_threshold=0.6`.
        skip_invalid: Leave faulty records out, counted, instead of stopping.

    Raises:
        ScantlingError: Files, data or settings cannot be used; then nothing was written.
    """
    members = [ResultsFile.member(file) for file in files]
    if not members:
        raise UsageError("an ensemble needs at least one results file")
    for member in members:
        require_existing(member.path, "results file")
    if tuned is not None:
        require_existing(Path(tuned), "file of tuned settings")
    require_existing(folder_of(data), "data set")
    require_output(Path(out), "results file", [*members, data, tuned])
    from scantling.combine.members import ensemble_files, named_files
    from scantling.data.formats.locations import read_given

    named = named_files(members)
    config = _ensemble_config(named, weights, Path(tuned) if tuned else None, overrides)
    config = config.matching_masks() if masks else config
    return ensemble_files(
        named,
        read_given(data, skip_invalid=skip_invalid),
        config,
        Path(out),
        skip_invalid=skip_invalid,
    )


def tune(
    predictions: Iterable[GivenResults],
    data: str | Path,
    out: str | Path,
    *,
    what: Literal["auto", "suppress", "weights"] = "auto",
    iou_type: Literal["bbox", "segm"] = "bbox",
    max_dets: int = 100,
    overrides: Iterable[str] = (),
    skip_invalid: bool = False,
    count_difficult: bool = False,
) -> TuneSummary:
    """Find settings of suppression, or weights of an ensemble, by category where that is surely better.

    Args:
        predictions: One COCO results file of candidates before suppression, or those of an ensemble's members, as
            for `ensemble`; of images that the detectors were not trained on.
        data: Their truth: a COCO file, a split file, or a split of a folder (`FOLDER:SPLIT`).
        out: YAML file to write, which `suppress`, `predict` and `ensemble` take.
        what: `suppress`, `weights`, or `auto`: by the number of files.
        iou_type: Whether AP of boxes or of masks decides; where `ensemble.method` is one of masks, masks do.
        max_dets: Predictions counted per image and category, as in `evaluate`.
        overrides: `KEY=VALUE` texts: how to search, such as `search.folds=10`, and the settings in use, such as
            `suppress.min_score=1e-5` or `ensemble.method=nms`.
        skip_invalid: Leave faulty records out, counted, instead of stopping.
        count_difficult: Objects marked `difficult` (VOC) or `ignore` (COCO) are ordinary ones.

    Raises:
        ScantlingError: Files, data or settings cannot be used; then nothing was written.
    """
    members = [ResultsFile.member(file) for file in predictions]
    for member in members:
        require_existing(member.path, "results file")
    require_existing(folder_of(data), "data set")
    require_output(Path(out), "file of tuned settings", [*members, data])
    from scantling.combine.members import named_files
    from scantling.combine.tune_files import TuneRequest, tune_files
    from scantling.data.formats.locations import read_given
    from scantling.settings.draft import Draft

    given = [f"max_dets={max_dets}"] if max_dets != 100 else []
    given += [f"iou_type={iou_type}"] if iou_type != "bbox" else []
    request = Draft.of(TuneRequest, [*overrides, *given]).check()
    chosen: Literal["suppress", "weights"] = "suppress" if len(members) == 1 else "weights"
    chosen = chosen if what == "auto" else what
    return tune_files(
        named_files(members),
        read_given(data, skip_invalid=skip_invalid, count_difficult=count_difficult),
        request,
        Path(out),
        chosen,
        skip_invalid=skip_invalid,
    )


def suppress(
    results: GivenResults,
    data: str | Path,
    out: str | Path,
    *,
    tuned: str | Path | None = None,
    overrides: Iterable[str] = (),
    skip_invalid: bool = False,
) -> SuppressSummary:
    """Suppress the predictions of a results file: of boxes that overlap within a category, the better one counts.

    Args:
        results: COCO results file of any detector, best of all candidates; masks and further keys stay.
        data: The data set that was predicted: a COCO file, a split file, or a split of a folder (`FOLDER:SPLIT`).
        out: COCO results file to write.
        tuned: YAML file with settings in a section `suppress`, as `tune` writes it.
        overrides: `KEY=VALUE` texts that replace settings, such as `method=soft_linear`. Unless one is given, no score
            threshold applies.
        skip_invalid: Leave faulty records out, counted, instead of stopping.

    Raises:
        ScantlingError: Files, data or settings cannot be used; then nothing was written.
    """
    texts = tuple(overrides)
    if tuned is None and not texts:
        raise UsageError("give --tuned FILE, --set KEY=VALUE, or both", hint="For example --set method=hard.")
    file = ResultsFile.of(results)
    require_existing(file.path, "results file")
    if tuned is not None:
        require_existing(Path(tuned), "file of tuned settings")
    require_existing(folder_of(data), "data set")
    require_output(Path(out), "results file", [file, data, tuned])
    from scantling.combine.suppress_files import for_results, suppress_file
    from scantling.data.formats.locations import read_given
    from scantling.models.suppression import SuppressConfig

    config = draft_of(SuppressConfig, "suppress", Path(tuned) if tuned else None, texts).check()
    if "max_candidates" in config.model_fields_set:
        raise ConfigError("max_candidates: a setting of detectors, which means nothing to a results file")
    return suppress_file(
        file,
        read_given(data, skip_invalid=skip_invalid),
        for_results(config),
        Path(out),
        skip_invalid=skip_invalid,
    )


def tuned_overrides(file: str | Path) -> list[str]:
    """Tuned settings of suppression as overrides for `predict`.

    Args:
        file: YAML file with a section `suppress`, as `tune` writes it.

    Raises:
        ScantlingError: There is no such file, or it holds something else.
    """
    require_existing(Path(file), "file of tuned settings")
    from scantling.combine.tuned import read_tuned

    return read_tuned(file).suppression_overrides(str(file))


def eliminate(
    results: GivenResults,
    train: str | Path,
    data: str | Path,
    out: str | Path | None = None,
    *,
    only_list: bool = False,
    overrides: Iterable[str] = (),
    skip_invalid: bool = False,
) -> EliminateSummary:
    """Remove the weaker of two predictions that lie to each other as objects never do, and surplus ones.

    Args:
        results: COCO results file of any detector.
        train: Training annotations, from which is learned what occurs; as `data`.
        data: The data set that was predicted: a COCO file, a split file, or a split of a folder (`FOLDER:SPLIT`).
        out: COCO results file to write.
        only_list: Say what contradicts and write nothing.
        overrides: `KEY=VALUE` texts that replace settings, such as `min_ratio=3`.
        skip_invalid: Leave faulty records out, counted, instead of stopping.

    Raises:
        ScantlingError: Files, data or settings cannot be used; then nothing was written.
    """
    if (out is None) != only_list:
        raise UsageError("give either --out FILE or --list")
    file = ResultsFile.of(results)
    require_existing(file.path, "results file")
    require_existing(folder_of(train), "data set")
    require_existing(folder_of(data), "data set")
    if out is not None:
        require_output(Path(out), "results file", [file, train, data])
    from scantling.combine.eliminate import EliminateConfig
    from scantling.combine.eliminate_files import eliminate_file
    from scantling.data.formats.locations import read_given
    from scantling.settings.draft import Draft

    config = Draft.of(EliminateConfig, overrides).check()
    learned, judged = (read_given(given, skip_invalid=skip_invalid) for given in (train, data))
    written = Path(out) if out is not None else None
    return eliminate_file(file, learned, judged, config, written, skip_invalid=skip_invalid)


def _ensemble_config(
    files: Sequence[NamedFile], weights: str | None, tuned: Path | None, overrides: Iterable[str]
) -> EnsembleConfig:
    """The defaults, replaced by the file, by the overrides, and by the weights."""
    from scantling.combine.ensemble import EnsembleConfig
    from scantling.combine.members import parse_weights

    draft = draft_of(EnsembleConfig, "ensemble", tuned, overrides)
    if weights is not None:
        given = parse_weights(weights, [file.name for file in files])
        merged = {**draft.value, "weights": {**draft.value.get("weights", {}), **given}}
        places: dict[KeyPath, str] = {("weights", name): "--weights" for name in given}
        draft = replace(draft, value=merged, places={**draft.places, **places})
    return draft.check()
