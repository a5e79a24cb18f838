"""The verbs about faulty labels as functions; `api` has them too.

Importing this module loads nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scantling.errors import UsageError
from scantling.settings.paths import (
    GivenResults,
    ResultsFile,
    folder_of,
    require_existing,
    require_unread,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scantling.audit.repair import Repair
    from scantling.data.coco import CocoDataset
    from scantling.report.audit_report import AuditReport


def audit(
    data: str | Path,
    out: str | Path,
    *,
    refiner: str | Path | None = None,
    predictions: GivenResults | None = None,
    overrides: Iterable[str] = (),
    device: str = "auto",
    overwrite: bool = False,
    skip_invalid: bool = False,
) -> AuditReport:
    """Rank the labels of a data set by how likely they are wrong, each with a reason.

    Args:
        data: The labels: a COCO file, a split file, or a split of a data set in any format (`FOLDER:SPLIT`).
        out: Folder for `suspects.json`, `audit.html` to decide in, and `suspects.jpg` with the first 30.
        refiner: Checkpoint of a refiner, for badly placed boxes; it refines as the checkpoint says, but as often as
            the setting `iterations`.
        predictions: COCO results on the same images, of models that were not trained on them (out of fold).
        overrides: `KEY=VALUE` texts that replace settings, such as `min_score=0.5`.
        device: What the refiner runs on: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        overwrite: Write into a folder that is not empty.
        skip_invalid: Leave faulty records out, counted, instead of stopping.

    Raises:
        ScantlingError: The data, the refiner or the predictions cannot be used; then nothing was written.
    """
    require_existing(folder_of(data), "data set")
    file = ResultsFile.of(predictions) if predictions is not None else None
    if refiner is not None:
        require_existing(Path(refiner), "refiner")
    if file is not None:
        require_existing(file.path, "results file")
    folder = Path(out)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not overwrite):
        raise UsageError(f"{folder}: not an empty folder", hint="Choose another one, or give --overwrite.")
    from scantling.audit.suspects import AuditConfig, find_suspects
    from scantling.data.coco import read_results
    from scantling.data.detections import detections_of
    from scantling.data.formats.locations import read_given
    from scantling.data.images.white import dataset_with_white, white_of
    from scantling.report.audit_report import write_audit
    from scantling.settings.draft import Draft

    config = Draft.of(AuditConfig, overrides).check()
    dataset = read_given(data, skip_invalid=skip_invalid)
    found = None
    if file is not None:
        results = read_results(file.path, dataset, skip_invalid=skip_invalid, image_ids=file.image_ids)
        found = detections_of(results, dataset)
    refined = _refined(Path(refiner), dataset, device, config.iterations) if refiner is not None else None
    suspects = find_suspects(dataset, refined, found, config)
    return write_audit(folder, suspects, dataset_with_white(dataset, white_of(dataset.images)), found)


def repair(
    data: str | Path,
    out: str | Path,
    *,
    decisions: str | Path | None = None,
    suspects: str | Path | None = None,
    accept: Iterable[str] = (),
    masks: Literal["keep", "drop"] = "keep",
    overwrite: bool = False,
) -> Repair:
    """Write a copy of the labels in which the accepted suspects are repaired; the original is never changed.

    Faulty records, which an audit with `--skip-invalid` left out, are told and copied as they are.

    Args:
        data: The labels that were audited, named as for `audit`.
        out: COCO file to write.
        decisions: What the audit's page offered for download.
        suspects: The audit's `suspects.json`, instead of decisions; with `accept`.
        accept: Rules such as `loose>0.8`: suspects that one of them accepts are repaired.
        masks: Whether a box with a mask stays (`keep`) or moves and loses its mask (`drop`).
        overwrite: Replace a file that is there, unless it is one of the data set's own.

    Raises:
        ScantlingError: The data or the decisions cannot be used, or are about other labels; then nothing was written.
    """
    texts = tuple(accept)
    if (decisions is None) == (suspects is None) or bool(texts) != (suspects is not None):
        raise UsageError("give either --decisions FILE, or --suspects FILE with --accept RULE")
    require_existing(folder_of(data), "data set")
    require_existing(Path(decisions or suspects or ""), "file of decisions")
    _require_new_labels(Path(out), (data, decisions, suspects), overwrite=overwrite)
    from scantling.audit.decisions import decide_by_rules, parse_rule, read_decisions
    from scantling.audit.repair import repair_labels
    from scantling.data.coco import ReadOptions
    from scantling.data.formats.locations import read_location

    rules = [parse_rule(text) for text in texts]
    dataset = read_location(data, ReadOptions(skip_invalid=True))
    chosen = (
        decide_by_rules(suspects, dataset, rules) if suspects else read_decisions(decisions or "", dataset)
    )
    return repair_labels(dataset, chosen, Path(out), masks=masks)


def _require_new_labels(
    out: Path, inputs: tuple[str | Path, str | Path | None, str | Path | None], *, overwrite: bool
) -> None:
    """Refuse a file that is there, and always one of the data set's folder; `inputs` begins with the data set."""
    require_unread(out, inputs)
    folder = folder_of(inputs[0]).resolve()
    if not out.exists():
        return
    if folder.is_dir() and out.resolve().is_relative_to(folder):
        raise UsageError(f"{out}: a file of the data set, which is never changed", hint="Choose another one.")
    if not overwrite:
        raise UsageError(f"{out}: there is a file already", hint="Choose another one, or give --overwrite.")


def _refined(path: Path, dataset: CocoDataset, device: str, iterations: int) -> NDArray[np.float64]:
    """The labelled boxes after so many refinements, which are otherwise done as the checkpoint says."""
    from scantling.api.refine import load_with_settings, require_images
    from scantling.refine.apply import refine_truth

    labelled = zip(dataset.images, dataset.annotations, strict=True)
    require_images(dataset, [image.id for image, annotations in labelled if annotations])
    refiner, config, _ = load_with_settings(path, [f"iterations={iterations}"], device)
    return refine_truth(dataset, refiner, config)
