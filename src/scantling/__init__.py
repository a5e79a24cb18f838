"""The best detector or instance segmenter out of few labelled images, and better predictions from any detector.

Every verb of the command line is a function of the same name in `scantling.api`:

    from scantling import api
    result = api.train("parts/", recipe="bccd-cpu", out="runs/parts")

Importing this package loads nothing heavy; `scantling.api` and `scantling.errors` are loaded when first used.
"""

from __future__ import annotations

import importlib

__all__ = ["__version__", "api", "errors"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Load the public modules when they are asked for (PEP 562)."""
    if name in {"api", "errors"}:
        return importlib.import_module(f"scantling.{name}")
    raise AttributeError(f"module 'scantling' has no attribute {name!r}")
