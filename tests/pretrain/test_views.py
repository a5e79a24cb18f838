"""Views are random, but only by seed, epoch, crop and view."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from scantling.data.samples.dataset import rng_for
from scantling.pretrain.run import crop_loader
from scantling.pretrain.views import ViewConfig, make_view, part_of

PLAIN = {"jitter": 0.0, "gray": 0.0, "blur": 0.0, "horizontal_flip": 0.0, "min_scale": 1.0, "max_aspect": 1.0}
PICTURE = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8), (48, 48))


def view(**changes) -> np.ndarray:
    return make_view(PICTURE, 48, ViewConfig(**{**PLAIN, **changes}), rng_for(0, 0, 1, "view"))


def test_without_augmentation_a_view_is_the_crop():
    assert np.array_equal(view(), PICTURE)


def test_each_augmentation_does_what_it_is_named_for():
    assert np.array_equal(view(horizontal_flip=1.0), PICTURE[:, ::-1])
    assert np.array_equal(view(vertical_flip=1.0), PICTURE[::-1])
    gray = view(gray=1.0)
    assert np.ptp(gray, axis=2).max() <= 1
    assert np.abs(gray[..., 0].astype(int) - cv2.cvtColor(PICTURE, cv2.COLOR_RGB2GRAY).astype(int)).max() <= 1
    smooth = [
        np.abs(np.diff(view(blur=1.0, min_sigma=s, max_sigma=s).astype(int), axis=0)).sum() for s in (1, 8)
    ]
    assert smooth[1] < smooth[0] <= np.abs(np.diff(PICTURE.astype(int), axis=0)).sum()
    brighter = {
        name: view(
            jitter=1.0,
            **{n: 0.4 if n == name else 0.0 for n in ("brightness", "contrast", "saturation", "hue")},
        )
        for name in ("brightness", "contrast", "saturation", "hue")
    }
    assert all(not np.array_equal(changed, PICTURE) for changed in brighter.values())


def test_parts_cover_what_they_should():
    config, rng = ViewConfig(), np.random.default_rng(0)
    parts = np.array([part_of((60, 80), config, rng) for _ in range(500)])
    wide, high = parts[:, 2] - parts[:, 0], parts[:, 3] - parts[:, 1]
    assert parts.min() >= 0
    assert (parts[:, 2] <= 80).all()
    assert (parts[:, 3] <= 60).all()
    shares = wide * high / 4800
    assert 0.18 < shares.min() < 0.25
    assert 0.9 < shares.max() <= 1
    assert (wide / high).max() < 1.4
    assert (wide / high).min() > 0.7


def test_of_an_elongated_crop_the_middle_is_shown():
    assert part_of((10, 1000), ViewConfig(min_scale=1.0), np.random.default_rng(0)) == (493, 0, 506, 10)
    assert part_of((1, 1), ViewConfig(), np.random.default_rng(0)) == (0, 0, 1, 1)


def batches(store, config, **changes):
    loader = crop_loader(store, config.model_copy(update=changes), seed=5)
    try:
        return [batch for epoch in (0, 1) for batch in loader.epoch(epoch)]
    finally:
        loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_views_do_not_depend_on_workers_or_on_where_a_run_resumes(store, config, workers):
    expected = batches(store, config)
    found = batches(store, config, workers=workers)
    assert len(expected) == 2 * (len(store) // 8)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.queries, other.queries)
        assert torch.equal(one.keys, other.keys)
        assert one.image_ids == other.image_ids
    loader = crop_loader(store, config, seed=5)
    resumed = next(iter(loader.epoch(1, 3)))
    assert torch.equal(resumed.keys, expected[len(expected) // 2 + 3].keys)


def test_views_of_a_crop_differ_between_views_and_epochs(store, config):
    first, *_ = batches(store, config)
    assert not torch.equal(first.queries, first.keys)
    by_id = {}
    for batch in batches(store, config):
        for crop_id, query in zip(batch.image_ids, batch.queries, strict=True):
            by_id.setdefault(crop_id, []).append(query)
    assert len(by_id) == len(store)
    assert not any(torch.equal(*views) for views in by_id.values() if len(views) == 2)


def test_processes_share_an_epoch_without_overlap(store, config):
    from scantling.train.devices import Processes

    loaders = [crop_loader(store, config, seed=0, processes=Processes(rank=r, world=2)) for r in (0, 1)]
    shown = [[crop for task in loader.plan(0) for crop in task.crops] for loader in loaders]
    assert len(shown[0]) == len(shown[1]) == 24
    assert set(shown[0]).isdisjoint(shown[1])


def test_held_out_images_can_be_kept_from_training(store, config):
    from scantling.pretrain.knn import held_out_mask

    held_out = held_out_mask(store, 0.5, 0)
    loader = crop_loader(store, config.model_copy(update={"learn_held_out": False, "held_out": 0.5}), seed=0)
    shown = {crop for epoch in range(3) for task in loader.plan(epoch) for crop in task.crops}
    assert shown == set(np.flatnonzero(~held_out).tolist())
    assert 0 < held_out.sum() < len(store)
