"""Which tests a worker of pytest-xdist does together: those that share what takes long to make, the long ones first.

A golden case is filled into its model once, and what a module's fixtures make is made once; with xdist's own ways of
sharing out, each worker did so for itself (a tenth of all the time). One worker does what waits for other processes
to start, to be killed or to be missed: where all did it at once, the cores were idle for two minutes.
"""

from __future__ import annotations

import re
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

CASES = {path.stem for path in (Path(__file__).parent / "golden").glob("*.npz")}
APART = {"tests/models/test_detectors.py", "tests/e2e/test_docs.py"}
"""Modules whose tests share little and take long."""

TOGETHER = {
    "tests/models/test_head_norm.py": "cascade_rcnn_r50_dcn_gn",
    "tests/train/test_crash.py": "children",
    "tests/train/test_processes.py": "children",
}
"""Modules that look at a case without having it in the names of their tests, or share a fixture of the session."""


WAITING = {
    "tests/run/test_ray.py",
    "tests/run/test_slurm.py",
    "tests/e2e/test_processes.py",
    "tests/run/test_remote.py",
    "tests/run/test_shared_runs.py",
    "children",
    "tests/run/test_nodes.py",
    "tests/e2e/test_pasted.py",
    "tests/e2e/test_docs.py::test_what_a_page_says_works[cluster]",
    "tests/e2e/test_factors.py",
    "tests/run/test_throttle.py",
    "tests/run/test_shared.py",
}
"""Shares that wait for a third of their time or more."""


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

    def _assign_work_unit(self, node: WorkerController) -> None:
        waits = node is self.nodes[0]
        suited = next((share for share in self.workqueue if (share in WAITING) == waits), None)
        if suited is not None:
            self.workqueue.move_to_end(suited, last=False)
        super()._assign_work_unit(node)
