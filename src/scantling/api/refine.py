"""The verbs that refine boxes as functions; `api` has them too.

Importing this module loads nothing heavy.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scantling.settings.paths import (
    GivenResults,
    ResultsFile,
    folder_of,
    require_existing,
    require_folder,
    require_output,
)

if TYPE_CHECKING:
    from scantling.data.coco import CocoDataset, ImageId
    from scantling.refine.ablate import RefineAblation
    from scantling.refine.apply import ApplyConfig
    from scantling.refine.bbrefinement import Refiner
    from scantling.refine.gate import RefineGate
    from scantling.refine.train import RefineConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinerSummary:
    """A trained refiner.

    Attributes:
        checkpoint: Its best weights.
        metrics: Mean IoU of jittered validation boxes after (`iou`) and before (`iou_before`) refining, and the shares
            with IoU >= 0.75 (`good`, `good_before`).
        epochs: Epochs trained.
    """

    checkpoint: Path
    metrics: Mapping[str, float | None]
    epochs: int

    def to_text(self) -> str:
        """For people."""
        iou, before = self.metrics["iou"], self.metrics["iou_before"]
        return (
            f"jittered validation boxes: mean IoU {before:.3f} before, {iou:.3f} after refining "
            f"({self.epochs} epochs)\nrefiner: {self.checkpoint}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"checkpoint": str(self.checkpoint), "metrics": dict(self.metrics), "epochs": self.epochs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refined:
    """Refined results.

    Attributes:
        results: COCO results in their old order.
        counts: How many were `refined`, and why the others were not.
        out: Results file, if one was written.
    """

    results: list[dict[str, Any]]
    counts: Mapping[str, int]
    out: Path | None

    def to_text(self) -> str:
        """For people."""
        others = [f"{count} {name.replace('_', ' ')}" for name, count in self.counts.items() if count]
        where = f" in {self.out}" if self.out else ""
        return f"{len(self.results)} results{where}: {', '.join(others) or 'nothing to refine'}"

    def to_dict(self) -> dict[str, Any]:
        """For programs, where the results themselves are in a file."""
        return {
            "out": str(self.out) if self.out else None,
            "num_results": len(self.results),
            "counts": dict(self.counts),
        }


def refine_train(
    data: str | Path,
    out: str | Path,
    *,
    config: str | Path | None = None,
    overrides: Iterable[str] = (),
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    skip_invalid: bool = False,
) -> RefinerSummary:
    """Train a refiner from the labels of a data set; a training begun in `out` goes on.

    Args:
        data: Folder with the splits train and val, in any known format.
        out: Folder for its checkpoints and history.
        config: Name of shipped settings (`small-cpu`), or a YAML file with the sections model, crops, train and apply;
            None takes the published settings.
        overrides: `KEY.PATH=VALUE` texts that replace settings, such as `model.backbone=efficientnet_b2`.
        seed: Of all randomness.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        overwrite: Start over.
        skip_invalid: Leave faulty records out, counted, instead of stopping.

    Raises:
        ScantlingError: The data, a setting, the device or the folder cannot be used.
    """
    require_folder(Path(data), "data set")
    from rich.console import Console

    from scantling.data.splits import DataConfig, log_run_data, read_run_data
    from scantling.refine.train import RefinerRun, train_refiner

    settings = _settings(config, overrides)
    chosen = DataConfig(root=str(data), skip_invalid=skip_invalid)
    splits = read_run_data(chosen, "val")
    log_run_data(splits)
    run = RefinerRun(
        out=Path(out),
        seed=seed,
        device=device,
        overwrite=overwrite,
        data_hash=splits.learned_hash,
        console=Console(stderr=True, quiet=not log.isEnabledFor(logging.INFO)),
    )
    result = train_refiner(splits.train, splits.val, settings, run)
    return RefinerSummary(checkpoint=result.best, metrics=result.metrics, epochs=result.epochs)


def refine_apply(
    results: GivenResults,
    data: str | Path,
    refiner: str | Path,
    *,
    out: str | Path | None = None,
    gate: str | Path | None = None,
    overrides: Iterable[str] = (),
    device: str = "auto",
    skip_invalid: bool = False,
) -> Refined:
    """Refine the boxes of a results file of any detector.

    Args:
        results: COCO results file.
        data: What was predicted: a COCO file, a split file, or a split of a data set in any format (`FOLDER:SPLIT`).
            Its categories are matched with the refiner's by name.
        refiner: Checkpoint of `refine train`.
        out: COCO results file to write.
        gate: File of `refine tune`, which says where to refine; None refines everywhere.
        overrides: `KEY=VALUE` texts that replace settings of refining, such as `iterations=2`.
        device: As in `refine_train`.
        skip_invalid: Leave faulty records out, counted, instead of stopping.

    Raises:
        ScantlingError: One of the files, an image or a setting cannot be used.
    """
    file = ResultsFile.of(results)
    for path, what in ((file.path, "results file"), (refiner, "refiner"), (gate, "gate file")):
        if path is not None:
            require_existing(Path(path), what)
    require_existing(folder_of(data), "data set")
    if out is not None:
        require_output(Path(out), "results file", [file, data, refiner, gate])
    from scantling.data.coco import read_results, write_results
    from scantling.data.formats.locations import read_given
    from scantling.refine.apply import refine_results

    dataset = read_given(data, skip_invalid=skip_invalid)
    found = read_results(file.path, dataset, skip_invalid=skip_invalid, image_ids=file.image_ids)
    require_images(dataset, {result["image_id"] for result in found})
    model, config, sha256 = load_with_settings(Path(refiner), overrides, device)
    opened = read_gate(Path(gate), Path(refiner), sha256, config) if gate is not None else None
    refined, counts = refine_results(found, dataset, model, config, gate=opened)
    _log_unknown(model, dataset.class_names, counts)
    if out is not None:
        write_results(refined, out, dataset)
    return Refined(results=refined, counts=counts, out=Path(out) if out else None)


def refine_tune(
    results: GivenResults,
    data: str | Path,
    refiner: str | Path,
    *,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    device: str = "auto",
    skip_invalid: bool = False,
) -> RefineGate:
    """Measure on labelled predictions where refining helps, and write a gate that refines only there.

    Args:
        results: COCO results file of the detector, on images that neither it nor the refiner was trained on.
        data: Their labels, as in `refine_apply`.
        refiner: Checkpoint of `refine train`.
        out: Gate file to write.
        overrides: `KEY=VALUE` texts that replace settings, such as `bands=[0.5]` or `apply.iterations=2`.
        device: As in `refine_train`.
        skip_invalid: Leave faulty records out, counted, instead of stopping.

    Raises:
        ScantlingError: One of the files, an image or a setting cannot be used.
    """
    file = ResultsFile.of(results)
    for path, what in ((file.path, "results file"), (refiner, "refiner")):
        require_existing(Path(path), what)
    require_existing(folder_of(data), "data set")
    if out is not None:
        require_output(Path(out), "gate file", [file, data, refiner])
    from scantling.data.coco import read_results
    from scantling.data.formats.locations import read_given
    from scantling.data.io import atomic_write
    from scantling.refine.gate import GateRequest
    from scantling.refine.gate_tuning import tune_gate
    from scantling.settings.draft import Draft

    dataset = read_given(data, skip_invalid=skip_invalid)
    found = read_results(file.path, dataset, skip_invalid=skip_invalid, image_ids=file.image_ids)
    require_images(dataset, {result["image_id"] for result in found})
    model, apply_config, sha256 = load_with_settings(Path(refiner), (), device)
    draft = Draft(GateRequest, {"apply": apply_config.model_dump(mode="json")}, {}, "checkpoint")
    for override in overrides:
        draft = draft.with_override(override)
    request = draft.check()
    gate = tune_gate(found, dataset, model, request, request.apply, refiner_sha=sha256)
    if out is not None:
        atomic_write(Path(out), gate.to_yaml())
    return gate


def refine_ablate(
    data: str | Path,
    out: str | Path,
    *,
    config: str | Path | None = None,
    overrides: Iterable[str] = (),
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> RefineAblation:
    """Train a refiner with and without what it is told and at other sides, and see how much wrong things matter.

    Args:
        data: Folder with the splits train and val, in any known format.
        out: Folder for `ablation.md`, `ablation.json`, plots and a folder for each refiner; what is trained there goes
            on or is kept.
        config: Settings of the refiner as in `refine_train`; they become the section `refine`.
        overrides: `KEY.PATH=VALUE` texts that replace settings, such as `sides=[64,96]` or `refine.train.epochs=3`.
        seed: The first of the configured number of seeds.
        device: As in `refine_train`.
        overwrite: Train everything anew.

    Raises:
        ScantlingError: The data, a setting, the device or the folder cannot be used.
    """
    require_folder(Path(data), "data set")
    from rich.console import Console

    from scantling.data.splits import DataConfig, log_run_data, read_run_data
    from scantling.refine.ablate import RefineAblateConfig, ablate_refiner
    from scantling.refine.train import RefinerRun
    from scantling.report.refine_curves import write_curves
    from scantling.settings.draft import Draft

    refiner = _settings(config, ()).model_dump(mode="json")
    draft = Draft(RefineAblateConfig, {"refine": refiner}, {}, str(config or "defaults"))
    for override in overrides:
        draft = draft.with_override(override)
    compared = draft.check()
    splits = read_run_data(DataConfig(root=str(data)), "val")
    log_run_data(splits)
    run = RefinerRun(
        out=Path(out),
        seed=seed,
        device=device,
        overwrite=overwrite,
        data_hash=splits.learned_hash,
        console=Console(stderr=True, quiet=not log.isEnabledFor(logging.INFO)),
    )
    found = ablate_refiner(splits.train, splits.val, compared, run)
    write_curves(found)
    return found


def require_images(dataset: CocoDataset, image_ids: Iterable[ImageId]) -> None:
    """Look at the headers of some images before anything is computed.

    Raises:
        DataError: Some cannot be used; names all of them.
    """
    from scantling.data.health.images import usable_images

    usable_images(dataset.subset(image_ids))


def read_gate(path: Path, refiner: Path, sha256: str, config: ApplyConfig) -> RefineGate:
    """A gate, provided that it was measured with this refiner and these settings.

    Args:
        path: File of `refine_tune`.
        refiner: Checkpoint that is going to refine, for the message.
        sha256: Of its weights.
        config: How.

    Raises:
        ConfigError: It is no such file, or belongs to another refiner or other settings.
    """
    from scantling.errors import ConfigError
    from scantling.recipe.shipped import read_recipe
    from scantling.refine.gate import RefineGate
    from scantling.settings.draft import Draft

    gate = Draft.parse(RefineGate, read_recipe(path), file=str(path)).check()
    hint = "Measure one with `scantling refine tune`."
    if gate.refiner != sha256:
        raise ConfigError(f"{path}: measured with another refiner than {refiner}", hint=hint)
    for name in ("iterations", "flip", "min_score"):
        measured, wanted = getattr(gate.apply, name), getattr(config, name)
        if measured != wanted:
            raise ConfigError(f"{path}: measured with {name} {measured}, not {wanted}", hint=hint)
    return gate


def _settings(config: str | Path | None, overrides: Iterable[str]) -> RefineConfig:
    """The settings of a file, some of them replaced."""
    from scantling.recipe.shipped import find_refiner, read_recipe
    from scantling.refine.train import RefineConfig
    from scantling.settings.draft import Draft

    if config is None:
        return Draft.of(RefineConfig, overrides).check()
    path = find_refiner(config)
    draft = Draft.parse(RefineConfig, read_recipe(path), file=str(path))
    for override in overrides:
        draft = draft.with_override(override)
    return draft.check()


def load_with_settings(path: Path, overrides: Iterable[str], device: str) -> tuple[Refiner, ApplyConfig, str]:
    """A refiner, the settings of refining in its checkpoint, some of them replaced, and the SHA-256 of its weights.

    Raises:
        CheckpointError: The checkpoint is missing, damaged, or none of a refiner.
        ConfigError: A setting does not exist, or not with this value.
    """
    from scantling.refine.apply import ApplyConfig, refiner_of
    from scantling.settings.draft import Draft
    from scantling.train.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    refiner = refiner_of(checkpoint, path, device)
    draft = Draft(ApplyConfig, checkpoint.meta.predict, {}, "checkpoint")
    for override in overrides:
        draft = draft.with_override(override)
    return refiner, draft.check(), checkpoint.meta.sha256


def _log_unknown(refiner: Refiner, class_names: Iterable[str], counts: Mapping[str, int]) -> None:
    if counts["unknown_category"]:
        names = [name for name in class_names if name not in refiner.class_names]
        log.warning(
            "%d results stay as they are: the refiner was trained without the categories %s",
            counts["unknown_category"],
            ", ".join(names[:10]),
        )
