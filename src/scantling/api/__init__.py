"""Every verb of the command line as a function: the same name, the same arguments.

    from scantling import api

    summary = api.train("parts/", "bccd-cpu", out="runs/parts")
    found = api.predict("new-photos/", run="runs/parts")

Progress goes to the log of the package (`logging.getLogger("scantling")`); set it to INFO to see it. What a user
can get wrong raises `scantling.errors.ScantlingError` with a message to show. Importing this module loads
nothing heavy.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scantling.api.audit import audit as audit  # noqa: PLC0414 - part of this module too
from scantling.api.audit import repair as repair  # noqa: PLC0414 - part of this module too
from scantling.api.combine import eliminate as eliminate  # noqa: PLC0414 - part of this module too
from scantling.api.combine import ensemble as ensemble  # noqa: PLC0414 - part of this module too
from scantling.api.combine import suppress as suppress  # noqa: PLC0414 - part of this module too
from scantling.api.combine import tune as tune  # noqa: PLC0414 - part of this module too
from scantling.api.combine import tuned_overrides as tuned_overrides  # noqa: PLC0414 - part of this module too
from scantling.api.data import check as check  # noqa: PLC0414 - part of this module too
from scantling.api.data import convert as convert  # noqa: PLC0414 - part of this module too
from scantling.api.data import split as split  # noqa: PLC0414 - part of this module too
from scantling.api.data import submission as submission  # noqa: PLC0414 - part of this module too
from scantling.api.data import synth as synth  # noqa: PLC0414 - part of this module too
from scantling.api.launch import launch_slurm as launch_slurm  # noqa: PLC0414 - part of this module too
from scantling.api.pretrain import pretrain as pretrain  # noqa: PLC0414 - part of this module too
from scantling.api.refine import refine_ablate as refine_ablate  # noqa: PLC0414 - part of this module too
from scantling.api.refine import refine_apply as refine_apply  # noqa: PLC0414 - part of this module too
from scantling.api.refine import refine_train as refine_train  # noqa: PLC0414 - part of this module too
from scantling.api.refine import refine_tune as refine_tune  # noqa: PLC0414 - part of this module too
from scantling.api.run import ablate as ablate  # noqa: PLC0414 - part of this module too
from scantling.api.run import demo as demo  # noqa: PLC0414 - part of this module too
from scantling.api.run import plan as plan  # noqa: PLC0414 - part of this module too
from scantling.api.run import report as report  # noqa: PLC0414 - part of this module too
from scantling.api.run import require_run
from scantling.api.run import run as run  # noqa: PLC0414 - part of this module too
from scantling.api.run import status as status  # noqa: PLC0414 - part of this module too
from scantling.api.run import train as train  # noqa: PLC0414 - part of this module too
from scantling.api.semantic import fuse_semantic as fuse_semantic  # noqa: PLC0414 - part of this module too
from scantling.api.semantic import tune_semantic as tune_semantic  # noqa: PLC0414 - part of this module too
from scantling.api.shards import merge as merge  # noqa: PLC0414 - part of this module too
from scantling.api.shards import predict_shards as predict_shards  # noqa: PLC0414 - part of this module too
from scantling.api.suite import plan_suite as plan_suite  # noqa: PLC0414 - part of this module too
from scantling.api.suite import suite as suite  # noqa: PLC0414 - part of this module too
from scantling.errors import UsageError
from scantling.run.engines.choice import Engine as Engine  # noqa: PLC0414 - part of this module too
from scantling.run.engines.slurm import Allocation as Allocation  # noqa: PLC0414 - part of this module too
from scantling.settings.paths import (
    GivenResults,
    ResultsFile,
    folder_of,
    is_url,
    require_existing,
    require_folder,
    require_output,
    require_source,
)
from scantling.settings.shards import Shards as Shards  # noqa: PLC0414 - part of this module too

if TYPE_CHECKING:
    from scantling.evaluate.backends import Backend
    from scantling.evaluate.coco_eval import Evaluation
    from scantling.evaluate.compare import Comparison
    from scantling.evaluate.inputs import IouType
    from scantling.predict.import_weights import ImportSummary
    from scantling.predict.loaded import ImagePredictor
    from scantling.run.diagnosis import Diagnosis
    from scantling.run.map_predictions import MapPredictions
    from scantling.run.predictions import Predictions

log = logging.getLogger(__name__)


def predict(
    source: str | Path,
    *,
    run: str | Path | None = None,
    checkpoint: str | Path | None = None,
    out: str | Path | None = None,
    overlays: str | Path | None = None,
    maps: str | Path | None = None,
    overrides: Iterable[str] = (),
    device: str = "auto",
    skip_invalid: bool = False,
) -> Predictions | MapPredictions:
    """Detect objects in images, or score their pixels; very many of them better with `predict_shards`.

    Args:
        source: What to look at: an image; a folder; a COCO file, or a split of a data set (`FOLDER:SPLIT`); a text file
            with a path or URL in each line; a pattern (`photos/**/*.jpg`); or the URL of an image, folder or pattern.
        run: Run folder, whose members predict and are combined as the run does; the best one where it combines none.
        checkpoint: Checkpoint file, instead of `run`.
        out: COCO results file to write.
        overlays: Folder for copies of the images with what was found drawn on them.
        maps: Folder for score maps of a segmenter, or of the run's, which are then made in the place of objects.
        overrides: `KEY=VALUE` texts that replace settings of prediction, such as `scales=[480,640]`, or those of
            `tuned_overrides`.
        device: As in `run`.
        skip_invalid: Leave out faulty records, and what is found of a category that the data set does not have, both
            counted.

    Raises:
        ScantlingError: The source, the checkpoint or a setting cannot be used.
    """
    require_source(source)
    if (run is None) == (checkpoint is None):
        raise UsageError("give either --run DIR or --checkpoint FILE")
    if out is not None:
        read = None if is_url(str(source)) else source
        require_output(Path(out), "results file", [read, run, checkpoint])
    if maps is not None:
        if out is not None or overlays is not None:
            raise UsageError("--maps is for pixels, --out and --overlays are for objects: give one of them")
        from scantling.predict.loaded import load_segmenter
        from scantling.run.map_predictions import load_run_segmenters, predict_maps

        chosen = (
            [load_segmenter(Path(checkpoint), overrides, device=device)]
            if checkpoint is not None
            else load_run_segmenters(require_run(Path(run or "")), overrides, device=device)
        )
        return predict_maps(source, chosen, Path(maps), skip_invalid=skip_invalid)
    from scantling.predict.loaded import load_detector
    from scantling.run.predictions import predict_source
    from scantling.run.predictor import load_run

    detector: ImagePredictor
    if checkpoint is not None:
        detector = load_detector(Path(checkpoint), overrides, device=device)
    else:
        detector = load_run(require_run(Path(run or "")), overrides, device=device)
    return predict_source(
        source,
        detector,
        out=Path(out) if out else None,
        overlays=Path(overlays) if overlays else None,
        skip_invalid=skip_invalid,
    )


def evaluate(
    results: GivenResults,
    data: str | Path,
    *,
    iou_type: IouType = "bbox",
    backend: Backend = "auto",
    bootstrap: int = 0,
    max_dets: int = 100,
    out: str | Path | None = None,
    skip_invalid: bool = False,
    count_difficult: bool = False,
) -> Evaluation:
    """The COCO numbers of a results file of any detector.

    Args:
        results: COCO results file; a `ResultsFile` says what the numbers in it are.
        data: The truth: a COCO file, a split file, or a split of a data set in any format (`FOLDER:SPLIT`).
        iou_type: `bbox` or `segm`; with masks, how objects that lie in several parts are found whole is measured too.
        backend: `auto`, `pycocotools` or `hotcoco` (same numbers, faster).
        bootstrap: Resamples of the images for a 95 % interval of every AP; 0 for none.
        max_dets: Predictions counted per image and category, best first; COCO's own number is 100.
        out: JSON file to write the numbers to.
        skip_invalid: Leave faulty records out, counted, instead of stopping.
        count_difficult: Objects marked `difficult` (VOC) or `ignore` (COCO) are ordinary ones.

    Raises:
        DataError: One of the files cannot be used; with all findings.
    """
    file = ResultsFile.of(results)
    require_existing(file.path, "results file")
    require_existing(folder_of(data), "data set")
    if out is not None:
        require_output(Path(out), "file of metrics", [file, data])
    from scantling.data.coco import read_checked
    from scantling.data.findings import tell_warnings
    from scantling.data.formats.locations import read_given
    from scantling.data.io import write_json
    from scantling.evaluate.coco_eval import evaluate_results, limits_up_to, metrics_json

    dataset = read_given(data, skip_invalid=skip_invalid, count_difficult=count_difficult)
    found = read_checked(file.path, dataset, skip_invalid=skip_invalid, image_ids=file.image_ids)
    evaluation = evaluate_results(
        dataset,
        found,
        iou_type=iou_type,
        backend=backend,
        bootstrap=bootstrap,
        max_detections=limits_up_to(max_dets),
        occlusion=iou_type == "segm",
    )
    tell_warnings(evaluation.findings, log, rest="all of this kind")
    if out is not None:
        write_json(out, metrics_json([evaluation]), indent=2)
    return evaluation


def compare(
    first: GivenResults,
    second: GivenResults,
    data: str | Path,
    *,
    iou_type: IouType = "bbox",
    bootstrap: int = 1000,
    seed: int = 0,
    max_dets: int = 100,
    skip_invalid: bool = False,
    count_difficult: bool = False,
) -> Comparison:
    """Whether one results file is better than another, by a bootstrap over the images that is paired.

    Args:
        first: COCO results file (A) of any detector.
        second: The one it is compared with (B).
        data: The truth, as in `evaluate`.
        iou_type: `bbox` or `segm`.
        bootstrap: Resamples.
        seed: Of the resamples.
        max_dets: As in `evaluate`.
        skip_invalid: Leave faulty records out, counted, instead of stopping.
        count_difficult: Objects marked `difficult` (VOC) or `ignore` (COCO) are ordinary ones.

    Raises:
        DataError: One of the files cannot be used; with all findings.
    """
    files = [ResultsFile.of(given) for given in (first, second)]
    for file in files:
        require_existing(file.path, "results file")
    require_existing(folder_of(data), "data set")
    from scantling.data.coco import read_results
    from scantling.data.findings import tell_warnings
    from scantling.data.formats.locations import read_given
    from scantling.evaluate.compare import compare_results
    from scantling.evaluate.inputs import truth_findings

    dataset = read_given(data, skip_invalid=skip_invalid, count_difficult=count_difficult)
    pair = [
        read_results(file.path, dataset, skip_invalid=skip_invalid, image_ids=file.image_ids)
        for file in files
    ]
    tell_warnings(truth_findings(dataset, iou_type, max_dets), log, rest="all of this kind")
    return compare_results(
        dataset, *pair, iou_type=iou_type, bootstrap=bootstrap, seed=seed, max_detections=max_dets
    )


def import_weights(
    file: str | Path,
    model: str,
    out: str | Path,
    *,
    overrides: Iterable[str] = (),
    classes: str | None = None,
    head: Literal["keep", "drop", "by-name"] = "keep",
    overwrite: bool = False,
) -> ImportSummary:
    """Turn a checkpoint of MMDetection or torchvision into a scantling checkpoint.

    Args:
        file: `.pth` of MMDetection 2.x or 3.x, or of torchvision's two-stage detectors; nothing in it is executed.
        model: Name of the model the weights are for.
        out: Folder for `weights.safetensors` and `import.json`, which accounts for every key.
        overrides: `KEY=VALUE` texts that replace settings of the model.
        classes: Names of the new detector's categories, `a,b,c` or a file with one per line; None: the file's own.
        head: Whether the classifier is kept, starts anew (`drop`), or keeps what it knows of categories by name.
        overwrite: Replace an earlier import.

    Raises:
        CheckpointError: The file cannot be read or does not fit the model.
    """
    require_existing(Path(file), "checkpoint")
    from scantling.models.zoo import ModelConfig
    from scantling.predict.import_weights import HeadChoice, import_detector, parse_classes
    from scantling.settings.draft import Draft

    config = Draft.of(ModelConfig, [f"name={model}", *overrides]).check()
    choice = HeadChoice(head=head, classes=parse_classes(classes))
    return import_detector(Path(file), config, Path(out), choice=choice, overwrite=overwrite)


def recipes() -> dict[str, str]:
    """Every shipped recipe and suite, and what it is for."""
    from scantling.recipe.shipped import shipped_recipes, shipped_suites
    from scantling.settings.yaml import parse

    files = shipped_recipes() | shipped_suites()
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    return {name: str(parse(text, file=name).value["about"]) for name, text in texts.items()}


def recipe_text(name: str | Path) -> str:
    """Text of a recipe or suite.

    Args:
        name: Of a shipped recipe or suite, or a YAML file.

    Raises:
        ConfigError: There is no such recipe.
    """
    from scantling.recipe.shipped import find_recipe_or_suite, read_recipe

    return read_recipe(find_recipe_or_suite(name))


def suggest(data: str | Path, *, overrides: Iterable[str] = (), device: str = "auto") -> str:
    """The recipe that `train` chooses for a data set, as text of a file to start one's own from.

    Args:
        data: Folder of the data set.
        overrides: `KEY.PATH=VALUE` texts that replace values of the recipe.
        device: What it is to train on.
    """
    require_folder(Path(data), "data set")
    from scantling.recipe.suggest import OpenRecipe, suggest_recipe

    return suggest_recipe(OpenRecipe.over(data, overrides=overrides), device=device)


def doctor(*, address: str | None = None, folder: str | Path | None = None) -> Diagnosis:
    """Whether scantling can work on this machine: versions, GPU, disk, memory, and what to install.

    Nothing that may be broken is imported into this process before it is known not to be.

    Args:
        address: Of a Ray cluster, `HOST:PORT` or `auto`, whose machines are looked at, too.
        folder: Where runs are to be written, which all machines must see; None is the present one.

    Raises:
        UsageError: There is no such folder; Ray is not installed, or does not answer at the address.
    """
    where = Path.cwd() if folder is None else Path(folder)
    require_folder(where, "folder for runs")
    from scantling.doctor import examine

    return examine(where, address)
