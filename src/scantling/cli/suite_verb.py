"""The verb suite: a recipe on every data set of a folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scantling.cli.run_verbs import (
    AddressOption,
    EngineOption,
    OverwriteOption,
    PlanOption,
    SetOption,
    StrictOption,
    data_overrides,
)
from scantling.cli.shell import DeviceOption, JsonOption, SeedOption, SkipOption, show, verb
from scantling.errors import ScantlingError

if TYPE_CHECKING:
    from scantling.run.suite_summary import SuiteSummary


@verb
def suite(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped suite or recipe, or a YAML file.")],
    data: Annotated[Path, typer.Option(help="Folder whose sub-folders are data sets, in any format.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the run of each set and the tables; runs/RECIPE if left out."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[,NAME]", help="Only these data sets; may be repeated. All if left out."),
    ] = None,
    overrides: SetOption = None,
    skip_invalid: SkipOption = False,
    strict: StrictOption = False,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    jobs: Annotated[
        int,
        typer.Option(
            min=1,
            help="Stages of all data sets done side by side, each in a process of its own, on one machine.",
        ),
    ] = 1,
    engine: EngineOption = "local",
    address: AddressOption = None,
    plan: PlanOption = False,
    json: JsonOption = False,
) -> None:
    """Run a recipe on every data set of a folder, and print one table over all.

    Each set is an ordinary run. What is done and unchanged is not done again. Exit code 2 when a set failed.
    """
    from scantling import api

    options = data_overrides(overrides, skip_invalid=skip_invalid, strict=strict)
    names = [name.strip() for given in sets or () for name in given.split(",") if name.strip()]
    who = api.Engine(name=engine, jobs=jobs, address=address)
    do = api.plan_suite if plan else partial(api.suite, jobs=who)
    summary = do(
        recipe, data, out, sets=names, overrides=options, seed=seed, device=device, overwrite=overwrite
    )
    show(summary.to_text(), summary.to_dict(), as_json=json)
    if not plan:
        _tell_failures(summary)  # type: ignore[arg-type] # not a plan


def _tell_failures(summary: SuiteSummary) -> None:
    """End as the worst of the failures would.

    Raises:
        ScantlingError: Some sets failed.
        RuntimeError: One of them by a bug.
    """
    failed = summary.failures
    told = f"{len(failed)} of {len(summary.results)} data sets failed: {', '.join(failed)}"
    if summary.bugs:
        raise RuntimeError(f"{told}; {failed[summary.bugs[0]]}")
    if failed:
        raise ScantlingError(
            told, hint="The same command does what is missing; --sets NAME takes a single one."
        )
