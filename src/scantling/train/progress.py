"""What a person sees while training: a bar with losses, speed and time left, or plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

_LINE_SECONDS = 10.0
_SHOWN_NUMBERS = 6


class Reporter(Protocol):
    """Shows how a training comes along."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def advance(self, step: int, images: int) -> None:
        """Report that `step` updates are done, the last of them with this many images."""

    def show(self, entry: Mapping[str, float | int | None]) -> None:
        """Show an entry of the history."""

    def say(self, message: str) -> None:
        """Show a sentence."""


def make_reporter(console: Console | None, *, total: int, start: int, title: str) -> Reporter:
    """Choose how to report.

    Args:
        console: The terminal to write to; None means standard error.
        total: Number of steps of the whole run.
        start: Number of steps already done.
        title: Short name in front of the bar.

    Returns:
        A bar on a terminal, else lines at most every ten seconds.
    """
    console = console or Console(stderr=True)
    pace = Pace(total=total, start=start)
    if console.is_terminal and not console.quiet:
        return BarReporter(console, pace, title)
    return LineReporter(console, pace)


class Pace:
    """Speed and time left, measured over the steps this process did."""

    def __init__(self, *, total: int, start: int) -> None:
        self.total = total
        self.step = start
        self._start = start
        self._images = 0
        self._began = time.monotonic()

    def advance(self, step: int, images: int) -> None:
        """Count one step."""
        self.step = step
        self._images += images

    @property
    def images_per_second(self) -> float:
        """Mean speed so far."""
        return self._images / max(time.monotonic() - self._began, 1e-9)

    def describe(self) -> str:
        """Return such as `12.3 images/s, 0:04:10 left`."""
        elapsed = max(time.monotonic() - self._began, 1e-9)
        done = self.step - self._start
        if done == 0:
            return "starting"
        left = timedelta(seconds=round(elapsed / done * (self.total - self.step)))
        return f"{self.images_per_second:.1f} images/s, {left} left"


class LineReporter:
    """Plain lines for log files and pipes."""

    def __init__(self, console: Console, pace: Pace) -> None:
        self._console = console
        self._pace = pace
        self._last_line = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def advance(self, step: int, images: int) -> None:
        """Count the step."""
        self._pace.advance(step, images)

    def show(self, entry: Mapping[str, float | int | None]) -> None:
        """Print the entry, unless a line of losses was printed a moment ago."""
        is_validation = "loss" not in entry
        if is_validation or time.monotonic() - self._last_line >= _LINE_SECONDS:
            self._last_line = time.monotonic()
            self.say(
                f"step {self._pace.step}/{self._pace.total}, {describe_entry(entry)}, {self._pace.describe()}"
            )

    def say(self, message: str) -> None:
        """Print the sentence."""
        try:
            self._console.print(message, highlight=False, markup=False, soft_wrap=True)
        except (OSError, ValueError):  # the reader of the pipe is gone
            self._console.quiet = True


class BarReporter:
    """A bar that rich keeps on the last line of the terminal."""

    def __init__(self, console: Console, pace: Pace, title: str) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            TextColumn("[dim]{task.fields[losses]}"),
        )
        self._progress = Progress(*columns, console=console)
        self._pace = pace
        self._task: TaskID = self._progress.add_task(
            title, total=pace.total, completed=pace.step, pace="starting", losses=""
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, step: int, images: int) -> None:
        """Move the bar."""
        self._pace.advance(step, images)
        self._progress.update(self._task, completed=step, pace=self._pace.describe())

    def show(self, entry: Mapping[str, float | int | None]) -> None:
        """Show losses beside the bar, the metrics of a validation above it."""
        if "loss" in entry:
            self._progress.update(self._task, losses=describe_entry(entry))
        else:
            self.say(describe_entry(entry))

    def say(self, message: str) -> None:
        """Print the sentence above the bar."""
        self._progress.console.print(message, highlight=False, markup=False)


def describe_entry(entry: Mapping[str, float | int | None]) -> str:
    """Write an entry of the history as one short text.

    Returns:
        For losses such as `epoch 2.50, loss 1.234 (box 0.4, class 0.8), lr 0.0025`; for a validation such as
        `epoch 3.00, bbox/AP 0.412`.
    """
    parts = [f"epoch {entry.get('epoch') or 0:.2f}"]
    if "loss" in entry:
        parts.append(f"loss {_number(entry['loss'])} ({', '.join(_numbers_under(entry, 'loss/'))})")
        parts.append(f"lr {_number(entry.get('lr'))}")
    return ", ".join(parts + _numbers_under(entry, "val/"))


def _numbers_under(entry: Mapping[str, float | int | None], prefix: str) -> list[str]:
    found = [(name.removeprefix(prefix), value) for name, value in entry.items() if name.startswith(prefix)]
    return [f"{name} {_number(value)}" for name, value in found[:_SHOWN_NUMBERS]]


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"
