"""What is to be known of work while it goes on: a bar or plain lines for a person, facts for whoever watches.

    loop, prediction ──► tell(facts) ──► each watcher, the innermost first, at most once a second
                                           run folder (status.json), the message of a worker, the lease of a stage

Facts are plain values: `step`, `total_steps`, `epoch`, `epochs`, or `images`, `total_images`; `images_per_second`,
`eta_seconds`, and `metrics`, those seen last. They hold times and speeds, so they go into nothing that is recorded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

_LINE_SECONDS = 10.0
_TELL_SECONDS = 1.0
_SHOWN_NUMBERS = 6

T = TypeVar("T")
Facts: TypeAlias = Mapping[str, Any]


class _Watcher:
    """Somebody who is told.

    Args:
        callback: Takes the facts.
        title: What is done meanwhile.
    """

    def __init__(self, callback: Callable[[Facts], object], title: str | None) -> None:
        self.callback, self.title = callback, title
        self.due = 0.0


_WATCHERS: list[_Watcher] = []
"""Of this process, the innermost last."""


@contextmanager
def watched_by(callback: Callable[[Facts], object], title: str | None = None) -> Iterator[None]:
    """Let somebody know how the work of this block comes along, in whichever module it is done.

    Args:
        callback: Called at most about once a second, by the thread that works; once at the beginning, with no facts.
        title: What is done in the block; watchers further out are told it as `stage`.
    """
    watcher = _Watcher(callback, title)
    _WATCHERS.append(watcher)
    try:
        tell(dict, at_once=True)
        yield
    finally:
        _WATCHERS.remove(watcher)


def tell(facts: Callable[[], Facts], *, at_once: bool = False) -> None:
    """Tell the watchers how the work comes along; costs next to nothing where nobody is to be told.

    Args:
        facts: Gives them; called only where somebody is to be told.
        at_once: Whoever was told less than a second ago is told, too.
    """
    now = time.monotonic()
    if not any(at_once or now >= watcher.due for watcher in _WATCHERS):
        return
    told = dict(facts())
    for watcher in reversed(_WATCHERS):
        if at_once or now >= watcher.due:
            watcher.due = now + _TELL_SECONDS
            watcher.callback(dict(told))
        if watcher.title is not None:
            told["stage"] = f"{watcher.title}/{told['stage']}" if "stage" in told else watcher.title


def counted(items: Iterable[T], total: int) -> Iterator[T]:
    """The same items, of which one stands for an image; watchers are told how many there have been.

    Args:
        items: One for each image.
        total: Number of images.
    """
    began = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        tell(partial(_facts_of_images, done, total, began))


def _facts_of_images(done: int, total: int, began: float) -> Facts:
    seconds = max(time.monotonic() - began, 1e-9)
    return {
        "images": done,
        "total_images": total,
        "images_per_second": round(done / seconds, 3),
        "eta_seconds": round(seconds / done * (total - done), 1),
    }


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


def make_reporter(console: Console | None, *, total: int, start: int, epochs: int, title: str) -> Reporter:
    """Choose how to report; whoever watches is told by either.

    Args:
        console: The terminal to write to; None means standard error.
        total: Number of steps of the whole run.
        start: Number of steps already done.
        epochs: Number of epochs of the whole run.
        title: Short name in front of the bar.

    Returns:
        A bar on a terminal, else lines at most every ten seconds.
    """
    console = console or Console(stderr=True)
    pace = Pace(total=total, start=start, epochs=epochs)
    if console.is_terminal and not console.quiet:
        return BarReporter(console, pace, title)
    return LineReporter(console, pace)


class Pace:
    """Speed and time left, measured over the steps this process did, and told to the watchers."""

    def __init__(self, *, total: int, start: int, epochs: int | None = None) -> None:
        self.total = total
        self.step = start
        self._start, self._epochs = start, epochs
        self._images = 0
        self._metrics: dict[str, float | None] = {}
        self._began = time.monotonic()

    def advance(self, step: int, images: int) -> None:
        """Count one step."""
        self.step = step
        self._images += images
        tell(self.facts)

    def note(self, entry: Mapping[str, float | int | None]) -> None:
        """Keep the loss, and the metrics of a validation, until there are newer ones."""
        found = [name for name in entry if name == "loss" or name.startswith("val/")]
        for name in found[: _SHOWN_NUMBERS + 1]:
            value = entry[name]
            self._metrics[name] = value if value is not None and math.isfinite(value) else None
        tell(self.facts, at_once="loss" not in entry)

    def facts(self) -> Facts:
        """How the training comes along."""
        left, epochs = self._seconds_left, self._epochs
        place = {"epoch": round(self.step * epochs / self.total, 2), "epochs": epochs} if epochs else {}
        return {
            "step": self.step,
            "total_steps": self.total,
            **place,
            "images_per_second": None if left is None else round(self.images_per_second, 3),
            "eta_seconds": None if left is None else round(left, 1),
            "metrics": dict(self._metrics),
        }

    def describe(self) -> str:
        """Return such as `12.3 images/s, 0:04:10 left`."""
        left = self._seconds_left
        if left is None:
            return "starting"
        return f"{self.images_per_second:.1f} images/s, {timedelta(seconds=round(left))} left"

    @property
    def images_per_second(self) -> float:
        """Mean speed so far."""
        return self._images / self._elapsed

    @property
    def _seconds_left(self) -> float | None:
        """None before the first step of this process."""
        done = self.step - self._start
        return self._elapsed / done * (self.total - self.step) if done else None

    @property
    def _elapsed(self) -> float:
        return max(time.monotonic() - self._began, 1e-9)


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
        self._pace.note(entry)
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
        self._pace.note(entry)
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
