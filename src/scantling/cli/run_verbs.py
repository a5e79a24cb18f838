"""Verbs that fill a run folder: run, demo, train."""

from __future__ import annotations

import os
import sys
from functools import partial
from json import dumps as dump_json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from scantling.cli.shell import DeviceOption, JsonOption, SeedOption, SkipOption, show, verb
from scantling.errors import UsageError

FoldsOption = Annotated[
    int | None,
    typer.Option(min=2, help="Train every member once without each of so many parts of the training images."),
]

if TYPE_CHECKING:
    from scantling.run.engines.choice import Engine, EngineName
    from scantling.run.plan import Plan
    from scantling.run.run_summary import RunSummary

OutOption = Annotated[
    Path | None, typer.Option(help="Run folder; runs/RECIPE (without a recipe runs/DATA) if left out.")
]
INIT = "members.*.model.init"
"""Of every member that is trained."""

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Replace a value of the recipe; may be repeated."),
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Stop at warnings about the data, too.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Start over: remove an earlier run's files.")
]
JobsOption = Annotated[
    int, typer.Option(min=1, help="Stages done side by side, each in a process of its own, on one machine.")
]
EngineOption = Annotated[
    Literal["local", "ray"],
    typer.Option(help="Who does the stages: processes of this machine, or tasks of a Ray cluster."),
]
SharedEngineOption = Annotated[
    Literal["local", "ray", "shared"],
    typer.Option(
        help="Who does the stages: processes of this machine, tasks of a Ray cluster, or (shared) all who are given "
        "this command, on any machines that see the run folder."
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Of the Ray cluster, or auto; without it Ray uses this machine."),
]
GpusOption = Annotated[
    int,
    typer.Option(
        min=1, help="Processes that train one model together, each on a GPU of its own, as torchrun does it."
    ),
]
PlanOption = Annotated[
    bool, typer.Option("--plan", help="Print what would be done, kept or redone, and why; do nothing.")
]


@verb
def run(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the data set; else the recipe's own.")] = None,
    out: OutOption = None,
    folds: FoldsOption = None,
    overrides: SetOption = None,
    skip_invalid: SkipOption = False,
    strict: StrictOption = False,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    jobs: JobsOption = 1,
    engine: SharedEngineOption = "local",
    address: AddressOption = None,
    gpus: GpusOption = 1,
    plan: PlanOption = False,
    json: JsonOption = False,
) -> None:
    """Do everything a recipe says, into a run folder.

    What is done and unchanged is not done again; what was interrupted goes on.
    """
    from scantling import api

    options = data_overrides(overrides, skip_invalid=skip_invalid, strict=strict, folds=folds)
    who = engine_with(gpus, engine, jobs, address)
    if not plan:
        share_out(gpus, device, who)
    do = api.plan if plan else partial(api.run, jobs=who)
    summary = do(recipe, data, out, overrides=options, seed=seed, device=device, overwrite=overwrite)
    show_run(summary, as_json=json)


@verb
def demo(
    out: Annotated[Path, typer.Option(help="Run folder; the generated scenes go beside it.")] = Path(
        "runs/demo"
    ),
    overrides: SetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    jobs: JobsOption = 1,
    engine: EngineOption = "local",
    address: AddressOption = None,
    json: JsonOption = False,
) -> None:
    """Generate inspection scenes, run the whole solution on them at small size, and write its report."""
    from scantling import api

    who = api.Engine(name=engine, jobs=jobs, address=address)
    summary = api.demo(
        out, overrides=overrides or (), seed=seed, device=device, overwrite=overwrite, jobs=who
    )
    show_run(summary, as_json=json)


@verb
def train(
    data: Annotated[Path, typer.Argument(help="Folder of a data set with the splits train and val.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="Name of a shipped recipe, or a YAML file; chosen for the data if left out."),
    ] = None,
    out: OutOption = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS",
            help="What training starts from: folder of a run or an import, a file of weights, a URL, a hub id.",
        ),
    ] = None,
    pretrained: Annotated[
        bool,
        typer.Option("--pretrained", help="Start from the published weights recommended for the model."),
    ] = False,
    overrides: SetOption = None,
    skip_invalid: SkipOption = False,
    strict: StrictOption = False,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    jobs: JobsOption = 1,
    engine: SharedEngineOption = "local",
    address: AddressOption = None,
    gpus: GpusOption = 1,
    plan: PlanOption = False,
    json: JsonOption = False,
) -> None:
    """Train the detectors of a recipe on a data set, evaluate them and write the report."""
    from scantling import api

    options = [
        *start_overrides(init, pretrained=pretrained),
        *data_overrides(overrides, skip_invalid=skip_invalid, strict=strict),
    ]
    who = engine_with(gpus, engine, jobs, address)
    if not plan:
        share_out(gpus, device, who)
    do = partial(api.plan, recipe, data) if plan else partial(api.train, data, recipe, jobs=who)
    summary = do(out=out, overrides=options, seed=seed, device=device, overwrite=overwrite)
    show_run(summary, as_json=json)


