"""From a run folder to the content of its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from scantling.data.coco import CocoDataset
from scantling.data.io import read_json
from scantling.errors import DataError
from scantling.evaluate.breakdown import break_down
from scantling.evaluate.coco_eval import Evaluation
from scantling.evaluate.inputs import IouType, Result
from scantling.refine.gate import RefineGate
from scantling.report.content import (
    AuditFacts,
    FusedMasks,
    MemberCurves,
    RefinementFacts,
    RemovalFacts,
    RemovedPair,
    ReportContent,
    SemanticResult,
    SemanticRow,
    StageResult,
    StepGain,
)
from scantling.report.dataset_facts import describe_dataset
from scantling.report.gallery import GalleryLimits, error_galleries, sample_pictures
from scantling.report.history import read_history
from scantling.report.score_facts import describe_scores
from scantling.settings import yaml as strict_yaml

HISTORY = "metrics.jsonl"
REASONS = "reasons.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a run produced, apart from its pictures.

    Attributes:
        stages: What was measured of each stage's results, what the run is judged by last, in the order of the run; the
            last is what the report is about.
        last: Results of the last stage.
        histories: Learning curves by member, or by member and fold; of the pretraining, of the refiner.
        step_gains: What each step gave.
        tuned: What tuning chose, as text.
        fused_masks: What fusion with score maps did to the masks of each category, if there was one.
        semantic: How good score maps are, by member.
        removals: What the elimination removed, if there was one.
        refinement: What refining did, if there was any.
        audit: What the audit of the labels found, if there was one.
        reasons: Why settings that were left open are what they are.
        recipe: Resolved recipe as YAML.
        environment: Versions, device, seed and so on.
        commands: Shell commands that repeat the run.
        max_detections: Predictions that its numbers count per image and category.
    """

    stages: Mapping[str, Sequence[Evaluation]] = field(default_factory=dict)
    last: Sequence[Result] = ()
    histories: tuple[MemberCurves, ...] = ()
    step_gains: tuple[StepGain, ...] = ()
    tuned: Mapping[str, str] = field(default_factory=dict)
    fused_masks: tuple[FusedMasks, ...] = ()
    semantic: tuple[SemanticResult, ...] = ()
    removals: RemovalFacts | None = None
    refinement: RefinementFacts | None = None
    audit: AuditFacts | None = None
    reasons: tuple[str, ...] = ()
    recipe: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    max_detections: int = 100


def read_run(run_dir: Path, *, commands: Sequence[str] = ()) -> RunFacts:
    """Collect what a run folder holds besides its results, of which the caller knows the order.

    Args:
        run_dir: With `members/NAME/` and the folders of later stages; what is not there is left out.
        commands: Shell commands that repeat the run.

    Raises:
        DataError: A file is damaged.
    """
    members = sorted(folder for folder in (run_dir / "members").glob("*") if folder.is_dir())
    recipe, environment, reasons = run_dir / "recipe.yaml", run_dir / "env.json", run_dir / REASONS
    return RunFacts(
        histories=tuple(_all_histories(run_dir, members)),
        step_gains=read_step_gains(run_dir / "evaluate" / "ingredients.json"),
        tuned={path.stem: path.read_text("utf-8") for path in sorted((run_dir / "tune").glob("*.txt"))},
        fused_masks=read_fused_masks(run_dir / "semantic" / "counts.json"),
        semantic=read_semantic(run_dir / "metrics.json"),
        removals=read_removals(run_dir / "eliminate" / "removed.json"),
        refinement=read_refinement(run_dir / "refine"),
        audit=read_audit(run_dir / "audit"),
        reasons=tuple(map(str, cast("list[str]", read_json(reasons)))) if reasons.is_file() else (),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
        environment=flatten(read_json(environment)) if environment.is_file() else {},
        commands=tuple(commands),
    )


def build_content(
    title: str,
    splits: Mapping[str, CocoDataset],
    run: RunFacts,
    *,
    split: str = "val",
    created: datetime | None = None,
    limits: GalleryLimits | None = None,
) -> ReportContent:
    """Look for the errors of the last stage and take their pictures.

    Args:
        title: What was run, in the user's words.
        splits: Data sets by name; `split` is the one the results are for, the others are described.
        run: What the run produced.
        split: Key into `splits`.
        created: When the run ended; None leaves the date out.
        limits: How many pictures.

    Raises:
        DataError: Results do not belong to the data set.
    """
    dataset = splits[split]
    stages = tuple(StageResult(name=name, evaluations=tuple(found)) for name, found in run.stages.items())
    iou_type: IouType = stages[-1].evaluations[-1].iou_type if stages else "bbox"
    breakdown = break_down(dataset, run.last, iou_type=iou_type, max_detections=run.max_detections)
    samples = sample_pictures(next(iter(splits.values())), limits=limits)
    return ReportContent(
        title=title,
        created=created.strftime("%d %B %Y, %H:%M") if created else "",
        split=split,
        stages=stages,
        step_gains=run.step_gains,
        points=breakdown.points if stages else (),
        scores=describe_scores(stages[-1].evaluations[-1], breakdown) if stages else None,
        tuned=run.tuned,
        fused_masks=run.fused_masks,
        semantic=run.semantic,
        removals=run.removals,
        refinement=run.refinement,
        audit=run.audit,
        histories=run.histories,
        galleries=error_galleries(dataset, breakdown, limits) if stages else (),
        dataset=describe_dataset(splits, samples=samples),
        reasons=run.reasons,
        recipe=run.recipe,
        environment=run.environment,
        commands=run.commands,
    )


