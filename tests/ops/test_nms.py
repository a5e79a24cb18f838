from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from reference import slow_nms
from scantling.ops.nms import batched_nms, nms, suppress

NONE = (torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))

# B covers the lower half of A: IoU 0.5. C lies elsewhere.
A, B, C = [0.0, 0.0, 10.0, 10.0], [0.0, 5.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]
BOXES = torch.tensor([A, B, C])
SCORES = torch.tensor([0.9, 0.8, 0.7])
ONE_GROUP = torch.zeros(3, dtype=torch.int64)


def scene(seed, count=150, groups=4, grid=None):
    """Crowded boxes; with `grid`, corners and scores are rounded so that ties and equal boxes abound."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 40
    boxes = torch.cat([low, low + torch.rand(count, 2, generator=generator) * 30 + 2], dim=1)
    scores = torch.rand(count, generator=generator)
    if grid:
        boxes, scores = (
            (boxes / grid).round() * grid + boxes.new_tensor([0, 0, grid, grid]),
            (scores * 8).round() / 8,
        )
    return boxes, scores, torch.randint(0, groups, (count,), generator=generator)


class TestHard:
    def test_removes_what_a_better_box_covers_beyond_the_threshold(self):
        assert nms(BOXES, SCORES, 0.4).tolist() == [0, 2]
        assert nms(BOXES, SCORES, 0.5).tolist() == [0, 1, 2]  # an overlap equal to the threshold stays

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7])
    def test_agrees_with_torchvision(self, seed, threshold):
        boxes, scores, groups = scene(seed)
        expected = torchvision.ops.batched_nms(boxes, scores, groups, threshold)
        assert batched_nms(boxes, scores, groups, threshold).tolist() == expected.tolist()

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("grid", [None, 8])
    def test_one_threshold_per_group_agrees_with_the_reference_ties_included(self, seed, grid):
        boxes, scores, groups = scene(seed, grid=grid)
        thresholds = torch.tensor([0.2, 0.5, 0.5, 0.8])
        expected = slow_nms.hard_nms(boxes, scores, groups.tolist(), thresholds.tolist())
        assert batched_nms(boxes, scores, groups, thresholds).tolist() == expected

    def test_groups_do_not_touch_even_left_of_the_origin(self):
        boxes = torch.tensor([[-10.0, -10.0, 10.0, 10.0]] * 3)
        kept = batched_nms(boxes, torch.tensor([0.1, 0.3, 0.2]), torch.tensor([5, 0, 5]), 0.5)
        assert kept.tolist() == [1, 2]


def soft(boxes, scores, groups, method="soft_linear", **options):
    """`suppress` without an end."""
    return suppress(boxes, scores, groups, method=method, max_per_image=None, **options)


class TestSoft:
    def test_linear_hand_derived(self):
        keep, scores = soft(BOXES, SCORES, ONE_GROUP, iou_threshold=0.3)
        assert keep.tolist() == [0, 2, 1]
        assert scores.tolist() == pytest.approx([0.9, 0.7, 0.8 * 0.5])

    def test_linear_leaves_an_overlap_equal_to_the_threshold_alone(self):
        keep, scores = soft(BOXES, SCORES, ONE_GROUP, iou_threshold=0.5)
        assert keep.tolist() == [0, 1, 2]
        assert scores.tolist() == pytest.approx([0.9, 0.8, 0.7])

    def test_gaussian_hand_derived(self):
        keep, scores = soft(BOXES, SCORES, ONE_GROUP, method="soft_gaussian", sigma=0.25)
        assert keep.tolist() == [0, 2, 1]
        assert scores.tolist() == pytest.approx([0.9, 0.7, 0.8 * math.exp(-0.25 / 0.25)])

    def test_the_order_follows_the_lowered_scores(self):
        # The second box loses half to the first; so the third comes before it and halves it once more.
        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 5.0, 5.0]])
        keep, scores = soft(boxes, torch.tensor([0.9, 0.8, 0.5]), ONE_GROUP, iou_threshold=0.3)
        assert keep.tolist() == [0, 2, 1]  # the third overlaps the first by only 0.25
        assert scores.tolist() == pytest.approx([0.9, 0.5, 0.2])

    def test_drops_what_falls_below_the_minimum(self):
        keep, _ = soft(BOXES, SCORES, ONE_GROUP, iou_threshold=0.3, min_score=0.41)
        assert keep.tolist() == [0, 2]

    def test_an_exact_copy_falls_to_nothing_and_goes(self):
        twice = torch.tensor([A, A])
        keep, scores = soft(twice, torch.tensor([0.5, 0.5]), ONE_GROUP[:2], min_score=0.0)
        assert (keep.tolist(), scores.tolist()) == ([0], [0.5])

    def test_each_group_has_its_own_threshold(self):
        boxes, scores = torch.cat([BOXES[:2]] * 2), torch.tensor([0.9, 0.8, 0.6, 0.4])
        keep, scores = soft(
            boxes, scores, torch.tensor([0, 0, 2, 2]), iou_threshold=torch.tensor([0.6, 0.0, 0.4])
        )
        assert keep.tolist() == [0, 1, 2, 3]
        assert scores.tolist() == pytest.approx([0.9, 0.8, 0.6, 0.2])

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("grid", [None, 4, 16])
    @pytest.mark.parametrize("min_score", [1e-3, 0.2])
    def test_linear_equals_the_reference_bit_for_bit_ties_included(self, seed, grid, min_score):
        boxes, scores, groups = scene(seed, grid=grid)
        thresholds = torch.tensor([0.0, 0.3, 0.5, 0.7])
        expected, final = slow_nms.soft_nms(
            boxes,
            scores,
            groups.tolist(),
            method="linear",
            thresholds=thresholds,
            sigma=1,
            min_score=min_score,
        )
        keep, values = soft(boxes, scores, groups, iou_threshold=thresholds, min_score=min_score)
        order = sorted(expected, key=lambda i: (-final[i], i))
        assert keep.tolist() == order
        assert values.numpy().tolist() == final[order].tolist()

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("grid", [None, 16])
    def test_gaussian_equals_the_reference(self, seed, grid):
        boxes, scores, groups = scene(seed, grid=grid)
        expected, final = slow_nms.soft_nms(
            boxes, scores, groups.tolist(), method="gaussian", thresholds=[0] * 4, sigma=0.5, min_score=1e-2
        )
        keep, values = soft(boxes, scores, groups, method="soft_gaussian", sigma=0.5, min_score=1e-2)
        assert sorted(keep.tolist()) == sorted(expected)
        np.testing.assert_allclose(values.numpy(), final[keep.numpy()], rtol=1e-5)

    def test_one_large_group_among_small_ones_is_packed_again_without_loss(self):
        boxes, scores, _ = scene(9, count=400)
        groups = torch.where(torch.arange(400) < 330, 7, torch.arange(400) % 5)
        expected, final = slow_nms.soft_nms(
            boxes, scores, groups.tolist(), method="linear", thresholds=[0.5] * 8, sigma=1, min_score=1e-4
        )
        keep, values = soft(boxes, scores, groups, min_score=1e-4)
        assert set(keep.tolist()) == set(expected)
        assert values.tolist() == final[keep].tolist()

    @given(st.integers(0, 10_000), st.sampled_from(["soft_linear", "soft_gaussian"]))
    def test_scores_never_rise_and_the_best_of_each_group_keeps_its_own(self, seed, method):
        boxes, scores, groups = scene(seed, count=30)
        keep, values = soft(boxes, scores, groups, method=method, min_score=1e-6)
        assert (values <= scores[keep]).all()
        assert (values[:-1] >= values[1:]).all()
        for group in groups.unique():
            best = scores.where(groups == group, -1).argmax()
            assert values[keep == best] == scores[best]


class TestSuppress:
    @pytest.mark.parametrize(
        ("method", "indices"), [("hard", [0, 2]), ("soft_linear", [0, 2, 1]), ("soft_gaussian", [0, 2, 1])]
    )
    def test_methods(self, method, indices):
        keep, scores = suppress(BOXES, SCORES, ONE_GROUP, method=method, iou_threshold=0.4, sigma=0.5)
        assert keep.tolist() == indices
        lowered = {"soft_linear": 0.4, "soft_gaussian": 0.8 * math.exp(-0.5)}
        assert scores.tolist() == pytest.approx([0.9, 0.7, *([lowered[method]] if method in lowered else [])])

    def test_none_only_sorts_ties_by_lower_index(self):
        keep, scores = suppress(BOXES, torch.tensor([0.5, 0.7, 0.5]), ONE_GROUP, method="none")
        assert (keep.tolist(), scores.tolist()) == ([1, 0, 2], pytest.approx([0.7, 0.5, 0.5]))

    @pytest.mark.parametrize("method", ["hard", "soft_linear", "soft_gaussian", "none"])
    def test_keeps_the_best_few_and_handles_nothing(self, method):
        keep, scores = suppress(BOXES, SCORES, ONE_GROUP, method=method, max_per_image=1)
        assert (keep.tolist(), scores.tolist()) == ([0], pytest.approx([0.9]))
        keep, scores = suppress(*NONE, method=method)
        assert (keep.dtype, keep.shape, scores.dtype, scores.shape) == (
            torch.int64,
            (0,),
            torch.float32,
            (0,),
        )

    @pytest.mark.parametrize("method", ["hard", "soft_linear", "soft_gaussian", "none"])
    def test_what_is_not_finite_is_left_out_and_spoils_nothing_else(self, method):
        bad = torch.tensor([[math.nan, 0.0, 9.0, 9.0], [0.0, 0.0, math.inf, 9.0], A, B, C])
        scores = torch.tensor([0.9, 0.9, math.nan, 0.8, 0.7])
        keep, values = suppress(bad, scores, torch.zeros(5, dtype=torch.int64), method=method)
        assert (keep.tolist(), values.tolist()) == ([3, 4], pytest.approx([0.8, 0.7]))

    def test_unlimited(self):
        boxes, scores, groups = scene(0)
        assert len(suppress(boxes, scores, groups, method="none", max_per_image=None)[0]) == len(boxes)

    def test_unknown_method_and_option_are_refused(self):
        with pytest.raises(ValueError, match="'softish'"):
            suppress(BOXES, SCORES, ONE_GROUP, method="softish")
        with pytest.raises(TypeError, match="sigmoid"):
            suppress(BOXES, SCORES, ONE_GROUP, sigmoid=1.0)
        with pytest.raises(ValueError, match="'softish'"):
            suppress(BOXES, SCORES, ONE_GROUP, method=["hard", "softish"])
        with pytest.raises(ValueError, match=r"sigma > 0, found 0\.0"):
            suppress(BOXES, SCORES, ONE_GROUP, method="soft_gaussian", sigma=0.0)


METHODS = ("hard", "soft_linear", "soft_gaussian", "none")
SETTINGS = [
    {"method": "soft_linear", "iou_threshold": 0.25, "sigma": 0.5, "min_score": 1e-3},
    {"method": "hard", "iou_threshold": 0.375, "sigma": 0.5, "min_score": 1e-3},
    {"method": "soft_gaussian", "iou_threshold": 0.5, "sigma": 0.25, "min_score": 1e-2},
    {"method": "none", "iou_threshold": 0.5, "sigma": 0.5, "min_score": 1e-3},
    {"method": "soft_linear", "iou_threshold": 0.75, "sigma": 0.5, "min_score": 0.125},
    {"method": "soft_gaussian", "iou_threshold": 0.5, "sigma": 1.0, "min_score": 1e-6},
]


def options_of(settings):
    """A list of settings by category as `suppress` takes them."""
    columns = {name: [given[name] for given in settings] for name in settings[0]}
    return {name: column if name == "method" else torch.tensor(column) for name, column in columns.items()}


def assert_as_the_reference(boxes, scores, labels, images, settings, max_per_image=None):
    keep, values = suppress(
        boxes, scores, labels, images, max_per_image=max_per_image, **options_of(settings)
    )
    expected, final = slow_nms.suppress(
        boxes, scores, labels.tolist(), images.tolist(), settings, max_per_image
    )
    assert keep.tolist() == expected
    np.testing.assert_allclose(values.numpy(), final, rtol=1e-5)


class TestManyImagesAndCategories:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("grid", [None, 8])
    @pytest.mark.parametrize("max_per_image", [None, 20, 3])
    def test_a_mixture_of_settings_equals_the_reference(self, seed, grid, max_per_image):
        boxes, scores, labels = scene(seed, count=300, groups=6, grid=grid)
        images = torch.randint(0, 4, (300,), generator=torch.Generator().manual_seed(seed)) * 2
        assert_as_the_reference(boxes, scores, labels, images, SETTINGS, max_per_image)

    @given(
        seed=st.integers(0, 10_000),
        methods=st.lists(st.sampled_from(METHODS), min_size=3, max_size=3),
        max_per_image=st.sampled_from([None, 1, 5]),
        count=st.integers(0, 40),
    )
    def test_any_mixture_equals_the_reference(self, seed, methods, max_per_image, count):
        boxes, scores, labels = scene(seed, count=count, groups=3, grid=16)
        settings = [{**SETTINGS[0], "method": method} for method in methods]
        assert_as_the_reference(boxes, scores, labels, labels.flip(0) % 2, settings, max_per_image)

    def test_every_image_is_treated_as_if_it_were_alone(self):
        boxes, scores, labels = scene(5, count=200, groups=6)
        images = torch.arange(200) % 3
        keep, values = suppress(boxes, scores, labels, images, max_per_image=10, **options_of(SETTINGS))
        for image in range(3):
            rows = (images == image).nonzero()[:, 0]
            alone, expected = suppress(
                boxes[rows], scores[rows], labels[rows], max_per_image=10, **options_of(SETTINGS)
            )
            mine = images[keep] == image
            assert keep[mine].tolist() == rows[alone].tolist()
            assert values[mine].tolist() == expected.tolist()

    @pytest.mark.parametrize(("portion", "steps"), [(1, 8), (64, 1), (200, 3)])
    @pytest.mark.parametrize("max_per_image", [None, 2, 11])
    def test_the_pace_at_which_images_are_treated_does_not_show(
        self, portion, steps, max_per_image, monkeypatch
    ):
        monkeypatch.setattr("scantling.ops.soft_nms._PORTION", portion)
        monkeypatch.setattr("scantling.ops.soft_nms._MIN_STEPS", steps)
        boxes, scores, labels = scene(11, count=300, groups=4, grid=2)
        images = torch.arange(300) * 7 % 9
        settings = [given for given in SETTINGS if given["method"].startswith("soft")]
        assert_as_the_reference(boxes, scores, labels, images, settings, max_per_image)

    @pytest.mark.parametrize("method", METHODS)
    def test_many_lanes_of_one_box_and_one_long_lane(self, method):
        boxes, scores, _ = scene(7, count=260)
        labels = torch.where(torch.arange(260) < 120, 0, torch.arange(260))
        settings = [{**SETTINGS[0], "method": method} for _ in range(260)]
        assert_as_the_reference(boxes, scores, labels, torch.zeros_like(labels), settings, 150)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("settings", [[{**SETTINGS[0], "method": m}] * 6 for m in METHODS] + [SETTINGS])
def test_same_result_on_the_gpu(settings):
    boxes, scores, labels = scene(3, groups=6)
    images = torch.arange(150) % 2
    options = options_of(settings)
    keep, values = suppress(boxes, scores, labels, images, **options)
    moved = (boxes.cuda(), scores.cuda(), labels.cuda(), images.cuda())
    on_gpu = {name: value.cuda() for name, value in options.items() if name != "method"}
    gpu_keep, gpu_values = suppress(*moved, method=options["method"], **on_gpu)
    assert (gpu_keep.device.type, gpu_values.device.type) == ("cuda", "cuda")
    assert (gpu_keep.tolist(), gpu_values.tolist()) == (keep.tolist(), values.tolist())
