"""How the tests are shared out to workers."""

from __future__ import annotations

import pytest

from scheduling import CASES, share_of


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
