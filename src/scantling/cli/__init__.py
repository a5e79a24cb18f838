"""The command line: one function per verb, which parses, calls the function of that name in `api`, and prints."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Entry point of the command `scantling`."""
    from scantling.cli.app import app

    app(prog_name="scantling")
