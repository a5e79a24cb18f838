"""The verb pretrain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scantling.cli.run_verbs import OverwriteOption, StrictOption
from scantling.cli.shell import DeviceOption, JsonOption, SkipOption, show, verb


@verb
def pretrain(
    data: Annotated[
        Path, typer.Argument(help="Data set in any format, FOLDER:SPLIT, a file, or a folder of images.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the crops, the training and backbone.safetensors.")],
    backbone: Annotated[str | None, typer.Option(help="timm model name; resnet50 if left out.")] = None,
    norm: Annotated[
        str | None, typer.Option(help="default, bn, bn_eval, frozen_bn, sync_bn or gn; gn if left out.")
    ] = None,
    deform: Annotated[
        str | None, typer.Option(help="Stages with deformable convolutions, such as 2,3,4; none if left out.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.PATH=VALUE", help="Replace a setting; may be repeated."),
    ] = None,
    skip_invalid: SkipOption = False,
    strict: StrictOption = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all randomness.")] = 0,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Learn a backbone from a data set's own crops, for detectors to start from.

    Every labelled object is cut out, its category is not looked at. What was interrupted goes on.
    """
    from scantling import api

    named = {
        "backbone": backbone,
        "norm": norm,
        "deform": None if deform is None else f"[{deform}]",
        "skip_invalid": "true" if skip_invalid else None,
        "strict": "true" if strict else None,
    }
    options = [f"{key}={value}" for key, value in named.items() if value is not None]
    summary = api.pretrain(
        data,
        out,
        overrides=[*options, *(overrides or ())],
        seed=seed,
        device=device,
        overwrite=overwrite,
    )
    show(summary.to_text(), summary.to_dict(), as_json=json)
