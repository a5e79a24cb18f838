"""Signals as requests: finish the step, save, leave. What is under way is never torn.

SIGUSR2 is what a cluster sends some time before it takes a machine away (submitit, `sbatch --signal=USR2`).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2") if hasattr(signal, name))
"""Those that ask a process to end."""
_IMPATIENCE_SECONDS = 1.0
"""A second Ctrl-C counts only after this long: some parents deliver one signal twice, microseconds apart."""


class StopRequested(BaseException):
    """A signal arrived inside `SignalGuard.interruptible`; not an `Exception`, so that no callee swallows it."""


class SignalGuard:
    """While active, a signal is remembered instead of ending the process.

    Outside the main thread, where handlers cannot be set, it does nothing and no signal is ever seen.

    Attributes:
        signum: The first signal that arrived, or None.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._arrived = 0.0
        self._raises = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {signum: signal.signal(signum, self._remember) for signum in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Mark work that may be abandoned at any moment: a signal raises `StopRequested` in its midst.

        Raises:
            StopRequested: A signal arrived before or during the block.
        """
        self._raises = True
        try:
            if self.signum is not None:
                raise StopRequested
            yield
        finally:
            self._raises = False

    def _remember(self, signum: int, _frame: FrameType | None) -> None:
        first, self.signum = self.signum is None, self.signum or signum
        if first:
            self._arrived = time.monotonic()
        elif signum == signal.SIGINT and time.monotonic() - self._arrived > _IMPATIENCE_SECONDS:
            raise KeyboardInterrupt
        if self._raises:
            raise StopRequested
