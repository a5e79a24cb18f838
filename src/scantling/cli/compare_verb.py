"""The verb compare: two results files on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scantling.cli.shell import (
    DifficultOption,
    ImageIdsOption,
    JsonOption,
    LimitOption,
    SkipOption,
    show,
    verb,
)
from scantling.settings.paths import ResultsFile


@verb
def compare(
    first: Annotated[Path, typer.Argument(help="COCO results file (A) of any detector.")],
    second: Annotated[Path, typer.Argument(help="COCO results file (B) it is compared with.")],
    data: Annotated[Path, typer.Option(help="The truth, as for evaluate.")],
    iou_type: Annotated[
        Literal["bbox", "segm"], typer.Option(help="Whether overlaps are those of boxes or of masks.")
    ] = "bbox",
    bootstrap: Annotated[int, typer.Option(min=1, help="Paired resamples of the images.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.")] = 0,
    max_dets: LimitOption = 100,
    count_difficult: DifficultOption = False,
    skip_invalid: SkipOption = False,
    image_ids: ImageIdsOption = "auto",
    json: JsonOption = False,
) -> None:
    """Say which of two results files is better, and how sure that is: differences with 95 % intervals."""
    from scantling import api

    comparison = api.compare(
        ResultsFile(first, image_ids),
        ResultsFile(second, image_ids),
        data,
        iou_type=iou_type,
        bootstrap=bootstrap,
        seed=seed,
        max_dets=max_dets,
        skip_invalid=skip_invalid,
        count_difficult=count_difficult,
    )
    show(comparison.to_text(), comparison.to_dict(), as_json=json)
