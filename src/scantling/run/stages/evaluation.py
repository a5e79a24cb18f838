"""What came of a run: official numbers, a table of what each step gave, and the report."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

from scantling.data.coco import read_checked
from scantling.data.coco.results import CheckedResults, Result
from scantling.data.findings import tell_warnings
from scantling.data.io import atomic_write, read_json, sha256_of, write_json
from scantling.data.splits import RunData
from scantling.errors import UsageError
from scantling.evaluate.coco_eval import Evaluation, evaluate_results, limits_up_to, metrics_json
from scantling.evaluate.inputs import IouType
from scantling.evaluate.saved import files_of, kinds_of, load_evaluations, save_evaluations
from scantling.evaluate.variants import Variant, compare_variants
from scantling.recipe.recipe import Recipe
from scantling.report.build import RunFacts, build_content, read_run
from scantling.report.content import ReportContent
from scantling.report.html import write_report
from scantling.run.context import PREDICTIONS, RunContext
from scantling.run.folder import METRICS, RECIPE, REPORT
from scantling.run.results import own_results
from scantling.run.stage import Stage, hashes_of
from scantling.run.stages.combining import learned_files
from scantling.run.stages.detecting import Way, detections_with, ways_of
from scantling.run.stages.refining import SUSPECTS
from scantling.run.stages.semantic import evaluated_maps
from scantling.run.steps import Step, run_steps, step_file
from scantling.structures.detections import Detections

log = logging.getLogger(__name__)

EVALUATE = "evaluate"
TABLE = f"{EVALUATE}/table.txt"
STEPS, STEPS_JSON = f"{EVALUATE}/ingredients.md", f"{EVALUATE}/ingredients.json"
SAVED = f"{EVALUATE}/results"
SEMANTIC = f"{EVALUATE}/semantic.txt"
SEMANTIC_KEY = "semantic"
"""Key of `metrics.json`: by semantic member how good its score maps are."""
KIND = "iou_type"
"""Key of `metrics.json`: what the run is judged by, `bbox` or `segm`."""


def evaluate_stage(context: RunContext) -> Stage:
    """Official numbers of every result; those of the last one become the run's."""
    recipe, split = context.recipe, context.data.evaluated
    files = result_files(recipe)
    units = [unit for unit in context.units() if not context.member(unit.member).gives_maps]
    seen = [unit.candidates(split) for unit in units]  # for the table of what each step gave
    seen += [unit.masks(split) for unit in units if context.member(unit.member).draws_masks]
    maps = {name: context.maps_file(name, split) for name in recipe.map_members}
    outputs = [METRICS, *([SEMANTIC] if maps else [])]
    if files:
        outputs += [TABLE, STEPS, STEPS_JSON, *(f for name in files for f in files_of(SAVED, name))]
    return Stage(
        folder=EVALUATE,
        name=EVALUATE,
        inputs=lambda: {
            "predictions": hashes_of(context.root, files),
            **({"score_maps": hashes_of(context.root, maps)} if maps else {}),
            "data": context.data.hashes[split],
            "split": split,
            "bootstrap": context.recipe.evaluate.bootstrap,
            **context.recipe.evaluate.limits,
            **({"occlusion": True} if context.recipe.evaluate.occlusion else {}),
        },
        needs=(*files.values(), *seen, *maps.values(), *learned_files(context)),
        outputs=tuple(outputs),
        action=partial(_evaluate, context),
    )


def report_stage(context: RunContext) -> Stage:
    """The page to open in a browser."""
    files = result_files(context.recipe)
    write = partial(write_run_report, context.root, context.recipe, context.data)
    return Stage(
        folder="report",
        name="report",
        inputs=lambda: {
            "metrics": sha256_of(context.root / METRICS),
            "predictions": hashes_of(context.root, files),
            "data": dict(context.data.hashes),
            "recipe": context.recipe.to_dict(),
        },
        needs=(METRICS, *files.values(), *([SUSPECTS] if context.recipe.audit is not None else [])),
        outputs=(REPORT,),
        action=write,
        whole_files=True,  # it looks at all of the run, and names its folder
    )


def write_run_report(root: Path, recipe: Recipe, data: RunData) -> Path:
    """Write `report.html` from what a finished run left.

    Args:
        root: The run folder.
        recipe: Resolved recipe of the run.
        data: Its splits.
    """
    metrics = cast("dict[str, Any]", read_json(root / METRICS))
    files, title = result_files(recipe), f"{Path(recipe.data.root or '').name}: {', '.join(recipe.members)}"
    if metrics.get("members", {}).keys() != files.keys():
        hint = "Finish it with `scantling run`."
        raise UsageError(f"{root}: the recipe was changed since the run was evaluated", hint=hint)
    facts = _of_recipe(read_run(root, commands=_commands(root, recipe)), recipe)
    if not files:  # of pixels alone
        return write_report(root / REPORT, _content(title, data, facts))
    last = metrics["stage"]
    order, kind = [*(name for name in files if name != last), last], judged_by_metrics(root)
    facts = replace(
        facts,
        stages={name: _saved(root, files[name], name, recipe, data, kind) for name in order},
        last=own_results(root, files[last], data.target),
    )
    return write_report(root / REPORT, _content(title, data, facts))


