"""Which tests a worker of pytest-xdist does together: those that share what takes long to make, the long ones first.

A golden case is filled into its model once, and what a module's fixtures make is made once; with xdist's own ways of
sharing out, each worker did so for itself (a tenth of all the time).
"""

from __future__ import annotations

import re
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

CASES = {path.stem for path in (Path(__file__).parent / "golden").glob("*.npz")}
APART = {"tests/models/test_detectors.py", "tests/e2e/test_docs.py"}
"""Modules whose tests share little and take long."""

TOGETHER = {
    "tests/models/test_head_norm.py": "cascade_rcnn_r50_dcn_gn",
    "tests/train/test_crash.py": "children",
    "tests/train/test_processes.py": "children",
}
"""Modules that look at a case without having it in the names of their tests, or share a fixture of the session."""


def share_of(nodeid: str) -> str:
    """The name of what a test is done together with."""
    module, _, test = nodeid.partition("::")
    if module in APART:
        return nodeid
    if module in TOGETHER:
        return TOGETHER[module]
    cases = CASES & set(re.split(r"[\[\],-]", test))
    return cases.pop() if len(cases) == 1 and module.startswith("tests/models/") else module


class InShares(LoadScopeScheduling):
    """Gives a worker the next share when it has nearly done the one before."""

    def _split_scope(self, nodeid: str) -> str:
        return share_of(nodeid)
