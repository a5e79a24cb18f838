"""Verbs about the fusion of masks with a segmenter's maps: fuse-semantic, tune-semantic."""

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
from scantling.settings.paths import MapsFolder, ResultsFile

MapsOption = Annotated[
    Path,
    typer.Option(help="Folder of a segmenter's maps, a PNG or NPY per image; or score maps of a run."),
]
ValuesOption = Annotated[
    Literal["auto", "scores", "foreground", "ids", "positions"],
    typer.Option(
        "--map-values",
        help="What the numbers in the maps are: scores, 0 and foreground, category ids, 1..K, or to be found out.",
    ),
]


@verb
def fuse_semantic(
    results: Annotated[Path, typer.Argument(help="COCO results file of any detector of masks.")],
    data: Annotated[Path, typer.Option(help="The data set that was predicted, as for evaluate.")],
    maps: MapsOption,
    out: Annotated[Path, typer.Option(help="COCO results file to write.")],
    map_values: ValuesOption = "auto",
    tuned: Annotated[
        Path | None,
        typer.Option(help="YAML file with the settings in a section semantic, as tune-semantic writes it."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Such as mode=replace or score_threshold=0.3; repeatable."
        ),
    ] = None,
    image_ids: ImageIdsOption = "auto",
    skip_invalid: SkipOption = False,
    json: JsonOption = False,
) -> None:
    """Give masks the pixels that a segmenter calls foreground inside their boxes."""
    from scantling import api

    summary = api.fuse_semantic(
        ResultsFile(results, image_ids),
        data,
        MapsFolder(maps, map_values),
        out,
        tuned=tuned,
        overrides=overrides or (),
        skip_invalid=skip_invalid,
    )
    show(summary.to_text(), summary.to_dict(), as_json=json)


@verb
def tune_semantic(
    results: Annotated[Path, typer.Argument(help="COCO results file of any detector of masks.")],
    data: Annotated[Path, typer.Option(help="The truth: a COCO file, a split file, or FOLDER:SPLIT.")],
    maps: MapsOption,
    out: Annotated[Path, typer.Option(help="YAML file to write, for fuse-semantic.")],
    map_values: ValuesOption = "auto",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Such as search.folds=10 or semantic.mode=replace; repeatable."
        ),
    ] = None,
    max_dets: LimitOption = 100,
    count_difficult: DifficultOption = False,
    image_ids: ImageIdsOption = "auto",
    skip_invalid: SkipOption = False,
    json: JsonOption = False,
) -> None:
    """Find how masks are fused with a segmenter's maps, by category where that is surely better."""
    from scantling import api

    summary = api.tune_semantic(
        ResultsFile(results, image_ids),
        data,
        MapsFolder(maps, map_values),
        out,
        max_dets=max_dets,
        overrides=overrides or (),
        skip_invalid=skip_invalid,
        count_difficult=count_difficult,
    )
    show(summary.to_text(), summary.to_dict(), as_json=json)
