"""The verb ensemble: several results files become one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scantling.cli.shell import ImageIdsOption, JsonOption, SkipOption, show, verb
from scantling.settings.paths import ResultsFile


@verb
def ensemble(
    files: Annotated[
        list[Path],
        typer.Argument(help="COCO results files of any detectors, of the same images; FILE or NAME=FILE."),
    ],
    data: Annotated[Path, typer.Option(help="The data set that was predicted, as for evaluate.")],
    out: Annotated[Path, typer.Option(help="COCO results file to write.")],
    method: Annotated[
        Literal[
            "wbf",
            "nmw",
            "nms",
            "soft_linear",
            "soft_gaussian",
            "mask_nms",
            "mask_soft_linear",
            "mask_soft_gaussian",
            "mask_vote",
        ]
        | None,
        typer.Option(
            help="wbf (if nothing else is said) and nmw fuse boxes, mask_vote masks, the others choose among them."
        ),
    ] = None,
    masks: Annotated[
        bool,
        typer.Option(
            "--masks", help="Match by masks: mask_nms if nothing else is said; nms means mask_nms, and so on."
        ),
    ] = False,
    iou: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Overlap beyond which two boxes, or masks, are of one object."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W", help="NAME=2,OTHER=0.5, the others have 1; or 2,1 in the order of the files."
        ),
    ] = None,
    tuned: Annotated[
        Path | None,
        typer.Option(help="YAML file with the settings in a section ensemble, as tune writes it."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Replace a setting, such as score=max; may be repeated."
        ),
    ] = None,
    image_ids: ImageIdsOption = "auto",
    skip_invalid: SkipOption = False,
    json: JsonOption = False,
) -> None:
    """Fuse the boxes, or the masks, of several detectors into one results file."""
    from scantling import api

    chosen = [
        f"{key}={value}" for key, value in (("method", method), ("iou_threshold", iou)) if value is not None
    ]
    summary = api.ensemble(
        [ResultsFile.member(file, image_ids) for file in files],
        data,
        out,
        masks=masks,
        weights=weights,
        tuned=tuned,
        overrides=[*(overrides or ()), *chosen],
        skip_invalid=skip_invalid,
    )
    show(summary.to_text(), summary.to_dict(), as_json=json)
