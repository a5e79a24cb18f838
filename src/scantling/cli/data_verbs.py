"""Verbs that make data or weights: synth, import-weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scantling.cli.shell import JsonOption, show, verb
from scantling.errors import UsageError
from scantling.settings.named import by_name


@verb
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to write the data set to.")],
    splits: Annotated[
        list[str] | None,
        typer.Option(
            "--split", metavar="NAME=COUNT", help="Pictures of a split; train=200 and val=50 if left out."
        ),
    ] = None,
    layout: Annotated[
        Literal["coco", "delftbikes"], typer.Option(help="Which tool's files to write.")
    ] = "coco",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A property of the scenes, such as noise.missing=0.1."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same files.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Generate labelled inspection scenes: a data set whose truth is known."""
    from scantling import api

    counts = parse_counts(splits or ["train=200", "val=50"])
    files = api.synth(
        out, splits=counts, layout=layout, overrides=overrides or (), seed=seed, overwrite=overwrite
    )
    show("\n".join(str(file) for file in files.values()), {k: str(v) for k, v in files.items()}, as_json=json)


@verb
def import_weights(
    file: Annotated[
        Path, typer.Argument(help="Checkpoint of MMDetection 2.x or 3.x, or torchvision's (.pth).")
    ],
    model: Annotated[str, typer.Option(help="Model the weights are for, such as cascade_rcnn_r50.")],
    out: Annotated[Path, typer.Option(help="Folder for weights.safetensors and import.json.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting of the model; may be repeated."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Categories of your data: a,b,c or a file with one per line.")
    ] = None,
    head: Annotated[
        Literal["keep", "drop", "by-name"],
        typer.Option(help="Keep the classifier, start it anew, or keep what has the name of a category."),
    ] = "keep",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier import.")] = False,
    json: JsonOption = False,
) -> None:
    """Turn a checkpoint of MMDetection or torchvision into a scantling checkpoint, and account for every key."""
    from scantling import api

    summary = api.import_weights(
        file, model, out, overrides=overrides or (), classes=classes, head=head, overwrite=overwrite
    )
    show(summary.to_text(), summary.to_dict(), as_json=json)


def parse_counts(texts: list[str]) -> dict[str, int]:
    """`train=200` texts as numbers by name.

    Raises:
        UsageError: One has another form, or a name occurs twice.
    """
    pairs = [text.partition("=") for text in texts]
    wrong = [
        text for text, (name, _, count) in zip(texts, pairs, strict=True) if not (name and count.isdecimal())
    ]
    if wrong:
        raise UsageError(f"--split {wrong[0]!r}: write it as NAME=COUNT, for example train=200")
    return by_name(((name, int(count)) for name, _, count in pairs), "--split")
