"""Objects laid onto images: what lies on top hides what lies below, in pixels, masks and boxes alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.samples.scenes import is_sound, same, scene
from scantling.data.samples.paste import blend, cut_sides, lay, pasted, solid_masks


def moved(x, y, scale=1.0):
    return np.array([[scale, 0.0, x], [0.0, scale, y]])


def test_an_object_takes_its_pixels_along_and_hides_what_it_covers():
    below = scene([(10, 10, 30, 30), (50, 10, 60, 20)])
    above = scene([(0, 0, 10, 20)], seed=1, labels=[3], image_id=2)
    layer = lay(above, torch.tensor([0]), moved(20, 5), below.size_hw)
    done = pasted(below, [layer], min_visibility=0.1)
    assert done.instances.boxes.tolist() == [[10, 10, 30, 30], [50, 10, 60, 20], [20, 5, 30, 25]]
    assert done.instances.masks.areas().tolist() == [400 - 150, 100, 200]
    assert done.instances.labels.tolist() == [0, 0, 3]
    assert done.instances.ids.tolist() == [100, 101, 200]
    assert (done.hwc[6:24, 21:29] == 100).all()
    assert (done.hwc[30:] == below.hwc[30:]).all()
    assert (below.hwc[12, 25] == 100).all()  # what was given stays


def test_a_corner_covered_leaves_the_box_and_a_strip_covered_narrows_it():
    below = scene([(10, 10, 30, 30)])
    corner = lay(scene([(0, 0, 8, 8)]), torch.tensor([0]), moved(25, 25), below.size_hw)
    strip = lay(scene([(0, 0, 8, 40)]), torch.tensor([0]), moved(25, 5), below.size_hw)
    assert pasted(below, [corner], min_visibility=0).instances.boxes[0].tolist() == [10, 10, 30, 30]
    assert pasted(below, [strip], min_visibility=0).instances.boxes[0].tolist() == [10, 10, 25, 30]


@pytest.mark.parametrize(("left", "stays"), [(3, True), (1, False), (0, False)])
def test_what_is_covered_beyond_a_share_is_dropped(left, stays):
    below = scene([(10, 10, 30, 30)])
    layer = lay(scene([(0, 0, 20 - left, 20)]), torch.tensor([0]), moved(10, 10), below.size_hw)
    done = pasted(below, [layer], min_visibility=0.1)
    assert done.instances.masks.areas().tolist() == ([20.0 * left] if stays else []) + [20.0 * (20 - left)]


def test_a_crowd_region_stays_as_long_as_a_pixel_is_left():
    below = scene([(10, 10, 30, 30)], crowd=[True])
    for width, kept in ((19, 2), (20, 1)):
        layer = lay(scene([(0, 0, width, 20)]), torch.tensor([0]), moved(10, 10), below.size_hw)
        assert len(pasted(below, [layer], min_visibility=0.5).instances) == kept


def test_of_two_laid_objects_the_later_hides_the_earlier():
    below, small = scene([]), scene([(0, 0, 10, 10)])
    first = lay(small, torch.tensor([0]), moved(20, 20), below.size_hw)
    second = lay(small, torch.tensor([0]), moved(25, 20), below.size_hw)
    done = pasted(below, [first, second], min_visibility=0.1)
    assert done.instances.boxes.tolist() == [[20, 20, 25, 30], [25, 20, 35, 30]]
    assert len(pasted(below, [first, first], min_visibility=0.1).instances) == 1


def test_objects_laid_together_keep_what_hides_what():
    pair = scene([(10, 10, 20, 20), (5, 5, 20, 20)])
    layer = lay(pair, torch.tensor([0, 1]), moved(7, 3), (60, 80))
    assert layer.instances.masks.to_rles() == pair.instances.masks.warp(moved(7, 3), (60, 80)).to_rles()
    done = pasted(scene([]), [layer], min_visibility=0)
    assert done.instances.masks.areas().tolist() == [100, 125]
    assert is_sound(done.instances)


def test_the_border_cuts_what_leaves_the_image():
    small = scene([(0, 0, 10, 10)])
    layer = lay(small, torch.tensor([0]), moved(-4, 55), (60, 80))
    assert layer.instances.boxes.tolist() == [[0, 55, 6, 60]]
    assert lay(small, torch.tensor([0]), moved(-10, 0), (60, 80)) is None
    assert lay(small, torch.tensor([0]), moved(0, 60), (60, 80)) is None


def test_size_changes_area_by_the_square_of_the_factor():
    big = scene([(8, 8, 40, 40)])
    for scale in (0.25, 0.5, 2.0):
        layer = lay(big, torch.tensor([0]), moved(0, 0, scale), (60, 80) if scale < 1 else (120, 160))
        assert layer.instances.boxes.tolist() == [[8 * scale, 8 * scale, 40 * scale, 40 * scale]]
        x, y = layer.offset_xy
        inner = layer.opacity[round(10 * scale) - y + 1 :, round(10 * scale) - x + 1 :][
            : int(24 * scale), : int(24 * scale)
        ]
        assert (inner == 255).all()


def test_boxes_without_masks_are_rectangles_that_fade_in():
    below = scene([(10, 10, 30, 30)], masks=False)
    above = scene([(2, 2, 22, 22)], masks=False)
    layer = lay(above, torch.tensor([0]), moved(18, 3), below.size_hw, feather=0.25)
    profile = layer.opacity[10].tolist()  # 5 pixels of ramp on both sides of 20, and a rim
    expected = [round(255 * (0.5 - 0.5 * np.cos(np.pi * (i + 0.5) / 5))) for i in range(5)]
    assert profile == [0, *expected, *[255] * 10, *expected[::-1], 0]
    done = pasted(below, [layer], min_visibility=0.1)
    assert done.instances.masks is None
    assert done.instances.boxes.tolist() == [[10, 10, 30, 30], [20, 5, 40, 25]]
    tall = lay(scene([(2, 2, 22, 50)], masks=False), torch.tensor([0]), moved(18, 3), below.size_hw)
    assert pasted(below, [tall], min_visibility=0.1).instances.boxes[0].tolist() == [10, 10, 20, 30]


def test_opacity_is_how_much_of_the_upper_pixel_is_seen():
    layer = lay(scene([(0, 0, 10, 10)]), torch.tensor([0]), moved(0.5, 0), (60, 80))
    image = np.zeros((60, 80, 3), dtype=np.uint8)
    blend(image, layer)
    assert image[5, :12, 0].tolist() == [50, *[100] * 9, 50, 0]


def test_nothing_laid_is_nothing_changed():
    below = scene([(10, 10, 30, 30)])
    assert pasted(below, [], min_visibility=0.9) is below


def test_rectangles_stand_for_missing_masks_inside_the_image():
    whole = scene([(10, 10, 30, 30)], masks=False).instances
    outside = whole.replace(boxes=torch.tensor([[-3.4, 9.6, 12.2, 70.0]]))
    assert solid_masks(outside).boxes().tolist() == [[0, 10, 12, 60]]
    assert same(scene([(10, 10, 30, 30)]), scene([(10, 10, 30, 30)]))


def test_a_box_is_cut_where_it_touches_the_border():
    boxes = torch.tensor([[0.0, 10, 20, 20], [2, 2, 78, 58], [10, 0, 80, 60]])
    expected = [[True, False, False, False], [False] * 4, [False, True, True, True]]
    assert cut_sides(boxes, (60, 80)).tolist() == expected
