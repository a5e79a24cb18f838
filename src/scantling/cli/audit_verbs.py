"""Verbs about faulty labels: audit, repair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scantling.cli.shell import DeviceOption, ImageIdsOption, JsonOption, SkipOption, show, verb
from scantling.settings.paths import ResultsFile

DataArgument = Annotated[Path, typer.Argument(help="The labels: a COCO file, a split file, or FOLDER:SPLIT.")]


@verb
def audit(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder for suspects.json, audit.html and suspects.jpg.")],
    refiner: Annotated[Path | None, typer.Option(help="Checkpoint of a refiner: finds loose boxes.")] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="COCO results on these images by models that were not trained on them."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting, such as min_score=0.5."),
    ] = None,
    device: DeviceOption = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")
    ] = False,
    image_ids: ImageIdsOption = "auto",
    skip_invalid: SkipOption = False,
    json: JsonOption = False,
) -> None:
    """Rank labels by how likely they are wrong: loose, missing, spurious, class, duplicate; with a page to decide."""
    from scantling import api

    made = api.audit(
        data,
        out,
        refiner=refiner,
        predictions=ResultsFile(predictions, image_ids) if predictions else None,
        overrides=overrides or (),
        device=device,
        overwrite=overwrite,
        skip_invalid=skip_invalid,
    )
    show(made.to_text(), made.to_dict(), as_json=json)


@verb
def repair(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="COCO file to write; the original is never changed.")],
    decisions: Annotated[
        Path | None, typer.Option(help="decisions.json, downloaded from audit.html.")
    ] = None,
    suspects: Annotated[Path | None, typer.Option(help="suspects.json, for --accept.")] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(metavar="RULE", help="Repair what a rule accepts, such as loose>0.8; may be repeated."),
    ] = None,
    masks: Annotated[
        Literal["keep", "drop"], typer.Option(help="Boxes with masks stay, or move without their masks.")
    ] = "keep",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there; never one of the data set.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Write a copy of the labels in which accepted suspects are repaired."""
    from scantling import api

    done = api.repair(
        data,
        out,
        decisions=decisions,
        suspects=suspects,
        accept=accept or (),
        masks=masks,
        overwrite=overwrite,
    )
    show(done.to_text(), done.to_dict(), as_json=json)