@verb
def ablate(
    data: Annotated[Path, typer.Argument(help="Folder of a data set with the splits train and val.")],
    recipe: Annotated[
        str,
        typer.Option(
            help="Name of a shipped recipe, or a YAML file; its factors are compared, or its first member taken apart."
        ),
    ] = "parts-cpu",
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/RECIPE-ablation if left out.")] = None,
    init: Annotated[
        Path | None, typer.Option(help="Backbone weights that the first member is trained from as well.")
    ] = None,
    folds: FoldsOption = None,
    overrides: SetOption = None,
    skip_invalid: SkipOption = False,
    strict: StrictOption = False,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    jobs: JobsOption = 1,
    engine: SharedEngineOption = "local",
    address: AddressOption = None,
    json: JsonOption = False,
) -> None:
    """Measure what each step of a recipe gives on a data set; every model is trained once."""
    from scantling import api

    options = data_overrides(overrides, skip_invalid=skip_invalid, strict=strict, folds=folds)
    who = api.Engine(name=engine, jobs=jobs, address=address)
    summary = api.ablate(
        data, recipe, out, init=init, overrides=options, device=device, overwrite=overwrite, jobs=who
    )
    show(summary.to_text(), summary.to_dict(), as_json=json)


def engine_with(gpus: int, engine: EngineName, jobs: int, address: str | None) -> Engine:
    """Who does the stages; of a cluster, with how many GPUs a training."""
    from scantling import api

    own = gpus if engine == "ray" else 1
    return api.Engine(name=engine, jobs=jobs, address=address, gpus=own)


def share_out(gpus: int, device: str, who: Engine) -> None:
    """Begin this very command in several processes that train together, and end as they end.

    Nothing where one is enough, where this is one of them, or where those who do the stages begin them.

    Raises:
        UsageError: Stages are shared out already, or there are fewer GPUs.
        SystemExit: With the exit code of the processes.
    """
    if gpus in (1, who.gpus) or "WORLD_SIZE" in os.environ:
        return
    if who != type(who)():
        option = "--jobs" if who.jobs > 1 else "--engine"
        hint = f"One or the other: --gpus shares out a single training, {option} the stages of a run."
        raise UsageError(f"--gpus and {option} do not go together", hint=hint)
    from scantling.train.launch import check_launch, launch

    check_launch(gpus, device)
    sys.exit(launch(gpus, ["-m", "scantling", *sys.argv[1:]]))


def start_overrides(init: str | None, *, pretrained: bool) -> list[str]:
    """What stands for the options about the weights that training starts from: paths are made absolute.

    Raises:
        UsageError: Both are given.
    """
    if pretrained and init is not None:
        raise UsageError("give either --init or --pretrained, not both")
    if pretrained:
        return [f"{INIT}=pretrained"]
    if init is None:
        return []
    is_place = init.startswith(("hf-hub:", "https://", "http://")) or init in (
        "random",
        "pretrained",
        "pretrain",
    )
    return [f"{INIT}={dump_json(init if is_place else str(Path(init).absolute()))}"]


def data_overrides(
    overrides: list[str] | None, *, skip_invalid: bool, strict: bool, folds: int | None = None
) -> list[str]:
    """The `--set` options, and what stands for the options about the data."""
    switches = {
        "data.skip_invalid=true": skip_invalid,
        "data.strict=true": strict,
        f"data.folds={folds}": folds is not None,
    }
    return [*(overrides or ()), *(text for text, on in switches.items() if on)]


def show_run(summary: RunSummary | Plan, *, as_json: bool) -> None:
    """Print what a run reached and where it is, or what it would do."""
    show(summary.to_text(), summary.to_dict(), as_json=as_json)
