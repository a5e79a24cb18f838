"""Main effects of a full design, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from scantling.evaluate.effects import effects_text, main_effects


def test_main_effects_are_means_over_the_settings_of_the_others():
    """Two factors, two draws: a gives 0.1 alone and 0.3 on top of b; of the draws always 0.2."""
    values = {
        (): np.array([0.2, 0.1, 0.4]),
        ("a",): np.array([0.3, 0.3, 0.6]),
        ("b",): np.array([0.2, 0.2, 0.2]),
        ("a", "b"): np.array([0.5, 0.4, 0.4]),
    }
    first, second = main_effects(values, ("a", "b"))
    assert (first.factor, second.factor) == ("a", "b")
    assert (first.difference.first, first.difference.second) == pytest.approx((0.2, 0.4))
    assert first.difference.difference == pytest.approx(0.2)
    assert first.difference.interval == pytest.approx((0.2, 0.2))  # paired: nothing of the draws is left
    assert second.difference.difference == pytest.approx(0.1)
    low, high = second.difference.interval
    assert low < 0.1 < high
    told = effects_text([first, second])
    assert "| a      | 0.200      | 0.400   | +0.200     | +0.200 to +0.200 |" in told


def test_an_undefined_ap_leaves_the_effect_undefined():
    (effect,) = main_effects({(): np.array([np.nan]), ("a",): np.array([0.5])}, ("a",))
    assert effect.difference.difference is None
    assert "| -" in effects_text([effect])
