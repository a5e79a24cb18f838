"""Which step helps on this data: a recipe's run, and every step taken out or exchanged alone.

    recipe ─► the same run with a member more for every other initialisation ─► candidates of all members
       ─► suppressed, fused and cleaned in many ways ─► one table, every difference with a paired interval

A model is trained once and predicted once, at all test sizes; everything else is computed from its candidates. The
tables are those of the DelftBikes report (CS21, 2021): pretraining (Table 2), test sizes (3), the whole step by step
(4), suppression (5), ensemble and elimination (6).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from scantling.combine.eliminate import EliminateConfig
from scantling.combine.ensemble import EnsembleConfig
from scantling.data.io import atomic_write, sha256_of, write_json
from scantling.errors import UsageError
from scantling.evaluate.variants import Variant, VariantTable, compare_variants
from scantling.models.suppression import SuppressConfig
from scantling.models.zoo import INIT_PRETRAIN
from scantling.recipe.recipe import CombineConfig, MemberConfig, Recipe, SemanticSection, TuneSection
from scantling.run.context import RunContext
from scantling.run.engines.choice import ONE_AFTER_THE_OTHER, Engine
from scantling.run.folder import METRICS
from scantling.run.pipeline import do_stages, prepared_run, stages_of
from scantling.run.stage import Resources, Stage
from scantling.run.stages.combining import applied_steps, member_sources
from scantling.run.stages.detecting import detections_with, num_views, read_member, suppression_of
from scantling.run.stages.evaluation import judged_by_metrics
from scantling.run.steps import ENSEMBLE, Sources, Step, combined_members, only
from scantling.structures.detections import Detections

FROM_RANDOM, FROM_FILE = "from-random", "from-file"
TEXT, JSON = "ablation.md", "ablation.json"
_FOLDER = "ablate"


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationSummary:
    """What an ablation found.

    Attributes:
        out: The run folder.
        table: All rows.
        text: The tables with what they were measured on.
    """

    out: Path
    table: VariantTable
    text: str

    def to_text(self) -> str:
        """For people."""
        return f"{self.text}\n\n{self.out / TEXT}"

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"out": str(self.out), "table": self.table.to_dict()}


def ablate_recipe(
    recipe: Recipe,
    out: Path,
    *,
    init: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    engine: Engine = ONE_AFTER_THE_OTHER,
) -> AblationSummary:
    """Run a recipe with everything switched on, and measure what each step gives.

    Args:
        recipe: With `data.root`. Its first member is the one that is taken apart; what it does not combine is
            combined at default settings.
        out: Run folder; that of an earlier ablation of the same recipe is continued.
        init: Weights of a backbone that the first member is also trained from.
        device: As in `run_recipe`.
        overwrite: As in `run_recipe`.
        engine: As in `run_recipe`.

    Raises:
        ScantlingError: As in `run_recipe`; or the first member is not trained here.
    """
    widened = with_variants(recipe, init)
    with prepared_run(widened, out, device=device, overwrite=overwrite, engine=engine) as (context, run):
        do_stages(context, run, engine=engine, build=_stages)
        return context.processes.on_main(partial(_measure, context))


def with_variants(recipe: Recipe, init: Path | None = None) -> Recipe:
    """The recipe with all combinations on, and with its first member from every other initialisation.

    Args:
        recipe: As the user wrote it.
        init: Weights of a backbone to start from as well.

    Raises:
        UsageError: The first member's predictions come from a file.
    """
    name, member = next(iter(recipe.members.items()))
    if member.model is None:
        raise UsageError(f"members.{name} is no detector that is trained here, as the first member must be")
    members = dict(recipe.members)
    if member.model.init != "random":
        members[f"{name}-{FROM_RANDOM}"] = _starting_from(member, "random")
    if init is not None:
        members[f"{name}-{FROM_FILE}"] = _starting_from(member, str(init.absolute()))
    given = recipe.combining
    combined = combined_members(recipe)
    fusable = len(recipe.map_members) == 1 and all(recipe.members[one].draws_masks for one in combined)
    combine = CombineConfig(
        members=tuple(combined),
        tune=given.tune or TuneSection(),
        ensemble=given.ensemble or (EnsembleConfig() if len(combined) > 1 else None),
        semantic=given.semantic or (SemanticSection() if fusable else None),
        eliminate=given.eliminate or EliminateConfig(),
    )
    return recipe.model_copy(update={"members": members, "combine": combine})


def _starting_from(member: MemberConfig, init: str) -> MemberConfig:
    return member.model_copy(update={"model": member.detector.model_copy(update={"init": init})})


def _stages(context: RunContext) -> tuple[Stage, ...]:
    """Those of the run, and the ablation."""
    return (*stages_of(context), _ablate_stage(context))


def _ablate_stage(context: RunContext) -> Stage:
    return Stage(
        folder=_FOLDER,
        name=_FOLDER,
        inputs=lambda: {
            "metrics": sha256_of(context.root / METRICS),
            "bootstrap": context.recipe.evaluate.bootstrap,
            **context.recipe.evaluate.limits,
        },
        needs=(METRICS,),
        outputs=(TEXT, JSON),
        whole_files=True,
        action=partial(_write, context),
        resources=Resources(gpus=1),
    )


def _write(context: RunContext) -> None:
    summary = _measure(context)
    atomic_write(context.root / TEXT, summary.text + "\n")
    write_json(context.root / JSON, summary.table.to_dict(), indent=2)


def _measure(context: RunContext) -> AblationSummary:
    table = compare_variants(
        context.data.target,
        list(variants(context)),
        iou_type=judged_by_metrics(context.root),
        bootstrap=context.recipe.evaluate.bootstrap,
        max_detections=context.recipe.evaluate.max_dets,
    )
    where = f"{context.data.evaluated}, {table.num_images} images"
    chosen = "out-of-fold predictions of train" if context.folds else "val"
    notes = [f"Measured on {where}; intervals from {table.num_resamples} paired resamples of the images."]
    notes.append(f"Thresholds and weights were chosen on {chosen}.")
    if context.data.evaluated == context.tuning_split:
        notes.append("These are the same images, so tuned rows look better than they would on others.")
    text = "\n".join([" ".join(notes), "", table.to_text()])
    return AblationSummary(out=context.root, table=table, text=text)


def variants(context: RunContext) -> Iterator[Variant]:
    """All rows of the tables."""
    name = next(iter(context.recipe.members))
    yield from _pretraining(context, name)
    yield from _test_sizes(context, name)
    yield from _suppressions(context, name)
    yield from _combinations(context, name)
    yield from _step_by_step(context, name)


def _pretraining(context: RunContext, name: str) -> Iterator[Variant]:
    own = {"random": "from random weights", INIT_PRETRAIN: "pretrained on own crops"}
    init = context.member(name).detector.init
    starts = {f"{name}-{FROM_RANDOM}": own["random"], name: own.get(init, f"from {Path(init).name}")}
    given = f"{name}-{FROM_FILE}"
    if given in context.recipe.members:
        starts[given] = f"from {Path(context.member(given).detector.init).name}"
    there = {member: title for member, title in starts.items() if member in context.recipe.members}
    suppress = context.member(name).predict.suppress
    rows = {title: _results(context, member, suppress) for member, title in there.items()}
    if len(rows) > 1:
        yield from _group("Pretraining", rows)


def _test_sizes(context: RunContext, name: str) -> Iterator[Variant]:
    views = num_views(context.member(name))
    if views == 1:
        return
    suppress, middle = context.member(name).predict.suppress, views // 2
    widths = [width for width in range(views) if middle - width >= 0 or middle + width < views]
    chosen = {tuple(range(max(0, middle - w), min(views, middle + w + 1))): None for w in widths}
    rows = {f"{len(seen)} of {views} test sizes": _results(context, name, suppress, seen) for seen in chosen}
    yield from _group("Test sizes", rows)


def _suppressions(context: RunContext, name: str) -> Iterator[Variant]:
    own = context.member(name).predict.suppress
    rows = {title: _results(context, name, config) for title, config in methods(own).items()}
    rows["per category, tuned"] = _results(context, name, suppression_of(context, name))
    yield from _group("Suppression", rows)


def methods(own: SuppressConfig) -> dict[str, SuppressConfig]:
    """The methods with one setting for all categories, at the usual overlap."""
    usual = own.model_copy(update={"iou_threshold": 0.5, "sigma": 0.5})
    names = {"NMS": "hard", "soft-NMS, gaussian": "soft_gaussian", "soft-NMS, linear": "soft_linear"}
    return {title: usual.model_copy(update={"method": method}) for title, method in names.items()}


def _combinations(context: RunContext, name: str) -> Iterator[Variant]:
    members, steps = member_sources(context, context.data.evaluated), _steps(context)
    own, title = read_member(context, name, context.data.evaluated), f"{name} alone"
    rows = {title: own, **_step_after_step(context, steps, {name: own}, title)}
    rows |= {f"{other} alone": found for other, found in members.items() if other != name}
    if len(members) > 1:
        rows |= _step_after_step(context, steps, members, "")
    yield from _group("Ensemble and elimination", rows)


def _steps(context: RunContext) -> tuple[Step, ...]:
    return applied_steps(context)


def _step_after_step(
    context: RunContext, steps: Sequence[Step], found: Sources, title: str
) -> dict[str, Detections]:
    """What comes out of the steps one after the other, under names that say which; one member is not fused."""
    rows = {}
    for step in steps:
        if step.name == ENSEMBLE and len(found) == 1:
            continue
        found = step.apply(found, context.data.target)
        title = f"{title}, {step.title}" if title else step.title
        rows[title] = only(found)
    return rows


def _step_by_step(context: RunContext, name: str) -> Iterator[Variant]:
    """Everything off, then one step more in every row; each row is compared with the one before."""
    plain = methods(context.member(name).predict.suppress)["NMS"]
    views, members = num_views(context.member(name)), member_sources(context, context.data.evaluated)
    middle, rows = [views // 2], dict[str, Detections]()
    untrained = f"{name}-{FROM_RANDOM}"
    if untrained in context.recipe.members:
        rows["base"] = _results(context, untrained, plain, middle)
    rows[_step_title(context, name) if rows else "base"] = _results(context, name, plain, middle)
    if views > 1:
        rows["+ test sizes"] = _results(context, name, plain)
    rows["+ tuned soft-NMS"] = _results(context, name, suppression_of(context, name))
    for title, found in _step_after_step(context, _steps(context), members, "").items():
        rows[f"+ {title.rpartition(', ')[2]}"] = found
    steps = list(_group("Step by step, each row compared with the one before", rows))
    yield steps[0]
    yield from (replace(row, base=before.name) for before, row in zip(steps, steps[1:], strict=False))


def _step_title(context: RunContext, name: str) -> str:
    return (
        "+ own-crop pretraining"
        if context.member(name).detector.init == INIT_PRETRAIN
        else "+ initial weights"
    )


def _group(title: str, rows: Mapping[str, Detections]) -> Iterator[Variant]:
    """Rows of one table; all but the first are compared with the first."""
    names = list(rows)
    for name, results in rows.items():
        base = None if name == names[0] else names[0]
        yield Variant(name=name, results=results, base=base, group=title)


def _results(
    context: RunContext, name: str, config: SuppressConfig, views: Sequence[int] | None = None
) -> Detections:
    return detections_with(context, name, config, split=context.data.evaluated, views=views)
