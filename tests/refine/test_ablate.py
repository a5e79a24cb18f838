"""Wrong labels of the robustness curves are really wrong, and as many as asked for."""

from __future__ import annotations

import numpy as np

from scantling.refine.ablate import wrong_labels


def test_chosen_labels_become_another_class_and_the_others_stay():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 4, 500)
    chosen, offsets = rng.random(500) < 0.5, rng.random(500)
    found = wrong_labels(labels, chosen, offsets, 4)
    changed = chosen & (labels >= 0)
    assert ((found != labels) == changed).all()
    assert found.min() == -1
    assert found.max() == 3
    for label in range(4):  # every other class is equally likely
        counts = np.bincount(found[changed & (labels == label)], minlength=4)
        assert counts[label] == 0
        assert np.delete(counts, label).min() > 5
    assert (wrong_labels(np.zeros(3, int), np.ones(3, bool), np.zeros(3), 1) == 0).all()
