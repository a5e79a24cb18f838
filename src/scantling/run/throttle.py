"""Keeps a file that is written often, and grows, from taking the time of what it tells about."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from scantling.errors import ScantlingError

_LATER_SECONDS = 1.0
_MOST_SECONDS = 30.0
_SHARE = 20
"""Times as long as it took to write, before it is written again at once."""

log = logging.getLogger(__name__)


class Throttle:
    """Writes at once, or a little later, and never the older after the newer.

    What is due is written at once where that took little of the time since the last time, else a second later.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._free_from = 0.0
        self._timer: threading.Timer | None = None
        self._due = 0.0

    def soon(self, write: Callable[[], None]) -> None:
        """Write now, or within a second."""
        with self._lock:
            if self._timer is None and time.monotonic() >= self._free_from:
                self._write(write)
            else:
                self._write_in(_LATER_SECONDS, write)

    def later(self, write: Callable[[], None]) -> None:
        """Write a second later, or when it takes little of the time again: for what changes all the time."""
        with self._lock:
            rest = self._free_from - time.monotonic()
            self._write_in(max(_LATER_SECONDS, min(rest, _MOST_SECONDS)), write)

    def now(self, write: Callable[[], None]) -> None:
        """Write, and nothing that was due before afterwards."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._write(write)

    def _write_in(self, seconds: float, write: Callable[[], None]) -> None:
        """Write in so many seconds, unless something is due earlier."""
        due = time.monotonic() + seconds
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._timer, self._due = threading.Timer(seconds, self._later, [write]), due
        self._timer.daemon = True
        self._timer.start()

    def _later(self, write: Callable[[], None]) -> None:
        with self._lock:
            if self._timer is None:  # something newer was written
                return
            self._timer = None
            try:
                self._write(write)
            except (ScantlingError, OSError) as problem:  # the next one, or the end of the run, raises it
                log.debug("status.json could not be written: %s", problem)

    def _write(self, write: Callable[[], None]) -> None:
        began = time.monotonic()
        write()
        ended = time.monotonic()
        self._free_from = ended + _SHARE * (ended - began)
