"""Verbs that submit runs to a cluster: launch slurm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scantling.cli.run_verbs import OutOption, SetOption
from scantling.cli.shell import DeviceOption, JsonOption, SeedOption, show
from scantling.cli.shell import verb as guarded

launch = typer.Typer(help="Have a run done by a cluster.", no_args_is_help=True)


@launch.command("slurm")
@guarded
def launch_slurm(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe or suite, or a YAML file.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the data set, of a suite that of all; else the recipe's own."),
    ] = None,
    out: OutOption = None,
    verb: Annotated[
        Literal["run", "suite", "ablate"], typer.Option(help="The verb that the jobs do together.")
    ] = "run",
    overrides: SetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    units: Annotated[int, typer.Option(min=1, help="Jobs of the array: stages done at a time.")] = 1,
    partition: Annotated[str | None, typer.Option(help="Partition of the cluster.")] = None,
    gpus: Annotated[int, typer.Option(min=0, max=1, help="GPUs of each job.")] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="Processor cores of each job.")] = 4,
    memory: Annotated[float | None, typer.Option(help="GB of memory of each job.")] = None,
    hours: Annotated[
        float, typer.Option(min=0.02, help="After so many hours a job ends, and is begun again.")
    ] = 24.0,
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Any other option of sbatch, as account=NAME; repeatable."),
    ] = None,
    executor: Annotated[
        Literal["slurm", "local", "debug"],
        typer.Option(
            help="Slurm; or, to try it out, processes of this machine (local), or this one (debug)."
        ),
    ] = "slurm",
    json: JsonOption = False,
) -> None:
    """Submit an array of Slurm jobs that do a run, a suite or an ablation together, each the next stage that is free.

    A job that is pre-empted saves its state and is queued again. Run folder and data must be on a drive that all see.
    """
    from scantling import api

    allocation = api.Allocation(
        partition=partition,
        gpus=gpus,
        cpus=cpus,
        memory=memory,
        hours=hours,
        options=tuple(slurm or ()),
        executor=executor,
    )
    launched = api.launch_slurm(
        recipe,
        data,
        out,
        overrides=overrides or (),
        seed=seed,
        device=device,
        units=units,
        slurm=allocation,
        verb=verb,
    )
    show(launched.to_text(), launched.to_dict(), as_json=json)