def read_fused_masks(path: Path) -> tuple[FusedMasks, ...]:
    """What a run's fusion with score maps did; nothing where the file is missing.

    Raises:
        DataError: The file is damaged.
    """
    if not path.is_file():
        return ()
    with _understood(path):
        found = cast("dict[str, Any]", read_json(path))
        return tuple(FusedMasks(category=name, **counts) for name, counts in found["categories"].items())


def read_semantic(path: Path) -> tuple[SemanticResult, ...]:
    """How good score maps are, from a run's metrics; nothing where there are none.

    Raises:
        DataError: The file is damaged.
    """
    if not path.is_file():
        return ()
    with _understood(path):
        members = cast(
            "dict[str, dict[str, Any]]", cast("dict[str, Any]", read_json(path)).get("semantic", {})
        )
        return tuple(_semantic_result(name, found) for name, found in members.items())


def _semantic_result(name: str, found: Mapping[str, float | None]) -> SemanticResult:
    prefix = "semantic/found/"
    names = [key.removeprefix(prefix) for key in found if key.startswith(prefix)]
    rows = (
        SemanticRow(category, found.get(f"semantic/IoU/{category}"), found[f"{prefix}{category}"])
        for category in names
    )
    return SemanticResult(name=name, mean_iou=found["semantic/mIoU"], rows=tuple(rows))


def read_removals(path: Path) -> RemovalFacts | None:
    """What a run's elimination removed; None where the file is missing.

    Raises:
        DataError: The file is damaged.
    """
    if not path.is_file():
        return None
    with _understood(path):
        found = cast("dict[str, Any]", read_json(path))
        pairs = tuple(RemovedPair(**pair) for pair in found["pairs"])
        return RemovalFacts(num_results=found["num_results"], num_removed=found["num_removed"], pairs=pairs)


def read_refinement(folder: Path) -> RefinementFacts | None:
    """What a run's refiner did, from its folder `refine`; None where it refined nothing.

    Raises:
        ConfigError: The gate's file is no YAML.
        DataError: Gate or counts are damaged.
    """
    counts, gate = folder / "counts.json", folder / "gate.yaml"
    if not counts.is_file():
        return None
    measured = None
    if gate.is_file():
        with _understood(gate):
            written = strict_yaml.parse(gate.read_text(encoding="utf-8"), file=str(gate)).value
            measured = RefineGate.model_validate(written)
    with _understood(counts):
        counted = {str(what): int(number) for what, number in cast("Any", read_json(counts)).items()}
    return RefinementFacts(gate=measured, counts=counted)


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    """Name the file whose content is not what scantling writes."""
    try:
        yield
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not written by scantling, or damaged: {error}") from error


def read_audit(folder: Path) -> AuditFacts | None:
    """What the audit of a run's labels found, from its folder `audit`; None where there was none.

    Raises:
        DataError: The file is damaged.
    """
    path = folder / "suspects.json"
    if not path.is_file():
        return None
    with _understood(path):
        found = cast("dict[str, Any]", read_json(path))
        counts = {str(reason): int(number) for reason, number in found["counts"].items()}
        page = f"{folder.name}/audit.html"
        return AuditFacts(num_labels=int(found["data"]["num_labels"]), counts=counts, page=page)


def _all_histories(run_dir: Path, members: Sequence[Path]) -> list[MemberCurves]:
    """Learning curves of everything that was trained, in the order of the run."""
    trained = {
        "pretraining": run_dir / "pretrain" / "moco" / "train",
        "refiner": run_dir / "refine" / "refiner",
    }
    others = {
        name: [read_history(folder / HISTORY, name)] if (folder / HISTORY).is_file() else []
        for name, folder in trained.items()
    }
    own = [history for folder in members for history in _histories(folder)]
    return [*others["pretraining"], *own, *others["refiner"]]


def _histories(folder: Path) -> list[MemberCurves]:
    """Learning curves of a member, one for each fold; a member whose predictions come from a file has none."""
    folds = sorted(path for path in folder.glob("fold-*") if path.is_dir())
    if not folds:
        return [read_history(folder / HISTORY, folder.name)]
    return [read_history(fold / HISTORY, f"{folder.name}, {fold.name}") for fold in folds]


def read_step_gains(path: Path) -> tuple[StepGain, ...]:
    """The rows that `evaluate.variants` wrote as JSON; none where the file is missing.

    Raises:
        DataError: The file is damaged.
    """
    if not path.is_file():
        return ()
    table = cast("dict[str, Any]", read_json(path))
    return tuple(_step_gain(row) for row in table["rows"])


def _step_gain(row: Mapping[str, Any]) -> StepGain:
    difference = row["difference"] or {}
    return StepGain(
        name=row["name"],
        metrics=row["metrics"],
        interval=_pair(row["interval"]),
        base=row["base"],
        difference=difference.get("difference"),
        difference_interval=_pair(difference.get("interval")),
    )


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested JSON objects as one level of `a.b: text`; None is left out."""
    if not isinstance(value, dict):
        return {} if value is None else {prefix: str(value)}
    flat: dict[str, str] = {}
    for key, part in value.items():
        flat |= flatten(part, f"{prefix}.{key}" if prefix else str(key))
    return flat
