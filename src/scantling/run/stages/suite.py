"""What a suite adds to the run of each of its data sets: the rows of its tables, and a file to hand in.

suite/rows.json, suite/draws.npz    AP and AR of every row, of all images and of each draw
submission/predictions.json         COCO results of the split `test` (`inference`), with or without labels
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from scantling.data.coco.layout import alias_of
from scantling.data.formats.layouts import detect_format
from scantling.data.io import atomic_write, read_json, replacing, sha256_of, write_json
from scantling.evaluate.bootstrap import Floats, weights_with_all
from scantling.evaluate.compare import resampled_metrics
from scantling.evaluate.inputs import Predictions, Result
from scantling.evaluate.over_sets import Part, SetResult, SetRow
from scantling.predict.sources import open_source
from scantling.run.context import RunContext
from scantling.run.folder import METRICS
from scantling.run.pipeline import stages_of
from scantling.run.predictions import predict_source
from scantling.run.predictor import load_run
from scantling.run.results import own_results
from scantling.run.stage import Resources, Stage, hashes_of
from scantling.run.stages.combining import applied_steps, member_sources
from scantling.run.stages.evaluation import judged_by_metrics, result_files
from scantling.run.steps import ENSEMBLE, Step, apply_steps, run_steps

SUITE, SUBMISSION = "suite", "submission"
ROWS, DRAWS = f"{SUITE}/rows.json", f"{SUITE}/draws.npz"
SUBMITTED = f"{SUBMISSION}/predictions.json"
_SEMANTIC, _MEAN_IOU = "semantic", "semantic/mIoU"
"""Keys of `metrics.json`: by segmenter what its score maps reach."""


def stages_in_suite(context: RunContext) -> tuple[Stage, ...]:
    """Those of the run, and what the suite adds."""
    source = submission_source(context) if context.recipe.detecting_members else None
    own = [_rows_stage(context), *([] if source is None else [_submission_stage(context, source)])]
    return (*stages_of(context), *own)


def _rows_stage(context: RunContext) -> Stage:
    files = result_files(context.recipe)
    return Stage(
        folder=SUITE,
        name=SUITE,
        inputs=lambda: {
            "metrics": sha256_of(context.root / METRICS),
            "predictions": hashes_of(context.root, files),
            "steps": {step.name: dict(step.inputs()) for step in run_steps(context.recipe, context.root)},
            "bootstrap": context.recipe.evaluate.bootstrap,
            **context.recipe.evaluate.limits,
        },
        needs=(METRICS, *files.values()),
        outputs=(ROWS, DRAWS),
        whole_files=True,
        action=partial(_write_rows, context),
        resources=Resources(gpus=1),
    )


def _write_rows(context: RunContext) -> None:
    """Measure every row on the draws of images on which the run was evaluated."""
    evaluated, target = context.recipe.evaluate, context.data.target
    weights = weights_with_all(len(target), evaluated.bootstrap)
    kind = judged_by_metrics(context.root)
    rows, precision, recall = list[dict[str, str]](), list[Floats](), list[Floats]()
    for part, name, results in _results(context):
        found = resampled_metrics(target, results, kind, weights, max_detections=evaluated.max_dets).of(None)
        rows.append({"name": name, "part": part})
        precision.append(found["AP"])
        recall.append(found["AR"])
    with replacing(context.root / DRAWS) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, AP=np.array(precision), AR=np.array(recall))
    content: dict[str, Any] = {
        "iou_type": kind if rows else "",
        "split": context.data.evaluated,
        "num_images": len(target),
        "rows": rows,
    }
    content["mean_iou"] = _mean_iou(context)
    write_json(context.root / ROWS, content, indent=2)


def _results(context: RunContext) -> Iterator[tuple[Part, str, Predictions]]:
    """The results of every row: each member alone, then step after step from the first member on."""
    files, target = result_files(context.recipe), context.data.target

    def kept(name: str) -> Sequence[Result]:
        return own_results(context.root, files[name], target)

    for name in (name for name in files if name in context.recipe.members):
        yield "members", name, kept(name)
    steps = applied_steps(context)
    if not steps:
        return
    sources = member_sources(context, context.data.evaluated)
    for row in step_after_step(list(sources), steps):
        if not row.steps:
            results: Predictions = kept(row.members[0])
        elif len(row.members) == len(sources) and len(row.steps) == len(steps):
            results = kept(steps[-1].name)
        else:
            results = apply_steps(row.steps, {name: sources[name] for name in row.members}, target)
        yield "steps", row.name, results


def _mean_iou(context: RunContext) -> dict[str, float | None]:
    """Mean IoU of each segmenter's score maps on the evaluated split, where the run has segmenters."""
    metrics = cast("dict[str, Any]", read_json(context.root / METRICS))
    return {name: one[_MEAN_IOU] for name, one in metrics.get(_SEMANTIC, {}).items()}


