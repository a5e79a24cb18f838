"""What came of a run: official numbers, a table of what each ingredient gave, and the report."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

from scantling.data.coco import read_results
from scantling.data.coco.results import Result
from scantling.data.detections import results_of
from scantling.data.findings import tell_warnings
from scantling.data.io import atomic_write, read_json, sha256_of, write_json
from scantling.data.splits import RunData
from scantling.evaluate.coco_eval import Evaluation, evaluate_results, limits_up_to, metrics_json
from scantling.evaluate.variants import Variant, compare_variants
from scantling.models.suppression import SuppressConfig
from scantling.recipe.recipe import Recipe
from scantling.report.build import RunFacts, build_content, read_run
from scantling.report.content import ReportContent
from scantling.report.html import write_report
from scantling.run.context import PREDICTIONS, RunContext
from scantling.run.folder import METRICS, RECIPE, REPORT
from scantling.run.stage import Stage
from scantling.run.stages.combining import ELIMINATE, ENSEMBLE
from scantling.run.stages.detecting import detections_with, num_views, suppression_of
from scantling.run.stages.refining import REFINE

log = logging.getLogger(__name__)

TABLE = "evaluate/table.txt"
INGREDIENTS, INGREDIENTS_JSON = "evaluate/ingredients.md", "evaluate/ingredients.json"
HEADLINE = "bbox/AP"


def evaluate_stage(context: RunContext) -> Stage:
    """Official numbers of every result; those of the last one become the run's."""
    inputs = {
        "predictions": _prediction_hashes(context),
        "data": context.data.hashes[context.data.evaluated],
        "split": context.data.evaluated,
        "bootstrap": context.recipe.evaluate.bootstrap,
        **context.recipe.evaluate.limits,
    }
    outputs = (METRICS, TABLE, INGREDIENTS, INGREDIENTS_JSON)
    return Stage(
        folder="evaluate", name="evaluate", inputs=inputs, outputs=outputs, action=partial(_evaluate, context)
    )


def report_stage(context: RunContext) -> Stage:
    """The page to open in a browser."""
    inputs = {
        "metrics": sha256_of(context.root / METRICS),
        "predictions": _prediction_hashes(context),
        "data": dict(context.data.hashes),
        "recipe": context.recipe.to_dict(),
    }
    write = partial(write_run_report, context.root, context.recipe, context.data)
    return Stage(folder="report", name="report", inputs=inputs, outputs=(REPORT,), action=write)


def write_run_report(root: Path, recipe: Recipe, data: RunData) -> Path:
    """Write `report.html` from what a finished run left.

    Args:
        root: The run folder.
        recipe: Resolved recipe of the run.
        data: Its splits.
    """
    metrics = cast("dict[str, Any]", read_json(root / METRICS))
    facts = _of_recipe(read_run(root, data.target, commands=_commands(root, recipe)), recipe)
    stages = {name: facts.stages[name] for name in metrics["members"] if name != metrics["stage"]}
    facts = replace(facts, stages={**stages, metrics["stage"]: facts.stages[metrics["stage"]]})
    title = f"{Path(recipe.data.root or '').name}: {', '.join(recipe.members)}"
    return write_report(root / REPORT, _content(title, data, facts, recipe.evaluate.bootstrap))


def _of_recipe(facts: RunFacts, recipe: Recipe) -> RunFacts:
    """The facts without those of steps that an earlier recipe of the same folder had and this one has not."""
    combining, refinement = recipe.combining, facts.refinement
    if refinement is not None and not recipe.gates_refinement:
        refinement = replace(refinement, gate=None)
    return replace(
        facts,
        tuned=facts.tuned if combining.tune is not None else {},
        removals=facts.removals if combining.eliminate is not None else None,
        refinement=refinement if recipe.refine is not None else None,
        audit=facts.audit if recipe.audit is not None else None,
        max_detections=recipe.evaluate.max_dets,
    )


def _content(title: str, data: RunData, facts: RunFacts, bootstrap: int) -> ReportContent:
    created = datetime.now().astimezone()
    return build_content(
        title, data.splits, facts, split=data.evaluated, created=created, bootstrap=bootstrap
    )


def _commands(root: Path, recipe: Recipe) -> list[str]:
    """How to get this run again, and how to get its predictions: of the evaluated split, not of all pictures."""
    split = {"train": recipe.data.train, "val": recipe.data.val}.get(
        recipe.evaluate.split, recipe.evaluate.split
    )
    predicted = (
        str(Path(recipe.data.root or ".") / split)
        if split.endswith(".json")
        else f"{recipe.data.root}:{split}"
    )
    return [
        shlex.join(
            ["scantling", "run", str(root / RECIPE), "--out", str(root.with_name(root.name + "-again"))]
        ),
        shlex.join(["scantling", "predict", predicted, "--run", str(root), "--out", "predictions.json"]),
        "# next: look at pictures of your own, with boxes drawn; and for labels and pictures that are wrong",
        f"scantling predict YOUR_PICTURES --run {shlex.quote(str(root))} --out found.json --overlays found",
        shlex.join(["scantling", "check", str(recipe.data.root)]),
    ]


