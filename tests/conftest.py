"""One torch thread, reproducible hypothesis examples, importable references, real data where there is any."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))  # for `from reference.slow_nms import ...`
torch.set_num_threads(1)
gc.set_threshold(
    100_000, 20, 100
)  # a quarter of the time to collect 4,700 tests went into looking for cycles
settings.register_profile(
    "scantling",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("scantling")
os.environ.setdefault("RAY_worker_niceness", "0")  # else what a local Ray starts gives way to the other tests


PACKAGE = logging.getLogger("scantling")
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2") if hasattr(signal, name)]
UNTOUCHED = (
    tuple(PACKAGE.handlers),
    PACKAGE.propagate,
    PACKAGE.level,
    {signum: signal.getsignal(signum) for signum in SIGNALS},
)
"""Of the process before any test and any fixture, which may run verbs, too."""


@pytest.fixture(autouse=True)
def unchanged_process() -> Iterator[None]:
    """Verbs set logging and signals for their process; here the process is the tests'."""
    _reset_process()
    yield
    _reset_process()


def _reset_process() -> None:
    handlers, PACKAGE.propagate, level, on_signals = UNTOUCHED
    PACKAGE.handlers = list(handlers)
    PACKAGE.setLevel(level)
    for signum, handler in on_signals.items():
        signal.signal(signum, handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Share the tests out by what they share (scheduling.py), in the order below."""
    from scheduling import InShares

    config.option.loadscopereorder = False
    return InShares(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several workers begin with what takes long, so that none is left with it at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def real_data_root() -> Path | None:
    """Folder of the real data sets: $SCANTLING_TEST_DATA, else `shared/data` beside the checkout, else None."""
    given = os.environ.get("SCANTLING_TEST_DATA")
    root = Path(given) if given else TESTS.parent.parent / "shared" / "data"
    return root if root.is_dir() else None


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets; the test is skipped where there is none."""
    root = real_data_root()
    if root is None:
        pytest.skip("no real data: set SCANTLING_TEST_DATA to the folder of the data sets")
    return root