class Combination(NamedTuple):
    """A row of the table of step after step: what is done with whose detections.

    Attributes:
        name: `htc + fuse-semantic + r50`.
        members: Whose detections.
        steps: What is done with them, in the order of the run.
    """

    name: str
    members: tuple[str, ...]
    steps: tuple[Step, ...]


def step_after_step(members: Sequence[str], steps: Sequence[Step]) -> list[Combination]:
    """The rows of the paper's Table 3: the first member, it with every step but the ensemble, then member by member.

    The last row is the run itself.

    Args:
        members: That are combined, the strongest first; at least one.
        steps: Of the run, in their order; at least one.
    """
    first, *others = members
    alone = [step for step in steps if step.name != ENSEMBLE or not others]
    rows = [Combination(first, (first,), ())]
    for number, step in enumerate(alone, start=1):
        rows.append(Combination(f"{rows[-1].name} + {step.title}", (first,), tuple(alone[:number])))
    for number, other in enumerate(others, start=2):
        rows.append(Combination(f"{rows[-1].name} + {other}", tuple(members[:number]), tuple(steps)))
    return rows


def submission_source(context: RunContext) -> str | None:
    """The images to hand in results for: the split `test` or `inference`, with or without labels; None without one.

    Returns:
        `FOLDER:SPLIT`; a folder of images where no annotations name them.
    """
    root = Path(context.recipe.data.root or ".")
    split = alias_of("test", detect_format(root).splits)
    if split is not None:
        return f"{root}:{split}"
    folder = alias_of("test", [path.name for path in root.iterdir() if path.is_dir()])
    return None if folder is None else str(root / folder)


def _submission_stage(context: RunContext, source: str) -> Stage:
    """Results of the test split: those of the run where that is what it evaluates, else predicted with it."""
    recipe, files = context.recipe, result_files(context.recipe)
    return Stage(
        folder=SUBMISSION,
        name=SUBMISSION,
        inputs=lambda: {
            "metrics": sha256_of(context.root / METRICS),
            "recipe": recipe.to_dict(),
            "weights": hashes_of(context.root, {unit.title: unit.weights for unit in context.units()}),
            "images": [
                [record.file_name, record.path.stat().st_size] for record in open_source(source).records
            ],
        },
        needs=(METRICS, *files.values()),
        outputs=(SUBMITTED,),
        whole_files=True,
        action=partial(_write_submission, context, source),
        resources=Resources(gpus=1),
    )


def _write_submission(context: RunContext, source: str) -> None:
    last = cast("dict[str, Any]", read_json(context.root / METRICS))["stage"]
    if _is_evaluated(context, source):
        file = context.root / result_files(context.recipe)[last]
        atomic_write(context.root / SUBMITTED, file.read_text(encoding="utf-8"))
        return
    detectors = load_run(context.root, device=str(context.device))
    predict_source(Path(source), detectors, out=context.root / SUBMITTED)


def _is_evaluated(context: RunContext, source: str) -> bool:
    """Whether the images to hand in results for are those that the run predicts anyway."""
    split = source.rpartition(":")[2]
    return alias_of(context.data.evaluated, [split]) == split


def set_result(root: Path, name: str) -> SetResult:
    """What a finished run in a suite gives its tables.

    Args:
        root: The run folder.
        name: Of the data set.

    Raises:
        DataError: A file is missing or damaged.
    """
    content = cast("dict[str, Any]", read_json(root / ROWS))
    with np.load(root / DRAWS, allow_pickle=False) as draws:
        precision, recall = draws["AP"], draws["AR"]
    return SetResult(
        name=name,
        iou_type=content["iou_type"],
        split=content["split"],
        num_images=content["num_images"],
        rows=tuple(
            SetRow(
                name=row["name"],
                part=row["part"],
                average_precision=precision[number],
                average_recall=recall[number],
            )
            for number, row in enumerate(content["rows"])
        ),
        mean_iou=content["mean_iou"],
    )
