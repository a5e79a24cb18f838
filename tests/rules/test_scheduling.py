"""How the tests are shared out to workers."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest

from scheduling import CASES, TOGETHER, WAITING, InShares, share_of

ROOT = Path(__file__).parents[2]


class Worker:
    def send_runtest_some(self, indices: list[int]) -> None:
        """Nothing is run here."""


@pytest.mark.parametrize(
    ("nodeid", "share"),
    [
        ("tests/models/test_golden.py::test_pyramid[cascade_rcnn_r50]", "cascade_rcnn_r50"),
        ("tests/models/test_cbnet.py::test_losses[cascade_rcnn_r50_dcn_gn-x]", "cascade_rcnn_r50_dcn_gn"),
        ("tests/models/test_golden.py::test_alone", "tests/models/test_golden.py"),
        ("tests/run/test_steps.py::test_equal[htc_r50]", "tests/run/test_steps.py"),
        ("tests/e2e/test_docs.py::test_page[ablate]", "tests/e2e/test_docs.py::test_page[ablate]"),
    ],
)
def test_what_a_test_is_done_together_with(nodeid, share):
    assert share_of(nodeid) == share
    assert "htc_r50" in CASES


def test_one_worker_does_what_waits_while_there_is_any():
    waiting, computing = "tests/run/test_ray.py", "tests/ops/test_nms.py"
    one, other = Worker(), Worker()
    scheduling = object.__new__(InShares)
    tests = [f"{computing}::a", f"{computing}2::a", f"{waiting}::a", f"{computing}3::a"]
    scheduling.workqueue = OrderedDict((share_of(test), {test: False}) for test in tests)
    scheduling.assigned_work = {one: {}, other: {}}
    scheduling.registered_collections = {one: tests, other: tests}
    for node in (other, one, one, other):
        scheduling._assign_work_unit(node)
    assert list(scheduling.assigned_work[one]) == [waiting, f"{computing}2"]
    assert list(scheduling.assigned_work[other]) == [computing, f"{computing}3"]


def test_the_shares_that_wait_are_there():
    modules = {share.partition("::")[0] for share in WAITING} - set(TOGETHER.values())
    assert [module for module in modules if not (ROOT / module).is_file()] == []
