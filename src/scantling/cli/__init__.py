"""The command line: one function per verb, which parses, calls the function of that name in `api`, and prints."""

from __future__ import annotations

import os

__all__ = ["main"]

_SPINS = "10000"  # GNU OpenMP's own value is 300,000


def main() -> None:
    """Entry point of the command `scantling`."""
    _give_way_soon()
    from scantling.cli.app import app

    app(prog_name="scantling")


def _give_way_soon() -> None:
    """Shorten how long threads of one computation spin while they wait for each other; before torch is loaded.

    Where another program runs on the same cores, the thread waited for is often the one that has no core, and spinning
    takes it away for longer: training with two threads became ten times slower (`bench/README.md`). What the user set
    stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
