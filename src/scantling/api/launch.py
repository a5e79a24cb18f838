"""Runs that a cluster does: launch slurm."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from scantling.api.run import recipe_and_folder
from scantling.errors import UsageError
from scantling.run.engines.slurm import Allocation, Launched, submit

if TYPE_CHECKING:
    from scantling.recipe.recipe import Recipe


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
) -> Launched:
    """Submit an array of Slurm jobs that do what a recipe says, each the next stage that nobody does.

    Run folder and data must be seen by all machines under the same path.

    Args:
        recipe: Name of a shipped recipe, or a YAML file.
        data: As in `run`.
        out: As in `run`; an earlier run there is gone on with.
        overrides: As in `run`.
        seed: As in `run`.
        device: As in `run`; `auto` is a GPU where each unit is given one.
        units: Jobs in the array: stages that are done at a time.
        slurm: What each of them is given.

    Raises:
        ScantlingError: As in `run`; or Slurm is not here or refuses. Then nothing was written.
    """
    loaded, folder = recipe_and_folder(recipe, data, out, overrides=overrides, seed=seed)
    if units < 1:
        raise UsageError(f"at least one unit is needed, not {units}")
    checked: Recipe = loaded  # type: ignore[assignment] # a recipe was given, so it is none that is chosen
    return submit(checked, folder, units=units, device=device, allocation=slurm or Allocation())
