"""Verbs about labelled data: check, convert, split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scantling.cli.shell import DifficultOption, JsonOption, show, verb
from scantling.errors import ScantlingError, UsageError
from scantling.settings.named import by_name

DataArgument = Annotated[
    Path,
    typer.Argument(help="Folder of a data set (COCO, YOLO, VOC, DelftBikes, Roboflow), or FOLDER:SPLIT."),
]


@verb
def check(
    data: DataArgument,
    pixels: Annotated[
        bool,
        typer.Option("--pixels/--no-pixels", help="Decode every image and look for the same scene twice."),
    ] = True,
    html: Annotated[Path | None, typer.Option(help="Also write a page with pictures of the worst.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    json: JsonOption = False,
) -> None:
    """Check a data set: labels, images, classes, sizes, leaks between splits. Exit code 2 if there are errors."""
    from scantling import api

    health = api.check(data, pixels=pixels, html=html, strict=strict)
    show(health.to_text(), health.to_dict(), as_json=json)
    if health.failed:
        raise ScantlingError(f"{data}: the data set has errors (listed above)")


@verb
def convert(
    source: DataArgument,
    to: Annotated[Literal["coco", "yolo", "voc"], typer.Option(help="Format to write.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist or be empty.")],
    link: Annotated[bool, typer.Option("--link", help="Link the images instead of copying them.")] = False,
    boxes_only: Annotated[bool, typer.Option("--boxes-only", help="Leave masks out.")] = False,
    states: Annotated[
        list[str] | None,
        typer.Option(
            "--states",
            help="DelftBikes: states to keep, such as absent; all others if left out; may be repeated.",
        ),
    ] = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave out faulty annotations and images, counted.")
    ] = False,
    count_difficult: DifficultOption = False,
    json: JsonOption = False,
) -> None:
    """Write a data set in another tool's files; what they cannot hold is counted."""
    from scantling import api

    written = api.convert(
        source,
        to,
        out,
        link=link,
        boxes_only=boxes_only,
        states=states or (),
        skip_invalid=skip_invalid,
        count_difficult=count_difficult,
    )
    show(written.to_text(), written.to_dict(), as_json=json)


@verb
def split(
    data: Annotated[Path, typer.Argument(help="A COCO file, a folder of one split, or FOLDER:SPLIT.")],
    out: Annotated[Path, typer.Option(help="Folder for the lists of image ids.")],
    ratios: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=SHARE,...",
            help="train=0.8,val=0.2 if left out; all images are shared out, whatever the sum.",
        ),
    ] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Write this many folds instead.")] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN", help="Images whose names match this expression equally stay together."
        ),
    ] = None,
    stratify: Annotated[
        bool, typer.Option("--stratify/--no-stratify", help="Give every class its share everywhere.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same lists.")] = 0,
    json: JsonOption = False,
) -> None:
    """Divide a data set into lists of image ids, which every verb takes in place of an annotations file."""
    from scantling import api

    shares = parse_shares(ratios) if ratios is not None else None
    made = api.split(data, out, ratios=shares, folds=folds, group=group, stratify=stratify, seed=seed)
    show(made.to_text(), made.to_dict(), as_json=json)


def parse_shares(text: str) -> dict[str, float]:
    """`train=0.8,val=0.2` as numbers by name.

    Raises:
        UsageError: It has another form, or a name occurs twice.
    """
    shares: list[tuple[str, float]] = []
    for part in text.split(","):
        name, _, share = part.strip().partition("=")
        try:
            shares.append((name.strip(), float(share)))
        except ValueError:
            raise UsageError(f"--ratios {part!r}: write NAME=SHARE, for example train=0.8,val=0.2") from None
    return by_name(shares, f"--ratios {text}")
