"""Verbs about predictions: predict, evaluate, submission, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scantling.cli.run_verbs import AddressOption, EngineOption
from scantling.cli.shard_verbs import refuse_with_shards, show_shards
from scantling.cli.shell import (
    DeviceOption,
    DifficultOption,
    ImageIdsOption,
    JsonOption,
    LimitOption,
    SkipOption,
    show,
    verb,
)
from scantling.errors import UsageError
from scantling.settings.paths import ResultsFile

_SOURCES = (
    "An image, a folder, a COCO file, FOLDER:SPLIT, a text file of paths or URLs, a quoted pattern such as "
    "'photos/**/*.jpg', or a URL of one (s3://, gs://, https://). May be left out with --resume."
)


@verb
def predict(
    source: Annotated[str | None, typer.Argument(help=_SOURCES)] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder whose detector predicts.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint file, instead of --run.")] = None,
    out: Annotated[Path | None, typer.Option(help="COCO results file; printed if left out.")] = None,
    overlays: Annotated[Path | None, typer.Option(help="Folder for copies of the images with boxes.")] = None,
    maps: Annotated[
        Path | None, typer.Option(help="Folder for a segmenter's score maps, in the place of objects.")
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for results shard by shard, for very many images; then `scantling merge`.",
        ),
    ] = None,
    shard_size: Annotated[int | None, typer.Option(min=1, help="Images of a shard; 500 if left out.")] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Do every N-th shard from the I-th on: machine I of N.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Shards done side by side, each in a process of its own.")
    ] = 1,
    engine: EngineOption = "local",
    address: AddressOption = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with --shards as planned, without listing the images anew; SOURCE, --run and --checkpoint "
            "may be left out.",
        ),
    ] = False,
    retry_unread: Annotated[
        bool,
        typer.Option(
            "--retry-unread",
            help="Do those --shards again, too, some of whose images were missing, unreachable or damaged.",
        ),
    ] = False,
    tile: Annotated[
        int | None, typer.Option(metavar="SIZE", help="Cut images into tiles of this side, in pixels.")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(metavar="F", help="Share of a tile's side that the next tile shows too.")
    ] = None,
    tuned: Annotated[
        Path | None,
        typer.Option(help="YAML file with settings of suppression in a section suppress, as tune writes it."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting of prediction; may be repeated."),
    ] = None,
    device: DeviceOption = "auto",
    skip_invalid: SkipOption = False,
    json: JsonOption = False,
) -> None:
    """Detect objects in images; the result is a COCO results list with the data set's own category ids.

    Very many images are predicted in --shards, on one machine or several; the same command does what is missing.
    """
    from scantling import api

    who = api.Engine(name=engine, jobs=jobs, address=address)
    settings = api.tuned_overrides(tuned) if tuned is not None else []
    tiling = [f"{key}={value}" for key, value in (("tile", tile), ("overlap", overlap)) if value is not None]
    given = [*settings, *(overrides or ()), *tiling]
    if shards is not None:
        refuse_with_shards(shards, out=out, overlays=overlays, maps=maps)
        given_shards = api.Shards.in_folder(
            shards, size=shard_size, part=shard or "1/1", resume=resume, retry_unread=retry_unread
        )
        summary = api.predict_shards(
            source,
            given_shards,
            run=run,
            checkpoint=checkpoint,
            overrides=given,
            device=device,
            jobs=who,
            skip_invalid=skip_invalid,
        )
        show_shards(summary, as_json=json)
        return
    if source is None:
        raise UsageError("SOURCE is missing", hint="Only --shards FOLDER --resume knows it already.")
    if shard_size or shard or who != api.Engine() or resume or retry_unread:
        hint = "Very many images are predicted into a folder: --shards FOLDER."
        told = "--shard-size, --shard, --jobs, --engine, --resume and --retry-unread are for --shards"
        raise UsageError(told, hint=hint)
    found = api.predict(
        source,
        run=run,
        checkpoint=checkpoint,
        out=out,
        overlays=overlays,
        maps=maps,
        overrides=given,
        device=device,
        skip_invalid=skip_invalid,
    )
    printed = out is None and maps is None
    show(found.to_text(), found.results if printed else found.to_dict(), as_json=json or printed)


@verb
def evaluate(
    results: Annotated[Path, typer.Argument(help="COCO results file of any detector.")],
    data: Annotated[Path, typer.Option(help="The truth: a COCO file, a split file, or FOLDER:SPLIT.")],
    iou_type: Annotated[
        Literal["bbox", "segm"],
        typer.Option(help="Whether overlaps, and the sizes in APs to ARl, are those of boxes or of masks."),
    ] = "bbox",
    backend: Annotated[
        Literal["auto", "pycocotools", "hotcoco"],
        typer.Option(help="hotcoco gives pycocotools' numbers faster; auto takes it where installed."),
    ] = "auto",
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Resamples of the images for 95 % intervals of every AP, such as 1000.")
    ] = 0,
    max_dets: LimitOption = 100,
    out: Annotated[Path | None, typer.Option(help="Also write the numbers to this JSON file.")] = None,
    count_difficult: DifficultOption = False,
    image_ids: ImageIdsOption = "auto",
    skip_invalid: SkipOption = False,
    json: JsonOption = False,
) -> None:
    """Print the COCO table of a results file."""
    from scantling import api
    from scantling.evaluate.coco_eval import interval_table, metrics_json

    evaluation = api.evaluate(
        ResultsFile(results, image_ids),
        data,
        iou_type=iou_type,
        backend=backend,
        bootstrap=bootstrap,
        max_dets=max_dets,
        out=out,
        skip_invalid=skip_invalid,
        count_difficult=count_difficult,
    )
    text = "\n\n".join(filter(None, [evaluation.table, interval_table(evaluation)]))
    show(text, metrics_json([evaluation]), as_json=json)


@verb
def submission(
    results: Annotated[Path, typer.Argument(help="COCO results file of any detector, with masks.")],
    data: Annotated[Path, typer.Option(help="What was predicted: a COCO file, or FOLDER:SPLIT.")],
    to: Annotated[Literal["deepsport"], typer.Option(help="Challenge that takes the file.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    image_ids: ImageIdsOption = "auto",
    skip_invalid: SkipOption = False,
    json: JsonOption = False,
) -> None:
    """Write predictions in the layout in which a challenge takes them."""
    from scantling import api

    written = api.submission(ResultsFile(results, image_ids), data, to, out, skip_invalid=skip_invalid)
    show(written.to_text(), written.to_dict(), as_json=json)


@verb
def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    json: JsonOption = False,
) -> None:
    """Write a run's report.html anew."""
    from scantling import api

    path = api.report(run)
    show(str(path), {"report": str(path)}, as_json=json)
