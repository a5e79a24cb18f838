"""The verb suite: a recipe on every data set of a folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from scantling.cli.run_verbs import (
    AddressOption,
    OverwriteOption,
    PlanOption,
    SetOption,
    SharedEngineOption,
    StrictOption,
    data_overrides,
)
from scantling.cli.shell import DeviceOption, JsonOption, SeedOption, SkipOption, show, verb


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
    engine: SharedEngineOption = "local",
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
    summary.require_all()
