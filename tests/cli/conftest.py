"""Verbs set logging and signals for their process; here the process is the tests'."""

from __future__ import annotations

import logging
import signal

import pytest


@pytest.fixture(autouse=True)
def unchanged_process():
    package = logging.getLogger("scantling")
    state = (package.handlers, package.propagate, package.level)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    package.handlers, package.propagate, package.level = state
    signal.signal(signal.SIGTERM, handler)
