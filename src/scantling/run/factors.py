"""An ablation of any factors: the run of a recipe with each combination of them, and one table over all.

    recipe, factors ─► for each combination: the run OUT/combinations/NAME ─► its last detections ─► ablation.md
                       ablation.json: rows with paired intervals, and the main effects of a full design

Each combination is an ordinary run. What one of them has trained, another takes over where the inputs of the stage are
the same (`RunFolder.lenders`): of all with the same member, the first trains it and the others wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from scantling.data.coco import CocoDataset
from scantling.data.io import atomic_write, read_json, write_json
from scantling.data.splits import read_run_data
from scantling.errors import ConfigError, UsageError, in_a_line
from scantling.evaluate.bootstrap import weights_with_all
from scantling.evaluate.compare import resampled_metrics
from scantling.evaluate.effects import Effect, effects_text, main_effects
from scantling.evaluate.inputs import IouType
from scantling.evaluate.variants import Variant, VariantTable, compare_variants
from scantling.recipe.factors import AblationConfig, FactorCombination, combinations_of, overrides_of
from scantling.recipe.recipe import Recipe, fingerprint, parse_recipe
from scantling.run.ablation import JSON, TEXT
from scantling.run.context import Workplace
from scantling.run.engines.choice import ONE_AFTER_THE_OTHER, Engine, check_engine
from scantling.run.engines.shared_folder import WholeTerms
from scantling.run.folder import METRICS, RECIPE, RunFolder, check_run_folder, write_environment
from scantling.run.pipeline import available_for, check_run, stages_of
from scantling.run.results import own_results
from scantling.run.running import COMBINATIONS
from scantling.run.several import do_runs, open_whole
from scantling.run.stages.evaluation import judged_by_metrics, result_files
from scantling.train.devices import join_processes, resolve_device
from scantling.train.progress import Facts

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorSummary:
    """What an ablation of factors found.

    Attributes:
        out: Its folder.
        table: A row for each combination.
        effects: The factors' main effects; none but of a full design.
        text: Both with what they were measured on.
    """

    out: Path
    table: VariantTable
    effects: tuple[Effect, ...]
    text: str

    def to_text(self) -> str:
        """For people."""
        return f"{self.text}\n\n{self.out / TEXT}"

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        effects = [asdict(effect) for effect in self.effects]
        return {"out": str(self.out), "table": self.table.to_dict(), "effects": effects}


def ablate_factors(
    recipe: Recipe,
    out: Path,
    *,
    device: str = "auto",
    overwrite: bool = False,
    engine: Engine = ONE_AFTER_THE_OTHER,
) -> FactorSummary:
    """Run a recipe with each combination of its factors, and measure what they give.

    Args:
        recipe: With `data.root` and `ablation`.
        out: Folder of the ablation; that of an earlier one is continued.
        device: As in `run_recipe`.
        overwrite: Start the run of every combination over.
        engine: Who does the stages of all combinations.

    Raises:
        ScantlingError: As in `run_recipe`; or a factor does not fit the recipe.
    """
    config, recipes = _config_and_recipes(recipe, out)
    chosen = resolve_device(device)
    processes = join_processes(chosen)
    place = Workplace(
        root=out,
        device=chosen,
        devices=available_for(device, chosen),
        console=Console(stderr=True, quiet=not log.isEnabledFor(logging.INFO)),
        processes=processes,
    )
    check_engine(engine, place)
    folders = {f"{COMBINATIONS}/{name}": one for name, one in recipes.items()}
    facts = partial(_write_facts, place, recipe)
    terms = WholeTerms(recipes=folders, device=chosen, settings=config.model_dump(mode="json"))
    with open_whole(place, terms, facts, engine=engine, overwrite=overwrite) as (run, engine_of_runs):
        folder = _CombinationRuns(run)
        do_runs(
            place,
            folders,
            folder,
            build=stages_of,
            engine=engine_of_runs,
            overwrite=overwrite,
            after=owners_of(folders),
        )
        folder.require_all()
        return processes.on_main(partial(_measure, out, recipes, config))


def check_factors(recipe: Recipe, out: Path, *, device: str, elsewhere: bool) -> None:
    """Find what cannot work before an ablation of factors is begun; nothing is written.

    Args:
        recipe: As in `ablate_factors`.
        out: As in `ablate_factors`.
        device: As in `ablate_factors`.
        elsewhere: As in `check_run`.

    Raises:
        ScantlingError: As in `ablate_factors`.
    """
    check_run_folder(out)
    _, recipes = _config_and_recipes(recipe, out)
    for name, one in recipes.items():
        check_run(one, out / COMBINATIONS / name, device=device, elsewhere=elsewhere)


def _config_and_recipes(recipe: Recipe, out: Path) -> tuple[AblationConfig, dict[str, Recipe]]:
    """The factors of a recipe, and the recipe with each combination of them, by folder.

    Raises:
        ScantlingError: It has none, one does not fit it, or the folder is that of a single run.
    """
    if recipe.ablation is None:
        raise UsageError("the recipe has no `ablation`")
    if (out / METRICS).is_file():
        raise UsageError(f"{out}: is the folder of a single run", hint="Choose another --out.")
    combinations = combinations_of(recipe.ablation)
    return recipe.ablation, {each.folder: recipe_with(recipe, recipe.ablation, each) for each in combinations}


def recipe_with(recipe: Recipe, config: AblationConfig, combination: FactorCombination) -> Recipe:
    """The recipe with the factors of a combination, and without the ablation.

    Raises:
        ConfigError: A factor does not fit the recipe, or changes nothing in it.
    """
    found = recipe.model_copy(update={"ablation": None})
    for name in combination.factors:
        place = f"ablation.factors.{name}"
        try:
            changed = parse_recipe(found.to_yaml(), file=place, overrides=overrides_of(config.factors[name]))
        except ConfigError as error:
            raise ConfigError(f"{place}: {error.message}", hint=error.hint) from error
        if changed == found:
            hint = "Look at the keys: does the recipe say the same already, or has no member such a section?"
            raise ConfigError(f"{place}: changes nothing in the recipe", hint=hint)
        found = changed
    return found


def owners_of(recipes: Mapping[str, Recipe]) -> dict[str, tuple[str, ...]]:
    """For each combination those before it that train something that it trains, too.

    Args:
        recipes: By name of the combination.
    """
    first: dict[str, str] = {}
    owners: dict[str, tuple[str, ...]] = {}
    for name, recipe in recipes.items():
        keys = list(_trained(recipe))
        owners[name] = tuple(dict.fromkeys(first[key] for key in keys if key in first))
        first = dict.fromkeys(keys, name) | first
    return owners


def _trained(recipe: Recipe) -> list[str]:
    """A key for everything that a run of the recipe trains; equal keys where the stages' inputs may be equal.

    It need not be sure: what is taken over is decided by the stage's own inputs.
    """
    common = [recipe.seed, recipe.data.model_dump(mode="json")]
    pretrain = None if recipe.pretrain is None else recipe.pretrain.model_dump(mode="json")
    found: list[Any] = [] if pretrain is None else [["pretrain", pretrain]]
    for name, member in recipe.members.items():
        if member.is_trained:
            unseen = {"predict", "predictions", "image_ids", "maps", "map_values"}
            found.append([name, member.model_dump(mode="json", exclude=unseen)])
    if recipe.refine is not None:
        found.append(["refine", recipe.refine.model_dump(mode="json", exclude={"gate"})])
    return [fingerprint([*common, each]) for each in found]


@dataclass(frozen=True, slots=True)
class _CombinationRuns:
    """The open folder of an ablation: none of the runs is worth much alone."""

    run: RunFolder

    def expect(self, names: Sequence[str]) -> None:
        """Note which runs there are."""
        self.run.expect(list(map(_short, names)))

    def begin(self, name: str) -> None:
        """Note that a run is begun."""
        self.run.note(_short(name), "running")

    def end(self, name: str) -> None:
        """Note that a run is done."""
        self.run.note(_short(name), "done")

    def fail(self, name: str, error: Exception) -> None:
        """Note that a run could not be done; the others go on."""
        self.run.failures[_short(name)] = error
        log.error("%s failed: %s", _short(name), in_a_line(error))
        self.run.note(_short(name), "failed")

    def require_all(self) -> None:
        """End an ablation of which a run is missing.

        Raises:
            Exception: What the first run raised that failed.
        """
        self.run.require_all()

    def progress(self, name: str, facts: Facts) -> None:
        """Note how a run comes along, and which of its stages is being done."""
        self.run.progress(_short(name), facts)


def _short(name: str) -> str:
    return name.removeprefix(f"{COMBINATIONS}/")


def _write_facts(context: Workplace, recipe: Recipe) -> None:
    atomic_write(context.root / RECIPE, recipe.to_yaml())
    write_environment(context.root, device=context.device)


def _measure(out: Path, recipes: Mapping[str, Recipe], config: AblationConfig) -> FactorSummary:
    """The table over all combinations, written and returned."""
    first = next(iter(recipes.values()))
    masks = any(recipe.needs_masks for recipe in recipes.values())
    data = read_run_data(first.data, first.evaluate.split, with_masks=masks)
    kinds = {judged_by_metrics(out / COMBINATIONS / name) for name in recipes}
    kind: IouType = "segm" if kinds == {"segm"} else "bbox"
    combinations = combinations_of(config)
    variants = [
        _variant(out / COMBINATIONS / each.folder, recipes[each.folder], each, data.target, kind)
        for each in combinations
    ]
    table = compare_variants(
        data.target,
        variants,
        iou_type=kind,
        bootstrap=first.evaluate.bootstrap,
        max_detections=first.evaluate.max_dets,
    )
    measured = {each.factors: one.resampled for each, one in zip(combinations, variants, strict=True)}
    values = {factors: one.of(None)["AP"] for factors, one in measured.items() if one is not None}
    effects = main_effects(values, tuple(config.factors)) if config.design == "full" else ()
    where = f"{data.evaluated}, {table.num_images} images, {kind}"
    notes = [f"Measured on {where}; intervals from {table.num_resamples} paired resamples of the images."]
    if data.evaluated == "val":
        notes.append("The best epochs, and what is tuned, were chosen on the same images.")
    parts = [" ".join(notes), table.to_text()]
    if effects:
        parts.append(f"**Each factor, over all settings of the others**\n\n{effects_text(effects)}")
    summary = FactorSummary(out=out, table=table, effects=effects, text="\n\n".join(parts))
    atomic_write(out / TEXT, summary.text + "\n")
    write_json(out / JSON, {**table.to_dict(), "effects": list(map(asdict, effects))}, indent=2)
    return summary


def _variant(
    root: Path, recipe: Recipe, combination: FactorCombination, target: CocoDataset, kind: IouType
) -> Variant:
    """What the run of a combination has found in the end, measured."""
    last = cast("dict[str, Any]", read_json(root / METRICS)).get("stage")
    if last is None:
        raise UsageError(f"{root}: no member finds objects, so there is nothing to measure")
    results = own_results(root, result_files(recipe)[last], target)
    weights = weights_with_all(len(target), recipe.evaluate.bootstrap)
    limit = recipe.evaluate.max_dets
    measured = resampled_metrics(target, results, kind, weights, max_detections=limit)
    return Variant(name=combination.title, results=results, base=combination.base, resampled=measured)