def _saved(
    root: Path, file: str, name: str, recipe: Recipe, data: RunData, kind: IouType
) -> Sequence[Evaluation]:
    """What was measured of a result, what the run is judged by last.

    Runs of earlier versions have kept no curves, and are measured again.
    """
    if all((root / part).is_file() for part in files_of(SAVED, name)):
        measured: Sequence[Evaluation] = load_evaluations(root / SAVED, name)
    else:
        checked = CheckedResults(own_results(root, file, data.target), ())
        measured = list(_evaluations(recipe, data, checked, kind).values())
    return sorted(measured, key=lambda each: each.iou_type == kind)


def _of_recipe(facts: RunFacts, recipe: Recipe) -> RunFacts:
    """The facts without those of steps that an earlier recipe of the same folder had and this one has not."""
    combining, refinement = recipe.combining, facts.refinement
    if refinement is not None and not recipe.gates_refinement:
        refinement = replace(refinement, gate=None)
    return replace(
        facts,
        tuned=facts.tuned if combining.tune is not None else {},
        fused_masks=facts.fused_masks if combining.semantic is not None else (),
        removals=facts.removals if combining.eliminate is not None else None,
        refinement=refinement if recipe.refine is not None else None,
        audit=facts.audit if recipe.audit is not None else None,
        max_detections=recipe.evaluate.max_dets,
    )


def _content(title: str, data: RunData, facts: RunFacts) -> ReportContent:
    created = datetime.now().astimezone()
    return build_content(title, data.splits, facts, split=data.evaluated, created=created)


def _commands(root: Path, recipe: Recipe) -> list[str]:
    """How to get this run again, and how to get its predictions: of the evaluated split, not of all pictures."""
    split = recipe.data.entries(recipe.evaluate.split)[0]
    predicted = (
        str(Path(recipe.data.root or ".") / split)
        if split.endswith(".json")
        else f"{recipe.data.root}:{split}"
    )
    again = str(root.with_name(root.name + "-again"))
    commands = [shlex.join(["scantling", "run", str(root / RECIPE), "--out", again])]
    predict = ["scantling", "predict", predicted, "--run", str(root)]
    if recipe.detecting_members:
        commands += [
            shlex.join([*predict, "--out", "predictions.json"]),
            "# next: look at pictures of your own, with boxes drawn; and for labels and pictures that are wrong",
            f"scantling predict YOUR_PICTURES --run {shlex.quote(str(root))} --out found.json --overlays found",
        ]
    elif any(member.segmenter is not None for member in recipe.members.values()):
        commands += [
            shlex.join([*predict, "--maps", "maps"]),
            "# next: maps of pictures of your own; and look for labels and pictures that are wrong",
            f"scantling predict YOUR_PICTURES --run {shlex.quote(str(root))} --maps found",
        ]
    return [*commands, shlex.join(["scantling", "check", str(recipe.data.root)])]


def result_files(recipe: Recipe) -> dict[str, str]:
    """Results files of the evaluated split in the order of the run: members, then steps; relative to the run folder."""
    files = {name: f"members/{name}/{PREDICTIONS}" for name in recipe.detecting_members}
    return files | {step.name: step_file(step) for step in run_steps(recipe, Path())}


@dataclass(frozen=True, slots=True)
class _Found:
    """A result list and what was measured of it, by kind of overlap."""

    results: list[Result]
    evaluations: Mapping[IouType, Evaluation]
    kind: IouType

    @property
    def judged(self) -> Evaluation:
        """By what the run is judged by."""
        return self.evaluations[self.kind]

    def as_variant(self, name: str, base: str | None = None) -> Variant:
        """A row of the table of steps."""
        resampled = self.judged.resampled
        return Variant(name=name, results=self.results, base=base, resampled=resampled)


def _evaluate(context: RunContext) -> None:
    recipe, data = context.recipe, context.data
    maps = evaluated_maps(context.root, recipe, data)
    semantic = {SEMANTIC_KEY: {name: one.metrics for name, one in maps.items()}} if maps else {}
    if recipe.map_members:
        told = [f"{name}, IoU of pixels\n{one.to_text()}" for name, one in maps.items()]
        atomic_write(context.root / SEMANTIC, "\n\n".join(told) + "\n")
    if recipe.detecting_members:
        _evaluate_results(context, semantic)
    else:
        write_json(context.root / METRICS, {"split": data.evaluated, **semantic}, indent=2)


