"""Partial pooling: what a cell's own results say, what its category says, and what all say."""

from __future__ import annotations

import numpy as np
import pytest

from scantling.refine.gate_pooling import expected_gains


def pooled(rows: list[tuple[float, int, int]], cells_per_category: int = 3) -> dict[int, float]:
    """Of (gain, image, cell)."""
    gains, images, cells = (np.array(column) for column in zip(*rows, strict=True))
    return expected_gains(gains.astype(float), images, cells, cells_per_category)


def test_without_a_result_nothing_is_expected():
    nothing = np.zeros(0)
    assert expected_gains(nothing, nothing.astype(int), nothing.astype(int), 3) == {}


def test_cells_that_differ_no_more_than_chance_share_one_gain():
    """Each has the gains -1, 0 and 2 or 0, -1 and 2: their own means are equal, the images differ widely."""
    rows = [(-1.0, 0, 0), (0.0, 1, 0), (2.0, 2, 0), (0.0, 3, 4), (-1.0, 4, 4), (2.0, 5, 4)]
    assert pooled(rows) == {0: pytest.approx(1 / 3), 4: pytest.approx(1 / 3)}


def test_a_cell_whose_images_agree_keeps_its_own_gain():
    rows = [(0.2, image, 0) for image in range(50)] + [(-0.1, image, 1) for image in range(50)]
    assert pooled(rows) == {0: pytest.approx(0.2), 1: pytest.approx(-0.1)}


def test_a_cell_with_one_image_goes_with_its_category_and_a_cell_with_many_does_not():
    noise = np.random.default_rng(0).normal(0, 0.3, 360)
    many = [(0.3 + noise[i], i, i % 3) for i in range(180)]  # category 0 gains in three cells ...
    many += [(-0.3 + noise[180 + i], i, 4 + i % 3) for i in range(180)]  # ... and category 1 loses, as surely
    lone = [(-0.2, 300, 3), (0.2, 301, 7)]  # one image each that says the opposite of its category
    expected = pooled(many + lone, cells_per_category=4)
    assert [expected[cell] for cell in (0, 1, 2)] == pytest.approx([0.3] * 3, abs=0.1)
    assert [expected[cell] for cell in (4, 5, 6)] == pytest.approx([-0.3] * 3, abs=0.1)
    assert expected[3] > 0.1
    assert expected[7] < -0.1


def test_two_categories_by_hand():
    """Own means 1 and 5; the variance of one observation is 2, of a mean of two images 1. Between the categories it is
    max(0, (Q - 1) / (W - W2 / W)) with weights 1: Q = 8, W - W2 / W = 1, so 7. Each keeps 7 / 8 of its distance to 3.
    """
    rows = [(0.0, 0, 0), (2.0, 1, 0), (4.0, 0, 3), (6.0, 1, 3)]
    assert pooled(rows) == {0: pytest.approx(3 - 2 * 7 / 8), 3: pytest.approx(3 + 2 * 7 / 8)}


def test_results_of_one_image_are_one_observation():
    rows = [(0.0, 0, 0), (2.0, 1, 0), (4.0, 0, 3), (6.0, 1, 3)]
    often = [(gain, image, cell) for gain, image, cell in rows for _ in range(1 + 9 * (gain == 6.0))]
    assert pooled(often) == pytest.approx(pooled(rows))
