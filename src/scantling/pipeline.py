"""A recipe becomes a run: stages in order, each done once.

    check data ─► resolve `auto` ─► for each member: train ─► predict ─► evaluate ─► report

Nothing is written before all of the data has been checked. Later methods (pretraining, ensembles,
refinement) are further stages: a function that returns a `Stage`, and a line in `run_recipe`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import nn

from scantling.auto_recipe import OpenRecipe, settle
from scantling.config import MemberConfig, Recipe
from scantling.data.coco import CocoDataset, write_results
from scantling.data.dataset import DetectionDataset
from scantling.data.io import atomic_write, read_json, sha256_of, write_json
from scantling.data.loader import LoaderConfig, TrainLoader
from scantling.data.transforms import build_transforms
from scantling.errors import ConfigError
from scantling.evaluate.coco_eval import Evaluation, evaluate_results, metrics_json
from scantling.evaluate.problem import Result
from scantling.models.two_stage import Detector
from scantling.models.zoo import build_model
from scantling.predict.whole_set import predict_dataset
from scantling.report.build import RunFacts, build_content, read_run
from scantling.report.content import ReportContent
from scantling.report.html import write_report
from scantling.resolve import Resolution, decided
from scantling.run_data import RunData, describe_run_data, log_run_data, measure, read_run_data
from scantling.run_folder import (
    CATEGORIES,
    DATA,
    METRICS,
    RECIPE,
    REPORT,
    check_run_folder,
    open_run,
    write_environment,
)
from scantling.stage import Stage
from scantling.train.checkpoint import CheckpointMeta, load_checkpoint, load_weights, weights_in
from scantling.train.devices import ALONE, Processes, join_processes, require_precision, resolve_device
from scantling.train.history import CSV_NAME, JSONL_NAME
from scantling.train.keeper import BEST_NAME, LAST_NAME, PREVIOUS_NAME
from scantling.train.loop import RunInfo, fit, resumable

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.json"
TABLE = "evaluate/table.txt"
HEADLINE = "bbox/AP"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What every stage may look at.

    Attributes:
        root: The run folder.
        recipe: Without `auto`.
        data: All splits, checked.
        device: Where models compute.
        console: Where progress is shown.
        processes: Those that do the run together (`torchrun`).
    """

    root: Path
    recipe: Recipe
    data: RunData
    device: torch.device
    console: Console
    processes: Processes = ALONE

    def member_folder(self, name: str) -> Path:
        """Folder of a member's files."""
        return self.root / "members" / name


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run reached.

    Attributes:
        out: The run folder.
        metrics: Content of `metrics.json`.
        table: COCO table of the member the metrics are of.
    """

    out: Path
    metrics: Mapping[str, Any]
    table: str

    def to_text(self) -> str:
        """For people: the table, the headline number, where the report is."""
        ap = self.metrics[HEADLINE]
        value = "undefined" if ap is None else f"{ap:.3f}"
        headline = f"{HEADLINE} {value} on {self.metrics['split']} (member {self.metrics['member']})"
        return "\n".join([self.table, "", headline, f"report: {self.out / REPORT}"])

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"out": str(self.out), "report": str(self.out / REPORT), "metrics": dict(self.metrics)}


def run_recipe(
    recipe: Recipe | OpenRecipe, out: Path, *, device: str = "auto", overwrite: bool = False
) -> RunSummary:
    """Do what a recipe says; what is done and unchanged is kept, what was interrupted goes on.

    Args:
        recipe: With `data.root`; may hold `auto`, or be one that is chosen for the data.
        out: Run folder; that of an earlier run of the same recipe is continued.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        overwrite: Start over in the folder of an earlier run.

    Raises:
        ScantlingError: The data, a setting, the device or the folder cannot be used; then nothing was written.
        Interrupted: SIGINT or SIGTERM arrived; everything is saved.
    """
    chosen = resolve_device(device)
    processes = join_processes(chosen)
    data, (resolved, reasons) = processes.on_main(partial(_prepare, recipe, out, chosen, processes))
    console = Console(stderr=True, quiet=not log.isEnabledFor(logging.INFO))
    context = RunContext(
        root=out, recipe=resolved, data=data, device=chosen, console=console, processes=processes
    )
    with processes.together():
        check_members(context, begun=not overwrite)
    with open_run(out, overwrite=overwrite, processes=processes) as run:
        processes.on_main(partial(_write_facts, context, reasons))
        for name in resolved.members:
            run.do(train_stage(context, name))
            run.do(predict_stage(context, name))
        run.do(evaluate_stage(context), alone=True)
        run.do(report_stage(context), alone=True)
    return processes.on_main(partial(summarise, out))


def _prepare(
    recipe: Recipe | OpenRecipe, out: Path, device: torch.device, processes: Processes
) -> tuple[RunData, Resolution]:
    """The checked data, and the recipe without `auto`: what one process finds out for all."""
    check_run_folder(out)
    data = read_run_data(recipe.data, recipe.evaluate.split)
    return data, settle(recipe, measure(data.train, device, processes))


def summarise(out: Path) -> RunSummary:
    """The outcome of a finished run, from its folder."""
    metrics = cast("dict[str, Any]", read_json(out / METRICS))
    return RunSummary(out=out, metrics=metrics, table=(out / TABLE).read_text(encoding="utf-8").rstrip("\n"))


def check_members(context: RunContext, *, begun: bool) -> None:
    """Find what cannot work before anything is written.

    Args:
        context: Of the run.
        begun: Compare with what an earlier run left in the folder.

    Raises:
        ConfigError: A model cannot be built, a category is unknown, or the folder holds training of other
            settings or data.
        UsageError: The device cannot compute in the precision that is asked for.
    """
    for name in context.recipe.members:
        try:
            _check_member(context, name)
        except ConfigError as error:
            raise ConfigError(f"members.{name}: {error.message}", hint=error.hint) from error
        if begun:
            train_stage(context, name).is_done(context.root)


def _check_member(context: RunContext, name: str) -> None:
    member, class_names = context.recipe.members[name], context.data.train.class_names
    require_precision(member.train.precision, context.device)
    member.predict.suppress.thresholds(class_names)
    with torch.device("meta"):  # shapes only: nothing is allocated or initialised
        build_model(member.model.model_copy(update={"init": "random"}), len(class_names))


def train_stage(context: RunContext, name: str) -> Stage:
    """Train a member; its settings of prediction are no inputs, so changing them keeps the weights."""
    member, data = context.recipe.members[name], context.data
    inputs = {
        "seed": context.recipe.seed,
        "classes": list(data.train.class_names),
        "data": {split: data.hashes[split] for split in ("train", "val")},
        "model": member.model.model_dump(mode="json"),
        "augment": member.augment.model_dump(mode="json"),
        "train": member.train.result_settings(),
    }
    folder = f"members/{name}"
    stage = Stage(
        folder=folder,
        name="train",
        inputs=inputs,
        outputs=tuple(f"{folder}/{file}" for file in (BEST_NAME, JSONL_NAME, CSV_NAME)),
        working_files=tuple(f"{folder}/{file}" for file in (LAST_NAME, PREVIOUS_NAME)),
        action=lambda: _train(context, name, stage.inputs_sha256),
        costly=True,
    )
    return stage


def predict_stage(context: RunContext, name: str) -> Stage:
    """Predict the evaluated split with a member's best weights."""
    member, folder = context.recipe.members[name], f"members/{name}"
    inputs = {
        "weights": sha256_of(context.root / folder / BEST_NAME),
        "predict": member.predict.model_dump(mode="json", exclude={"workers"}),
        "data": context.data.hashes[context.data.evaluated],
    }
    outputs = (f"{folder}/{PREDICTIONS}",)
    return Stage(
        folder=folder, name="predict", inputs=inputs, outputs=outputs, action=partial(_predict, context, name)
    )