def result_files(context: RunContext) -> dict[str, str]:
    """Results files of the evaluated split by stage, in the order of the run, relative to the run folder."""
    evaluated, combining = context.data.evaluated, context.recipe.combining
    files = {name: context.detections_file(name, evaluated) for name in context.recipe.members}
    if combining.ensemble is not None:
        files[ENSEMBLE] = f"{ENSEMBLE}/{PREDICTIONS}"
    if combining.eliminate is not None:
        files[ELIMINATE] = f"{ELIMINATE}/{PREDICTIONS}"
    if context.recipe.refine is not None:
        files[REFINE] = f"{REFINE}/{PREDICTIONS}"
    return files


def _evaluate(context: RunContext) -> None:
    found = {name: _read(context, file) for name, file in result_files(context).items()}
    evaluations = {name: _evaluation(context, results) for name, results in found.items()}
    trained = [name for name in context.recipe.members if name not in context.recipe.foreign_members]
    best = max(trained or context.recipe.members, key=lambda name: evaluations[name].metrics["AP"] or 0.0)
    last = list(found)[-1] if len(found) > len(context.recipe.members) else best
    metrics = {
        **metrics_json([evaluations[last]]),
        "split": context.data.evaluated,
        "member": best,
        "stage": last,
        "members": {name: metrics_json([evaluation]) for name, evaluation in evaluations.items()},
    }
    config = context.recipe.evaluate
    table = compare_variants(
        context.data.target,
        ingredients(context, found, best),
        bootstrap=config.bootstrap,
        seed=0,
        max_detections=config.max_dets,
    )
    tell_warnings(evaluations[last].findings, log, rest="all of this kind")
    atomic_write(context.root / INGREDIENTS, table.to_text() + "\n")
    write_json(context.root / INGREDIENTS_JSON, table.to_dict(), indent=2)
    atomic_write(context.root / TABLE, evaluations[last].table + "\n")
    write_json(context.root / METRICS, metrics, indent=2)


def ingredients(context: RunContext, found: dict[str, list[Result]], best: str) -> list[Variant]:
    """What each step gave: every member step by step, then the combinations.

    Args:
        context: Of the run.
        found: Results of the stages by name; see `result_files`.
        best: The member that the ensemble is compared with.
    """
    rows = [row for name in context.recipe.members for row in _member_steps(context, name, found[name])]
    base = _outcome_title(context, best)
    for name in (ENSEMBLE, ELIMINATE, REFINE):
        if name in found:
            rows.append(Variant(name=name, results=found[name], base=base))
            base = name
    return rows


def _member_steps(context: RunContext, name: str, results: list[Result]) -> list[Variant]:
    """One size and plain NMS, all sizes, the recipe's own suppression, the tuned one: those that differ."""
    member = context.member(name)
    if member.model is None:
        return [Variant(name=name, results=results)]
    own, views = member.predict.suppress, num_views(member)
    hard = own.model_copy(update={"method": "hard", "iou_threshold": 0.5})
    steps: list[tuple[str, SuppressConfig, list[int] | None]] = []
    if views > 1:
        steps.append((f"{name}, one size, NMS", hard, [views // 2]))
    if own != hard:
        steps.append((f"{name}, {views} sizes, NMS" if views > 1 else f"{name}, NMS", hard, None))
    if context.recipe.tunes_suppression and suppression_of(context, name) != own:
        steps.append((f"{name}, {_method(own)}", own, None))
    rows = [Variant(name=step, results=_results(context, name, config, seen)) for step, config, seen in steps]
    rows.append(Variant(name=_outcome_title(context, name), results=results))
    return [rows[0], *(replace(row, base=before.name) for before, row in zip(rows, rows[1:], strict=False))]


def _outcome_title(context: RunContext, name: str) -> str:
    """What a member's own outcome is called in the table."""
    tuned = context.recipe.tunes_suppression and name not in context.recipe.foreign_members
    return f"{name}, tuned" if tuned else name


def _method(config: SuppressConfig) -> str:
    return config.method.replace("_", " ") if isinstance(config.method, str) else "suppression of the recipe"


def _results(
    context: RunContext, name: str, config: SuppressConfig, views: Sequence[int] | None
) -> list[Result]:
    found = detections_with(context, name, config, split=context.data.evaluated, views=views)
    return results_of(found, context.data.target)


def _read(context: RunContext, file: str) -> list[Result]:
    return read_results(context.root / file, context.data.target, image_ids="id")


def _evaluation(context: RunContext, results: Sequence[Result]) -> Evaluation:
    config = context.recipe.evaluate
    return evaluate_results(
        context.data.target,
        results,
        backend=config.backend,
        bootstrap=config.bootstrap,
        max_detections=limits_up_to(config.max_dets),
    )


def _prediction_hashes(context: RunContext) -> dict[str, str]:
    return {name: sha256_of(context.root / file) for name, file in result_files(context).items()}
