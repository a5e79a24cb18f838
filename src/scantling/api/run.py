"""The verbs that fill a run folder, as functions: run, demo, train, ablate; its report, and how it stands."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from scantling.api.data import synth
from scantling.errors import UsageError
from scantling.run.engines.choice import Engine
from scantling.settings.paths import require_existing, require_folder

if TYPE_CHECKING:
    from scantling.recipe.recipe import Recipe
    from scantling.recipe.suggest import OpenRecipe
    from scantling.run.ablation import AblationSummary
    from scantling.run.factors import FactorSummary
    from scantling.run.plan import Plan
    from scantling.run.run_summary import RunSummary
    from scantling.run.status import RunStatus

log = logging.getLogger(__name__)

DEMO_RECIPE = "parts-cpu"
DEMO_SPLITS: Mapping[str, int] = {"train": 140, "val": 32, "test": 50}


def run(
    recipe: str | Path,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    jobs: int | Engine = 1,
) -> RunSummary:
    """Do everything a recipe says, into a run folder; what is done and unchanged is not done again.

    Args:
        recipe: Name of a shipped recipe, or a YAML file.
        data: Folder of the data set; None takes the recipe's own.
        out: Run folder; None is `runs/RECIPE`.
        overrides: `KEY.PATH=VALUE` texts that replace values of the recipe.
        seed: Of all randomness; None takes the recipe's own.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        overwrite: Start over in the folder of an earlier run.
        jobs: Stages that are done side by side, each in a process of its own (and on a GPU of its own where there are
            several); the result is the same to the bit. An `Engine` has them done by a cluster.

    Raises:
        ScantlingError: Recipe, data, device or folder cannot be used; then nothing was written.
    """
    loaded, folder = recipe_and_folder(recipe, data, out, overrides=overrides, seed=seed)
    from scantling.run.pipeline import run_recipe

    return run_recipe(loaded, folder, device=device, overwrite=overwrite, engine=Engine.of(jobs))


def plan(
    recipe: str | Path | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> Plan:
    """What `run`, or `train`, would do with these arguments, stage by stage, and why; nothing is written.

    The arguments are those of `run`; without a recipe, those of `train`.
    """
    loaded, folder = recipe_and_folder(recipe, data, out, overrides=overrides, seed=seed)
    from scantling.run.pipeline import plan_recipe

    return plan_recipe(loaded, folder, device=device, overwrite=overwrite)


def recipe_and_folder(
    recipe: str | Path | None,
    data: str | Path | None,
    out: str | Path | None,
    *,
    overrides: Iterable[str],
    seed: int | None,
) -> tuple[Recipe | OpenRecipe, Path]:
    """What is to be run, chosen for the data where no recipe is given, and where."""
    if data is not None:
        require_folder(Path(data), "data set")
    if recipe is not None:
        from scantling.recipe.recipe import load_recipe

        loaded = load_recipe(recipe, overrides).on(data=data, seed=seed)
        return loaded, Path(out) if out is not None else Path("runs") / Path(recipe).stem
    if data is None:
        raise UsageError("neither a recipe nor a data set is given")
    from scantling.recipe.suggest import OpenRecipe

    opened = OpenRecipe.over(data, seed=seed, overrides=overrides)
    return opened, Path(out) if out is not None else Path("runs") / Path(data).absolute().name


def demo(
    out: str | Path = "runs/demo",
    *,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    jobs: int | Engine = 1,
) -> RunSummary:
    """Generate inspection scenes beside the run folder, and run the recipe `parts-cpu` on them, up to its report.

    The scenes are in DelftBikes' format, with parts that are absent. Thresholds and weights are chosen on `val`, the
    numbers are those of `test`.

    Args:
        out: Run folder; the scenes go to a folder of that name with `-data` added.
        overrides: As in `run`.
        seed: Of training; the scenes are always the same.
        device: As in `run`.
        overwrite: As in `run`.
        jobs: As in `run`.
    """
    engine = Engine.of(jobs).unshared("demo")
    scenes = Path(out).with_name(f"{Path(out).name}-data")
    if not all((scenes / f"{split}_annotations.json").is_file() for split in DEMO_SPLITS):
        log.info("generating %d scenes in %s", sum(DEMO_SPLITS.values()), scenes)
        synth(scenes, splits=DEMO_SPLITS, layout="delftbikes", overwrite=True)
    options = ["evaluate.split=test", *overrides]
    return run(
        DEMO_RECIPE,
        scenes,
        out,
        overrides=options,
        seed=seed,
        device=device,
        overwrite=overwrite,
        jobs=engine,
    )


def train(
    data: str | Path,
    recipe: str | Path | None = None,
    out: str | Path | None = None,
    *,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    jobs: int | Engine = 1,
) -> RunSummary:
    """Train the detectors of a recipe on a data set, evaluate them and write the report.

    The arguments are those of `run`; `data` must be given. Without a recipe one is chosen for the data and the
    device, with a member called `detector`, and the run folder is `runs/NAME` with the data set's name.
    """
    loaded, folder = recipe_and_folder(recipe, data, out, overrides=overrides, seed=seed)
    from scantling.run.pipeline import run_recipe

    return run_recipe(loaded, folder, device=device, overwrite=overwrite, engine=Engine.of(jobs))


def ablate(
    data: str | Path,
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    init: str | Path | None = None,
    overrides: Iterable[str] = (),
    device: str = "auto",
    overwrite: bool = False,
    jobs: int | Engine = 1,
) -> AblationSummary | FactorSummary:
    """Measure on a data set what each step of a recipe gives, or each factor; every model is trained once.

    Args:
        data: Folder of the data set.
        recipe: Name of a shipped recipe, or a YAML file. The factors of its `ablation` are compared; where it has none,
            its first member is taken apart step by step.
        out: Run folder; None is `runs/RECIPE-ablation`.
        init: Backbone weights that the first member is trained from as well.
        overrides: As in `run`.
        device: As in `run`.
        overwrite: As in `run`.
        jobs: As in `run`.

    Raises:
        ScantlingError: As in `run`; or weights are given to a recipe with factors.
    """
    engine = Engine.of(jobs)
    require_folder(Path(data), "data set")
    if init is not None:
        require_existing(Path(init), "weights")
    from scantling.recipe.recipe import load_recipe
    from scantling.run.ablation import ablate_recipe
    from scantling.run.factors import ablate_factors

    loaded = load_recipe(recipe, overrides).on(data=data)
    folder = folder_of_ablation(recipe, out)
    if loaded.ablation is not None:
        if init is not None:
            hint = "Make it one: `ablation: {factors: {weights: {model.init: FILE}}}`."
            raise UsageError("--init is none of the recipe's factors", hint=hint)
        return ablate_factors(loaded, folder, device=device, overwrite=overwrite, engine=engine)
    weights = Path(init) if init is not None else None
    return ablate_recipe(loaded, folder, init=weights, device=device, overwrite=overwrite, engine=engine)


def folder_of_ablation(recipe: str | Path, out: str | Path | None) -> Path:
    """The given folder, else `runs/RECIPE-ablation`."""
    return Path(out) if out is not None else Path("runs") / f"{Path(recipe).stem}-ablation"


def report(run: str | Path) -> Path:
    """Write the report of a finished run anew.

    Args:
        run: Run folder.

    Returns:
        The page.

    Raises:
        UsageError: It is no run folder, or the run is not finished.
    """
    folder = require_run(Path(run))
    from scantling.data.splits import read_run_data
    from scantling.recipe.recipe import load_recipe
    from scantling.run.stages.evaluation import write_run_report

    recipe = load_recipe(folder / "recipe.yaml")
    return write_run_report(
        folder, recipe, read_run_data(recipe.data, recipe.evaluate.split, with_masks=recipe.needs_masks)
    )


def status(run: str | Path) -> RunStatus:
    """How a run stands that is going on, or has ended: stages, progress, failures, and how to go on.

    Args:
        run: Folder of a run, a suite or an ablation.

    Raises:
        UsageError: There is no run in it.
    """
    require_folder(Path(run), "run folder")
    from scantling.run.status import read_status

    return read_status(Path(run))


def require_run(path: Path) -> Path:
    """A folder with a finished run.

    Raises:
        UsageError: It is none.
    """
    require_folder(path, "run folder")
    missing = _missing_of_run(path)
    if missing:
        inside = sorted(each for each in path.iterdir() if each.is_dir() and not _missing_of_run(each))
        hint = "Finish it with `scantling run`."
        if inside:
            hint = f"There are finished runs in it: give one of them, such as {shlex.quote(str(inside[0]))}."
        raise UsageError(f"{path}: not a finished run (no {missing[0]})", hint=hint)
    return path


def _missing_of_run(path: Path) -> list[str]:
    return [name for name in ("recipe.yaml", "metrics.json") if not (path / name).is_file()]
