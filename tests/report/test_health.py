"""Pictures on the page of `check`."""

from __future__ import annotations

import numpy as np
import pytest

from scantling.report.health import _GAP, _LINE, _side_by_side


@pytest.mark.parametrize("ground", [0, 255])
def test_blank_pictures_side_by_side_are_told_apart_by_a_frame(ground):
    pictures = [np.full(shape, ground, np.uint8) for shape in ((30, 40, 3), (50, 20, 3))]
    row = _side_by_side(pictures)
    assert row.shape == (50 + 14, 40 + 20 + 28, 3)
    middle = [tuple(colour) for colour in row[20].tolist()]
    between = middle[7 + 40 : 7 + 40 + 14]
    assert between == [_LINE, *12 * [_GAP], _LINE]
    assert set(middle[7:47]) == {3 * (ground,)}
    assert tuple(row[50, 20].tolist()) == _GAP  # below the shorter one
