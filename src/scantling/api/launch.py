"""Runs, suites and ablations that a cluster does: launch slurm."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from scantling.api.run import folder_of_ablation, recipe_and_folder
from scantling.api.suite import folder_of_suite
from scantling.errors import UsageError, did_you_mean
from scantling.run.engines.slurm import Allocation, Launched, Work, submit
from scantling.settings.paths import require_folder

if TYPE_CHECKING:
    from scantling.recipe.recipe import Recipe

LaunchedVerb: TypeAlias = Literal["run", "suite", "ablate"]


def launch_slurm(
    recipe: str | Path,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    device: str = "auto",
    units: int = 1,
    slurm: Allocation | None = None,
    verb: LaunchedVerb = "run",
) -> Launched:
    """Submit an array of Slurm jobs that do what a verb does, each the next stage that nobody does.

    Run folder and data must be seen by all machines under the same path.

    Args:
        recipe: As the verb takes it.
        data: As the verb takes it.
        out: As the verb takes it; an earlier run there is gone on with.
        overrides: As in `run`.
        seed: As in `run`.
        device: As in `run`; `auto` is a GPU where each unit is given one.
        units: Jobs in the array: stages that are done at a time.
        slurm: What each of them is given.
        verb: `run`, `suite` or `ablate`.

    Raises:
        ScantlingError: As the verb has it; or Slurm is not here or refuses. Then nothing was written.
    """
    if verb not in get_args(LaunchedVerb):
        near = did_you_mean(verb, get_args(LaunchedVerb))
        raise UsageError(f"{verb!r} is nothing that jobs do together{near}", hint="run, suite or ablate")
    if units < 1:
        raise UsageError(f"at least one unit is needed, not {units}")
    if verb == "run":
        loaded, folder = recipe_and_folder(recipe, data, out, overrides=overrides, seed=seed)
        checked: Recipe = loaded  # type: ignore[assignment] # a recipe was given, so it is none that is chosen
        work = _run_of(checked, folder)
    else:
        if data is None:
            raise UsageError(f"{verb} needs --data")
        make = _suite_of if verb == "suite" else _ablation_of
        work = make(recipe, Path(data), out, overrides, seed)
    return submit(work, units=units, device=device, allocation=slurm or Allocation())


def _run_of(recipe: Recipe, folder: Path) -> Work:
    from scantling.run.pipeline import check_run, run_recipe

    return Work(out=folder, do=partial(run_recipe, recipe), check=partial(check_run, recipe, folder))


def _ablation_of(
    recipe: str | Path, data: Path, out: str | Path | None, overrides: Iterable[str], seed: int | None
) -> Work:
    from scantling.recipe.recipe import load_recipe
    from scantling.run.ablation import ablate_recipe, with_variants
    from scantling.run.factors import ablate_factors, check_factors
    from scantling.run.pipeline import check_run

    require_folder(data, "data set")
    loaded, folder = load_recipe(recipe, overrides).on(data=data, seed=seed), folder_of_ablation(recipe, out)
    if loaded.ablation is None:
        check = partial(check_run, with_variants(loaded), folder)
        return Work(out=folder, do=partial(ablate_recipe, loaded), check=check)
    return Work(out=folder, do=partial(ablate_factors, loaded), check=partial(check_factors, loaded, folder))


def _suite_of(
    recipe: str | Path, data: Path, out: str | Path | None, overrides: Iterable[str], seed: int | None
) -> Work:
    from scantling.recipe.suite import load_suite
    from scantling.run.suite import check_suite, do_suite

    require_folder(data, "folder of data sets")
    loaded, folder, data = load_suite(recipe, overrides), folder_of_suite(recipe, out), data.absolute()
    return Work(
        out=folder,
        do=partial(do_suite, loaded, data, seed=seed),
        check=partial(check_suite, loaded, data, folder, seed=seed),
    )
