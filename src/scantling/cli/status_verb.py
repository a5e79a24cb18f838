"""The verb status: how a run stands."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scantling.cli.shell import JsonOption, show, verb

if TYPE_CHECKING:
    from scantling.run.status import RunStatus


@verb
def status(
    run: Annotated[Path, typer.Argument(help="Folder of a run, a suite or an ablation.")],
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until the run ends.")] = False,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.2, help="Time between two looks with --watch.")
    ] = 2.0,
    json: JsonOption = False,
) -> None:
    """Show how a run stands: what is done, what runs where and how far it is, what failed, and how to go on.

    Exit code 0 whatever became of the run.
    """
    from scantling import api

    found = api.status(run)
    if not watch:
        show(found.to_text(), found.to_dict(), as_json=json)
        return
    try:
        if sys.stdout.isatty() and not json:
            _redraw(found, interval)
        else:
            _tell_news(found, interval, as_json=json)
    except KeyboardInterrupt:  # whoever watches has seen enough; the run goes on
        return


def _redraw(found: RunStatus, interval: float) -> None:
    """Keep the newest on the terminal."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from scantling import api

    with Live(Text(found.to_text()), console=Console(), auto_refresh=False) as live:
        while not found.has_ended:
            time.sleep(interval)
            found = api.status(found.path)
            live.update(Text(found.to_text()), refresh=True)


def _tell_news(found: RunStatus, interval: float, *, as_json: bool) -> None:
    """Print it whenever more has changed than the time."""
    from scantling import api

    show(found.to_text(), found.to_dict(), as_json=as_json)
    while not found.has_ended:
        time.sleep(interval)
        before, found = found, api.status(found.path)
        if found.news() != before.news():
            show(f"\n{found.to_text()}", found.to_dict(), as_json=as_json)
        sys.stdout.flush()
