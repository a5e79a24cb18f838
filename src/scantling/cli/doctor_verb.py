"""The verb doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scantling.cli.shell import JsonOption, show, verb
from scantling.errors import UsageError


@verb
def doctor(
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Of a Ray cluster, or auto; its machines are looked at, too."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where runs are to be written, seen by all machines; the present one if left out."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say whether scantling can work on this machine, and on those of a cluster, and what to install if not.

    Exit code 0 when it can, 2 when it cannot.
    """
    from scantling import api

    diagnosis = api.doctor(address=address, folder=folder)
    show(diagnosis.to_text(), diagnosis.to_dict(), as_json=json)
    if not diagnosis.usable:
        topics = ", ".join(check.topic for check in diagnosis.wrong)
        raise UsageError(
            f"scantling cannot work here: {topics}", hint="The lines marked `wrong` say what to do."
        )
