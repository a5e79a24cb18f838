"""The verb that runs a recipe on every data set of a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from scantling.run.engines.choice import Engine
from scantling.settings.paths import require_folder

if TYPE_CHECKING:
    from scantling.run.suite_summary import SuitePlan, SuiteSummary


def suite(
    recipe: str | Path,
    data: str | Path,
    out: str | Path | None = None,
    *,
    sets: Iterable[str] = (),
    overrides: Iterable[str] = (),
    seed: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    jobs: int | Engine = 1,
) -> SuiteSummary:
    """Run a recipe, or the recipes of a suite together, on every data set of a folder; one table over all.

    Args:
        recipe: Name of a shipped suite or recipe, or a YAML file.
        data: Folder whose sub-folders are data sets, in any format.
        out: Folder for a run folder of each data set, and for the tables; None is `runs/RECIPE`.
        sets: Names of the data sets to take; empty takes all.
        overrides: `KEY.PATH=VALUE` texts that replace values of the recipe on every data set.
        seed: Of all randomness; None takes the recipe's own.
        device: As in `run`.
        overwrite: Start the run of every set over.
        jobs: Stages, of whichever data sets, that are done side by side, each in a process of its own (and on a GPU of
            its own where there are several). An `Engine` has them done by a cluster.

    Raises:
        ScantlingError: Recipe, folders or device cannot be used. What goes wrong with one data set is not raised, but
            told in the summary's `failures`.
    """
    engine = Engine.of(jobs)
    require_folder(Path(data), "folder of data sets")
    from scantling.recipe.suite import load_suite
    from scantling.run.suite import run_suite

    return run_suite(
        load_suite(recipe, overrides),
        Path(data),
        folder_of_suite(recipe, out),
        sets=tuple(sets),
        seed=seed,
        device=device,
        overwrite=overwrite,
        engine=engine,
    )


def plan_suite(
    recipe: str | Path,
    data: str | Path,
    out: str | Path | None = None,
    *,
    sets: Iterable[str] = (),
    overrides: Iterable[str] = (),
    seed: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> SuitePlan:
    """What `suite` would do with these arguments, data set by data set; nothing is written.

    The arguments are those of `suite`.
    """
    require_folder(Path(data), "folder of data sets")
    from scantling.recipe.suite import load_suite
    from scantling.run import suite as suites

    return suites.plan_suite(
        load_suite(recipe, overrides),
        Path(data),
        folder_of_suite(recipe, out),
        sets=tuple(sets),
        seed=seed,
        device=device,
        overwrite=overwrite,
    )


def folder_of_suite(recipe: str | Path, out: str | Path | None) -> Path:
    """The given folder, else `runs/RECIPE`."""
    return Path(out) if out is not None else Path("runs") / Path(recipe).stem
