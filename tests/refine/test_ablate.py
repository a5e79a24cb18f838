"""Wrong labels of the robustness curves are really wrong, and as many as asked for."""

from __future__ import annotations

import numpy as np
import pytest

from refine.conftest import TINY
from scantling.refine import ablate
from scantling.refine.ablate import RefineAblateConfig, wrong_labels
from scantling.refine.apply import refine_rows
from scantling.refine.bbrefinement import Refiner, RefinerConfig
from scantling.refine.train import RefineConfig
from scantling.refine.training_data import LabelledBoxes
from scantling.refine.validation import jittered_boxes


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


def test_centres_are_wrong_by_pixels_of_the_crop_in_any_direction(slabs, monkeypatch):
    """The error is told in crop coordinates, whose unit is the side of the crop."""
    told = []

    def listened(*given, shifts, **more):
        told.append(shifts)
        return refine_rows(*given, shifts=shifts, **more)

    monkeypatch.setattr(ablate, "refine_rows", listened)
    model = RefinerConfig.model_validate(TINY)
    config = RefineAblateConfig(refine=RefineConfig(model=model), shifts=(0, 8, 16), wrong_classes=(0, 0.5))
    judged = jittered_boxes(LabelledBoxes(slabs, 4))
    refiner = Refiner(model, slabs.class_names).eval()
    rows = ablate._robustness([refiner], judged, config)
    assert [(row.kind, row.value) for row in rows] == [
        ("shift", 0), ("shift", 8), ("shift", 16), ("wrong_classes", 0), ("wrong_classes", 0.5),
    ]  # fmt: skip
    none, eight, sixteen, *others = told
    assert (none == 0).all()
    assert 0.6 * 8 / 32 < np.abs(eight).max() <= 8 / 32
    assert (eight < 0).any(axis=0).all()
    assert (eight > 0).any(axis=0).all()
    assert sixteen == pytest.approx(2 * eight)
    assert others == [None, None]
