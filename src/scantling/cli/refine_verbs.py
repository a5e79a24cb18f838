"""Verbs that refine boxes: refine train, refine tune, refine apply, refine ablate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scantling.cli.shell import DeviceOption, ImageIdsOption, JsonOption, SkipOption, show, verb
from scantling.settings.paths import ResultsFile

refine = typer.Typer(
    help="Train a network that sharpens boxes, and sharpen those of any detector.", no_args_is_help=True
)

DataArgument = Annotated[Path, typer.Argument(help="Folder of a data set with the splits train and val.")]
PredictedArgument = Annotated[
    Path, typer.Argument(help="What was predicted: a COCO file, a split file, or FOLDER:SPLIT.")
]
ResultsArgument = Annotated[Path, typer.Argument(help="COCO results file of any detector.")]
RefinerOption = Annotated[Path, typer.Option(help="Checkpoint of refine train.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Replace a setting; may be repeated."),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of all randomness.")]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Shipped settings (small-cpu) or a YAML file of settings; the published ones if left out.",
    ),
]


@refine.command("train")
@verb
def refine_train(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder for the refiner; a training begun there goes on.")],
    config: ConfigOption = None,
    overrides: SetOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over.")] = False,
    skip_invalid: SkipOption = False,
    json: JsonOption = False,
) -> None:
    """Train a refiner from labelled boxes alone; what was interrupted goes on."""
    from scantling import api

    made = api.refine_train(
        data,
        out,
        config=config,
        overrides=overrides or (),
        seed=seed,
        device=device,
        overwrite=overwrite,
        skip_invalid=skip_invalid,
    )
    show(made.to_text(), made.to_dict(), as_json=json)


@refine.command("tune")
@verb
def refine_tune(
    results: ResultsArgument,
    data: PredictedArgument,
    refiner: RefinerOption,
    out: Annotated[Path, typer.Option(help="Gate file to write, for refine apply.")],
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    image_ids: ImageIdsOption = "auto",
    skip_invalid: SkipOption = False,
    json: JsonOption = False,
) -> None:
    """Measure where refining helps, by category, size and score; elsewhere boxes are to stay as they are."""
    from scantling import api

    gate = api.refine_tune(
        ResultsFile(results, image_ids),
        data,
        refiner,
        out=out,
        overrides=overrides or (),
        device=device,
        skip_invalid=skip_invalid,
    )
    show(gate.to_text(), gate.model_dump(mode="json"), as_json=json)


@refine.command("apply")
@verb
def refine_apply(
    results: ResultsArgument,
    data: PredictedArgument,
    refiner: RefinerOption,
    out: Annotated[Path, typer.Option(help="COCO results file to write.")],
    gate: Annotated[
        Path | None, typer.Option(help="File of refine tune: refine only where it helps.")
    ] = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    image_ids: ImageIdsOption = "auto",
    skip_invalid: SkipOption = False,
    json: JsonOption = False,
) -> None:
    """Refine the boxes of a results file; everything else in it stays as it is."""
    from scantling import api

    done = api.refine_apply(
        ResultsFile(results, image_ids),
        data,
        refiner,
        out=out,
        gate=gate,
        overrides=overrides or (),
        device=device,
        skip_invalid=skip_invalid,
    )
    show(done.to_text(), done.to_dict(), as_json=json)


@refine.command("ablate")
@verb
def refine_ablate(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder for the tables, the plots and every refiner.")],
    config: ConfigOption = None,
    overrides: SetOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train everything anew.")] = False,
    json: JsonOption = False,
) -> None:
    """Compare refiners that are told more or less, at several sides, and see how much wrong things matter."""
    from scantling import api

    found = api.refine_ablate(
        data, out, config=config, overrides=overrides or (), seed=seed, device=device, overwrite=overwrite
    )
    show(found.to_text(), found.to_dict(), as_json=json)
