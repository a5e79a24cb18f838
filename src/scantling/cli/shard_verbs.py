"""Prediction in shards on the command line: what `predict --shards` does, and the verb merge."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scantling.cli.shell import JsonOption, show, verb
from scantling.errors import ScantlingError, UsageError

if TYPE_CHECKING:
    from scantling.run.shards.summary import ShardSummary


def refuse_with_shards(shards: str, *, out: Path | None, overlays: Path | None, maps: Path | None) -> None:
    """Refuse options that do not go with `--shards`.

    Raises:
        UsageError: One of them is given.
    """
    if out is not None:
        hint = f"When they are done: scantling merge {shlex.quote(shards)} --out {shlex.quote(str(out))}"
        raise UsageError("--shards and --out: results of shards are put together afterwards", hint=hint)
    if maps is not None:
        raise UsageError(
            "--shards and --maps: score maps are a file for each image anyway, give --maps alone"
        )
    if overlays is not None:
        raise UsageError(
            "--shards and --overlays: pictures are drawn without shards, of images that you choose"
        )


def show_shards(summary: ShardSummary, *, as_json: bool) -> None:
    """Print how a prediction in shards stands, and end as the worst of its failures would.

    Raises:
        ScantlingError: Some shards failed.
        RuntimeError: One of them by a bug.
    """
    show(summary.to_text(), summary.to_dict(), as_json=as_json)
    failed = summary.failures
    first = summary.bugs[0] if summary.bugs else next(iter(failed), "")
    told = f"{len(failed)} of {summary.num_shards} shards failed, such as {first}: {failed.get(first)}"
    if summary.bugs:
        raise RuntimeError(told)
    if failed:
        raise ScantlingError(told, hint=f"To do them again: {summary.shards.command}")


@verb
def merge(
    folder: Annotated[Path, typer.Argument(help="Folder that was given as --shards.")],
    out: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="File or URL to write: .json (COCO results), .jsonl (a result a line), .parquet.",
        ),
    ],
    partial: Annotated[
        bool, typer.Option("--partial", help="Take the shards that are done, where some are missing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Put the results of a prediction in shards into one file, in the order of the source."""
    from scantling import api

    merged = api.merge(folder, out, partial=partial)
    show(merged.to_text(), merged.to_dict(), as_json=json)