def evaluate_stage(context: RunContext) -> Stage:
    """Official numbers of every member; the best member's become the run's."""
    inputs = {
        "predictions": _prediction_hashes(context),
        "data": context.data.hashes[context.data.evaluated],
        "split": context.data.evaluated,
        "bootstrap": context.recipe.evaluate.bootstrap,
    }
    outputs = (METRICS, TABLE)
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
    best = summarise(root).metrics["member"]
    facts = read_run(root, data.target, commands=_commands(root, recipe))
    stages = {name: results for name, results in facts.stages.items() if name != best}
    facts = replace(facts, stages={**stages, best: facts.stages[best]})
    title = f"{Path(recipe.data.root or '').name}: {', '.join(recipe.members)}"
    return write_report(root / REPORT, _content(title, data, facts, recipe.evaluate.bootstrap))


def _content(title: str, data: RunData, facts: RunFacts, bootstrap: int) -> ReportContent:
    created = datetime.now().astimezone()
    return build_content(
        title, data.splits, facts, split=data.evaluated, created=created, bootstrap=bootstrap
    )


def _commands(root: Path, recipe: Recipe) -> list[str]:
    """How to get this run again, and how to use it."""
    return [
        f"scantling run {root / RECIPE} --out {root.with_name(root.name + '-again')}",
        f"scantling predict {recipe.data.root} --run {root} --out predictions.json",
    ]


