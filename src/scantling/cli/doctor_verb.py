"""The verb doctor."""

from __future__ import annotations

from scantling.cli.shell import JsonOption, show, verb
from scantling.errors import UsageError


@verb
def doctor(json: JsonOption = False) -> None:
    """Say whether scantling can work on this machine, and what to install if not.

    Exit code 0 when it can, 2 when it cannot.
    """
    from scantling import api

    diagnosis = api.doctor()
    show(diagnosis.to_text(), diagnosis.to_dict(), as_json=json)
    if not diagnosis.usable:
        topics = ", ".join(check.topic for check in diagnosis.wrong)
        raise UsageError(
            f"scantling cannot work here: {topics}", hint="The lines marked `wrong` say what to do."
        )
