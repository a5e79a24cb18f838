"""What all verbs share: common options, where output goes, and how an error ends the process.

Results go to standard output, progress and logs to standard error. Exit codes: 0 done, 1 a bug in
scantling, 2 bad input or usage, 130, 143 and 140 (SIGUSR2) interrupted with the state saved.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Literal, NoReturn, ParamSpec

import typer

from scantling.cli import leave_at_once
from scantling.cli.failures import describe
from scantling.data.io import json_text
from scantling.errors import FOR_THE_FILE, Interrupted, PeerFailed
from scantling.train.signals import SIGNALS

P = ParamSpec("P")

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; only warnings and errors.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Log more, and show the traceback of an error.")]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Seed of all randomness; else the recipe's.")]
SkipOption = Annotated[
    bool,
    typer.Option(
        "--skip-invalid",
        help="Leave out faulty annotations, results and images, counted, instead of stopping.",
    ),
]
DifficultOption = Annotated[
    bool,
    typer.Option(
        "--count-difficult",
        help="Objects marked difficult (VOC) or ignore (COCO) are ordinary ones; else they count neither way.",
    ),
]
LimitOption = Annotated[
    int, typer.Option(min=11, help="Predictions counted per image and category, best first; COCO's are 100.")
]
ImageIdsOption = Annotated[
    Literal["auto", "id", "file"],
    typer.Option(
        help="What numbers as image_id are: the data set's id, the number a file is called by, or to be found out."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]


def verb(function: Callable[P, None]) -> Callable[..., None]:
    """Give a verb its logging, its answer to signals, and exit codes instead of tracebacks.

    The options `--quiet` and `--debug`, which are about nothing else, are added to the verb's own.
    """

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        quiet, debug = bool(kwargs.pop("quiet", False)), bool(kwargs.pop("debug", False))
        _configure_logging(quiet=quiet, debug=debug)
        for signum in SIGNALS:
            signal.signal(signum, _interrupt)
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            _end(error, debug=debug)

    _add_switches(guarded, function)
    return guarded


def show(text: str, value: object, *, as_json: bool) -> None:
    """Print a verb's result: text for people, or the value as JSON."""
    if is_follower():
        return
    typer.echo(json_text(value, indent=2, encoding=sys.stdout.encoding) if as_json else text)


def is_follower() -> bool:
    """Whether this is one of several processes (`torchrun`) and not the one that talks to the user."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")) > 0


def _add_switches(guarded: Callable[..., None], function: Callable[..., None]) -> None:
    """Extend the signature that typer reads."""
    own = inspect.signature(function, eval_str=True).parameters.values()
    added = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False, annotation=kind)
        for name, kind in {"quiet": QuietOption, "debug": DebugOption}.items()
    ]
    signature = inspect.Signature([*own, *added], return_annotation=None)
    guarded.__signature__ = signature  # type: ignore[attr-defined]
    guarded.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}


def _end(error: BaseException, *, debug: bool) -> NoReturn:
    """Say what went wrong on standard error and leave with the code for it."""
    if isinstance(error, BrokenPipeError):
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or the interpreter's last flush fails
    if debug:
        traceback.print_exception(error)
    code, message = describe(error)
    if not (is_follower() and isinstance(error, Interrupted | PeerFailed)):
        typer.echo(message, err=True)
    raise typer.Exit(code)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    """End the verb in order; while its libraries are still being loaded, end the process.

    A library that is being imported may take an exception for its own, or come out of it half made.
    """
    if _is_loading(frame):
        leave_at_once(signum, frame)
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise Interrupted(signum, "interrupted; given again, a command that trains goes on where it stopped")


def _is_loading(frame: FrameType | None) -> bool:
    """Whether modules are being imported on behalf of a verb that has not begun its work."""
    importing = False
    while frame is not None:
        code, module = frame.f_code, str(frame.f_globals.get("__name__", ""))
        importing = importing or code.co_filename.startswith("<frozen importlib")
        is_work = module.startswith("scantling.") and not module.startswith(
            ("scantling.cli", "scantling.api")
        )
        if is_work and code.co_name != "<module>":
            return False
        frame = frame.f_back
    return importing


def _configure_logging(*, quiet: bool, debug: bool) -> None:
    """Send scantling's log to standard error, plain lines without tracebacks."""
    handler = _StandardError()
    handler.setFormatter(_PlainLines())
    package = logging.getLogger("scantling")
    package.handlers = [handler]
    package.propagate = False
    level = logging.DEBUG if debug else logging.WARNING if quiet or is_follower() else logging.INFO
    handler.setLevel(level)  # a run lets the package say more, for its log file
    package.setLevel(level)


class _StandardError(logging.Handler):
    """Writes to whatever standard error is at the moment: a progress bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        if not hasattr(record, FOR_THE_FILE):
            typer.echo(self.format(record), err=True)


class _PlainLines(logging.Formatter):
    """The message alone, with the level in front of anything above INFO."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return f"{prefix}{record.getMessage()}"