def _write_facts(context: RunContext, reasons: Iterable[str]) -> None:
    """Everything that is known before the first stage."""
    log_run_data(context.data)
    for reason in reasons:
        log.info("%s", reason)
    categories = [
        {"id": category.id, "name": category.name, "label": label}
        for label, category in enumerate(context.data.train.categories)
    ]
    atomic_write(context.root / RECIPE, context.recipe.to_yaml())
    write_json(context.root / CATEGORIES, categories, indent=2)
    write_json(context.root / DATA, describe_run_data(context.data), indent=2)
    write_environment(context.root, device=context.device)


def _train(context: RunContext, name: str, recipe_hash: str) -> None:
    member, data = context.recipe.members[name], context.data
    out = context.member_folder(name)
    begun = context.processes.from_main(resumable(out))
    log.info("%s: %s", name, "training goes on" if begun else "training")
    meta = CheckpointMeta(
        class_names=data.train.class_names,
        category_ids=data.train.category_ids,
        model=member.model.model_dump(mode="json"),
        predict=member.predict.model_dump(mode="json"),
        recipe_hash=recipe_hash,
        data_hash=data.hashes["train"],
    )
    run = RunInfo(
        seed=context.recipe.seed,
        meta=meta,
        device=str(context.device),
        resume=begun,
        overwrite=not begun,
        validate=partial(_validate, context, member),
        console=context.console,
    )
    loader = _loader(context, member)
    try:
        fit(initial_model(context, name), loader, member.train, out=out, run=run)
    finally:
        loader.close()


def initial_model(context: RunContext, name: str) -> nn.Module:
    """A member before training; its random weights depend on the seed and the member's name only."""
    digest = hashlib.sha256(f"{context.recipe.seed} {name} weights".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        return build_model(context.recipe.members[name].model, len(context.data.train.class_names))


def _loader(context: RunContext, member: MemberConfig) -> TrainLoader:
    transforms = build_transforms(member.augment)
    config = LoaderConfig(
        batch_size=decided(member.train.batch_size),
        repeats=decided(member.train.repeats),
        workers=decided(member.train.workers),
        rank=context.processes.rank,
        world=context.processes.world,
    )
    return TrainLoader(DetectionDataset(context.data.train, transforms, seed=context.recipe.seed), config)


def _validate(context: RunContext, member: MemberConfig, model: nn.Module) -> dict[str, float | None]:
    results = _results(context, cast("Detector", model), member, context.data.val)
    judge = partial(evaluate_results, context.data.val, results, backend=context.recipe.evaluate.backend)
    return context.processes.on_main(lambda: {f"bbox/{key}": v for key, v in judge().metrics.items()})


def _results(
    context: RunContext, model: Detector, member: MemberConfig, dataset: CocoDataset
) -> list[Result]:
    return predict_dataset(model, member.predict, dataset, context.device, context.processes)


def _predict(context: RunContext, name: str) -> None:
    member, target = context.recipe.members[name], context.data.target
    path = context.member_folder(name) / BEST_NAME
    log.info("%s: predicting the %d images of %s", name, len(target), context.data.evaluated)
    model = build_model(member.model.model_copy(update={"init": "random"}), len(target.class_names))
    load_weights(model, weights_in(load_checkpoint(path).tensors), source=path)
    results = _results(context, model, member, target)
    context.processes.on_main(lambda: write_results(results, context.member_folder(name) / PREDICTIONS))


def _evaluate(context: RunContext) -> None:
    evaluations = {name: _evaluate_member(context, name) for name in context.recipe.members}
    best = max(evaluations, key=lambda name: evaluations[name].metrics["AP"] or 0.0)
    metrics = {
        **metrics_json([evaluations[best]]),
        "split": context.data.evaluated,
        "member": best,
        "members": {name: metrics_json([found]) for name, found in evaluations.items()},
    }
    write_json(context.root / METRICS, metrics, indent=2)
    atomic_write(context.root / TABLE, evaluations[best].table + "\n")


def _evaluate_member(context: RunContext, name: str) -> Evaluation:
    results = cast("list[Result]", read_json(context.member_folder(name) / PREDICTIONS))
    config = context.recipe.evaluate
    return evaluate_results(context.data.target, results, backend=config.backend, bootstrap=config.bootstrap)


def _prediction_hashes(context: RunContext) -> dict[str, str]:
    return {name: sha256_of(context.member_folder(name) / PREDICTIONS) for name in context.recipe.members}