def _evaluate_results(context: RunContext, more: Mapping[str, Any]) -> None:
    """Measure the members' detections and what each step gave.

    Args:
        context: Of the run.
        more: Further entries of `metrics.json`.
    """
    recipe, data = context.recipe, context.data
    lists = {name: _read(context, file) for name, file in result_files(recipe).items()}
    kind = judged_by(recipe, data, [checked.records for checked in lists.values()])
    found = {
        name: _Found(checked.records, _evaluations(recipe, data, checked, kind), kind)
        for name, checked in lists.items()
    }
    members = recipe.detecting_members
    trained = [name for name in members if name not in recipe.foreign_members]
    best = max(trained or members, key=lambda name: found[name].judged.metrics["AP"] or 0.0)
    last = list(found)[-1] if len(found) > len(members) else best
    metrics = {
        **metrics_json(found[last].evaluations.values()),
        KIND: kind,
        "split": data.evaluated,
        "member": best,
        "stage": last,
        "members": {name: metrics_json(one.evaluations.values()) for name, one in found.items()},
        **more,
    }
    table = compare_variants(
        data.target,
        _steps(context, found, best),
        iou_type=kind,
        bootstrap=recipe.evaluate.bootstrap,
        seed=0,
        max_detections=recipe.evaluate.max_dets,
    )
    tell_warnings(found[last].judged.findings, log, rest="all of this kind")
    for name, one in found.items():
        save_evaluations(list(one.evaluations.values()), context.root / SAVED, name)
    atomic_write(context.root / STEPS, table.to_text() + "\n")
    write_json(context.root / STEPS_JSON, table.to_dict(), indent=2)
    atomic_write(context.root / TABLE, found[last].judged.table + "\n")
    write_json(context.root / METRICS, metrics, indent=2)


def judged_by(recipe: Recipe, data: RunData, lists: Iterable[Sequence[Result]]) -> IouType:
    """What a run is judged by: what its recipe says, else masks where every result list and the labels have them."""
    if recipe.evaluate.iou_type != "auto":
        return recipe.evaluate.iou_type
    filled = [results for results in lists if results]
    masked = [results for results in filled if "segm" in kinds_of(data.target, results)]
    return "segm" if filled and len(masked) == len(filled) else "bbox"


def judged_by_metrics(root: Path) -> IouType:
    """What a finished run was judged by, from its folder."""
    metrics = cast("dict[str, Any]", read_json(root / METRICS))
    return cast("IouType", metrics.get(KIND, "bbox"))


def _read(context: RunContext, file: str) -> CheckedResults:
    return read_checked(context.root / file, context.data.target, image_ids="id")


def _evaluations(
    recipe: Recipe, data: RunData, checked: CheckedResults, kind: IouType
) -> dict[IouType, Evaluation]:
    """By what the run is judged by, and by all that can be measured; boxes before masks."""
    config, kinds = recipe.evaluate, {kind, *kinds_of(data.target, checked.records)}
    return {
        each: evaluate_results(
            data.target,
            checked,
            iou_type=each,
            backend=config.backend,
            bootstrap=config.bootstrap,
            max_detections=limits_up_to(config.max_dets),
            occlusion=config.occlusion and each == "segm",
        )
        for each in sorted(kinds)
    }


def _steps(context: RunContext, found: Mapping[str, _Found], best: str) -> list[Variant]:
    """What each step gave: every member step by step, then the steps of the run.

    Args:
        context: Of the run.
        found: By name; see `result_files`.
        best: The member that the first step is compared with.
    """
    members = context.recipe.detecting_members
    rows = [row for name in members for row in _member_steps(context, name, found[name])]
    base = _outcome_title(context, best)
    for step in _run_steps(context):
        rows.append(found[step.name].as_variant(step.name, base))
        base = step.name
    return rows


def _run_steps(context: RunContext) -> tuple[Step, ...]:
    return run_steps(context.recipe, context.root)


def _member_steps(context: RunContext, name: str, found: _Found) -> list[Variant]:
    """Every way in which the member's candidates become detections; the last is its outcome."""
    if context.member(name).model is None:
        return [found.as_variant(name)]
    *before, last = ways_of(context, name)
    rows = [Variant(name=way.title, results=_results(context, name, way)) for way in before]
    rows.append(found.as_variant(last.title))
    return [rows[0], *(replace(row, base=before.name) for before, row in zip(rows, rows[1:], strict=False))]


def _outcome_title(context: RunContext, name: str) -> str:
    """What a member's own outcome is called in the table."""
    return name if name in context.recipe.foreign_members else ways_of(context, name)[-1].title


def _results(context: RunContext, name: str, way: Way) -> Detections:
    return detections_with(context, name, way.config, split=context.data.evaluated, views=way.views)
