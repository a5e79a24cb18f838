"""Drawings: pixels where they must be, tags that keep apart, the original untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scantling.report.draw import DrawStyle, draw, fill_mask, place_tags
from scantling.report.palette import PALETTE, colour_of, hex_of, ink_on
from scantling.structures.instances import ImageMasks, Instances

BLANK = np.full((100, 200, 3), 128, dtype=np.uint8)


def instances(boxes, labels=None, **fields):
    return Instances(
        size_hw=(100, 200),
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
        **fields,
    )


def test_a_box_is_drawn_on_its_edges_in_its_categorys_colour():
    drawn = draw(
        BLANK,
        instances([[20, 30, 120, 80]], [2]),
        ["a", "b", "c"],
        DrawStyle(line_width=2, show_labels=False),
    )
    for row, column in [(30, 70), (80, 70), (55, 20), (55, 120)]:
        assert np.abs(drawn[row - 1 : row + 1, column - 1 : column + 1].astype(int) - colour_of(2)).max() < 70
    assert (drawn[40:70, 30:110] == 128).all()
    assert (drawn[:26] == 128).all()


def test_the_image_is_not_changed_and_no_instances_give_a_copy():
    image = BLANK.copy()
    drawn = draw(image, instances([]), [])
    assert (drawn == image).all()
    assert drawn is not image
    draw(image, instances([[0, 0, 50, 50]]), ["a"])
    assert (image == BLANK).all()


def test_a_read_only_view_can_be_drawn_on():
    view = np.ascontiguousarray(BLANK.transpose(2, 0, 1)).transpose(1, 2, 0)
    view.flags.writeable = False
    assert (draw(view, instances([[20, 30, 120, 80]]), ["a"]) != BLANK).any()


def test_a_mask_is_blended_inside_and_only_there():
    dense = torch.zeros(1, 100, 200, dtype=torch.bool)
    dense[0, 40:60, 50:90] = True
    masks = ImageMasks.from_dense(dense)
    style = DrawStyle(line_width=1, show_labels=False, mask_opacity=0.5)
    drawn = draw(BLANK, instances([[50, 40, 90, 60]], masks=masks), ["a"], style)
    assert drawn[50, 70].tolist() == [round((128 + channel) / 2) for channel in colour_of(0)]
    assert (drawn[70:, :] == 128).all()


def test_fill_mask_keeps_what_is_outside():
    region = np.full((4, 4, 3), 100, dtype=np.uint8)
    mask = np.eye(4, dtype=np.uint8)
    fill_mask(region, mask, (200, 0, 100), 0.25)
    assert region[0, 0].tolist() == [125, 75, 100]
    assert (region[mask == 0] == 100).all()


@pytest.mark.parametrize("name", ["bolt", "Größe", "болт"])
def test_names_in_other_scripts_are_written(name):
    """The tag has ink of its own on a plain ground, and other ink for another name."""
    named = draw(BLANK, instances([[20, 40, 150, 90]], scores=torch.tensor([0.93])), [name])
    other = draw(BLANK, instances([[20, 40, 150, 90]], scores=torch.tensor([0.93])), ["zzzzzz"])
    tag = named[:40, 20:60]
    assert (np.abs(tag.astype(int) - colour_of(0)).max(axis=2) < 3).any()
    assert (tag != other[:40, 20:60]).any()


def test_lines_grow_with_the_image():
    large = np.zeros((1200, 1600, 3), dtype=np.uint8)
    box = Instances(
        size_hw=(1200, 1600), boxes=torch.tensor([[200.0, 200, 900, 900]]), labels=torch.zeros(1).long()
    )
    painted = (draw(large, box, ["a"], DrawStyle(show_labels=False))[500] == colour_of(0)).all(axis=1).sum()
    assert painted >= 6  # two edges of four pixels, less what anti-aliasing takes


def test_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(90, 200\)"):
        draw(BLANK[:90], instances([[0, 0, 5, 5]]), ["a"])


def overlap(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def test_tags_of_equal_boxes_lie_apart_and_the_first_has_the_usual_place():
    places = place_tags([(50, 50, 150, 150)] * 6, [(30, 10)] * 6, (300, 300))
    assert places[0] == (50, 40, 80, 50)
    assert all(overlap(a, b) == 0 for i, a in enumerate(places) for b in places[:i])


corner = st.floats(-20, 300)


@given(st.lists(st.tuples(corner, corner, st.floats(1, 200), st.floats(1, 200)), max_size=8))
def test_tags_stay_inside_the_image(raw):
    boxes = [(x, y, x + width, y + height) for x, y, width, height in raw]
    for x1, y1, x2, y2 in place_tags(boxes, [(40, 12)] * len(boxes), (200, 300)):
        assert x1 >= 0
        assert y1 >= 0
        assert x2 <= 300
        assert y2 <= 200
        assert (x2 - x1, y2 - y1) == pytest.approx((40, 12))


def test_colours_differ_and_text_on_them_can_be_read():
    assert len(set(PALETTE)) == len(PALETTE)
    assert colour_of(len(PALETTE)) == colour_of(0)
    assert hex_of((0, 158, 115)) == "#009e73"
    for colour in PALETTE:
        lighter, darker = sorted([luminance(colour), luminance(ink_on(colour))], reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5  # WCAG AA


def luminance(colour):
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))
