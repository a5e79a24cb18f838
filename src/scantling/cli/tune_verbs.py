"""Verbs that make predictions better by what is known of the data: tune, suppress, eliminate."""

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
def tune(
    predictions: Annotated[
        list[Path],
        typer.Argument(
            help="One results file of candidates before suppression, or those of members: FILE or NAME=FILE."
        ),
    ],
    data: Annotated[Path, typer.Option(help="The truth: a COCO file, a split file, or FOLDER:SPLIT.")],
    out: Annotated[Path, typer.Option(help="YAML file to write, for suppress, predict and ensemble.")],
    what: Annotated[
        Literal["auto", "suppress", "weights"],
        typer.Option(help="Settings of suppression or weights of members; auto goes by the number of files."),
    ] = "auto",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Such as search.folds=10 or suppress.min_score=1e-5; repeatable.",
        ),
    ] = None,
    iou_type: Annotated[
        Literal["bbox", "segm"],
        typer.Option(help="Whether AP of boxes or of masks decides."),
    ] = "bbox",
    max_dets: LimitOption = 100,
    count_difficult: DifficultOption = False,
    image_ids: ImageIdsOption = "auto",
    skip_invalid: SkipOption = False,
    json: JsonOption = False,
) -> None:
    """Find settings of suppression or weights of an ensemble, by category where that is surely better."""
    from scantling import api

    summary = api.tune(
        [ResultsFile.member(file, image_ids) for file in predictions],
        data,
        out,
        what=what,
        iou_type=iou_type,
        max_dets=max_dets,
        overrides=overrides or (),
        skip_invalid=skip_invalid,
        count_difficult=count_difficult,
    )
    show(summary.to_text(), summary.to_dict(), as_json=json)


@verb
def suppress(
    results: Annotated[Path, typer.Argument(help="COCO results file of any detector.")],
    data: Annotated[Path, typer.Option(help="The data set that was predicted, as for evaluate.")],
    out: Annotated[Path, typer.Option(help="COCO results file to write.")],
    tuned: Annotated[
        Path | None,
        typer.Option(help="YAML file with the settings in a section suppress, as tune writes it."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as method=soft_linear; repeatable."),
    ] = None,
    image_ids: ImageIdsOption = "auto",
    skip_invalid: SkipOption = False,
    json: JsonOption = False,
) -> None:
    """Let the better one count of predictions of one category that overlap."""
    from scantling import api

    summary = api.suppress(
        ResultsFile(results, image_ids),
        data,
        out,
        tuned=tuned,
        overrides=overrides or (),
        skip_invalid=skip_invalid,
    )
    show(summary.to_text(), summary.to_dict(), as_json=json)


@verb
def eliminate(
    results: Annotated[Path, typer.Argument(help="COCO results file of any detector.")],
    train: Annotated[Path, typer.Option(help="Training annotations, to learn what occurs; as --data.")],
    data: Annotated[Path, typer.Option(help="The data set that was predicted, as for evaluate.")],
    out: Annotated[Path | None, typer.Option(help="COCO results file to write.")] = None,
    only_list: Annotated[
        bool, typer.Option("--list", help="Only say what contradicts, instead of --out.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Replace a setting, such as min_ratio=3; repeatable."
        ),
    ] = None,
    image_ids: ImageIdsOption = "auto",
    skip_invalid: SkipOption = False,
    json: JsonOption = False,
) -> None:
    """Remove the weaker of two predictions that lie to each other as objects never do, and surplus ones."""
    from scantling import api

    summary = api.eliminate(
        ResultsFile(results, image_ids),
        train,
        data,
        out,
        only_list=only_list,
        overrides=overrides or (),
        skip_invalid=skip_invalid,
    )
    show(summary.to_text(), summary.to_dict(), as_json=json)
