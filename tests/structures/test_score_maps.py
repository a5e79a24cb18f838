from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scantling.structures.sample import Frame
from scantling.structures.score_maps import ScoreMap, ScoreMaps

HALF = np.array([[0.5, 0, 0], [0, 0.5, 0]])


def half(planes, labels=None) -> ScoreMap:
    """A map of half the image's side."""
    planes = np.array(planes, dtype=np.uint8)
    h, w = planes.shape[1:]
    frame = Frame.identity((2 * h, 2 * w)).then(HALF, (h, w))
    return ScoreMap(planes=planes, labels=labels, frame=frame)


def test_cells_are_read_between_their_centres():
    # centres of four pixels lie at 0.25, 0.75, 1.25, 1.75 of two cells whose centres lie at 0.5 and 1.5
    assert half([[[0, 200]]]).scores(0).tolist() == [[0, 50, 150, 200]] * 2


@given(st.integers(0, 7), st.integers(0, 5), st.integers(0, 7), st.integers(0, 5))
def test_a_window_is_that_part_of_the_whole(x1, y1, width, height):
    one = half(np.random.default_rng(0).integers(0, 256, (1, 5, 7)))
    x2, y2 = min(14, x1 + width), min(10, y1 + height)
    assert np.array_equal(one.scores(0, (x1, y1, x2, y2)), one.scores(0)[y1:y2, x1:x2])


def test_a_map_of_the_images_size_is_taken_as_it_is():
    plane = np.random.default_rng(1).integers(0, 256, (1, 6, 9), dtype=np.uint8)
    one = ScoreMap(planes=plane, labels=None, frame=Frame.identity((6, 9)))
    assert np.array_equal(one.scores(5), plane[0])
    assert np.array_equal(one.scores(5, (2, 1, 8, 5)), plane[0, 1:5, 2:8])


def test_a_rotated_map_is_seen_upright():
    quarter = np.array([[0.0, -1, 4], [1, 0, 0]])  # x' = 4 - y, y' = x
    frame = Frame.identity((4, 6)).then(quarter, (6, 4))
    upright = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    planes = np.rot90(upright, -1)[None]  # clockwise
    assert np.array_equal(ScoreMap(planes=planes, labels=None, frame=frame).scores(0), upright)


def test_pixels_whose_centre_is_in_the_box_and_whose_score_is_above_the_threshold():
    planes = np.full((1, 4, 6), 127, dtype=np.uint8)
    planes[0, 1:3, 2:5] = 128  # 0.5 lies between the two
    one = ScoreMap(planes=planes, labels=None, frame=Frame.identity((4, 6)))
    patch, corner = one.foreground(0, (2.5, -3, 4.4, 2.51))
    assert corner == (2, 0)  # the centre of column 2 lies on the box's edge
    assert patch.tolist() == [[0, 0], [1, 1], [1, 1]]
    assert one.foreground(0, (2.6, 1, 4.4, 2))[1] == (3, 1)
    assert one.foreground(0, (2.6, 1, 3.4, 2))[0].shape == (0, 0)
    assert one.foreground(0, (7, 1, 9, 2))[0].shape == (0, 0)
    assert one.foreground(0)[0].sum() == 6
    assert one.foreground(0, threshold=1.0)[0].sum() == 0


def test_a_category_without_a_plane_has_no_pixel():
    scores = torch.zeros(4, 2, 3)
    scores[1], scores[3] = 1.0, 0.25
    one = ScoreMap.from_scores(scores, Frame.identity((2, 3)), by_category=True)
    assert (one.labels, len(one.planes)) == ((1, 3), 2)
    assert [int(one.scores(label).max()) for label in range(4)] == [0, 255, 0, 64]
    assert one.plane(2) is None
    assert one.foreground(0)[0].sum() == 0


def test_one_plane_for_all_serves_every_category():
    one = ScoreMap.from_scores(torch.full((1, 2, 2), 0.4), Frame.identity((2, 2)), by_category=False)
    assert [int(one.scores(label)[0, 0]) for label in (0, 7)] == [102, 102]


def test_the_mean_counts_absent_planes_as_nothing():
    first = half([[[200]], [[100]]], labels=(0, 2))
    second = half([[[101]]], labels=(2,))
    mean = ScoreMap.mean([first, second])
    assert mean.labels == (0, 2)
    assert mean.planes.ravel().tolist() == [100, 100]  # 100.5 to the even neighbour
    assert ScoreMap.mean([first]).planes.tolist() == first.planes.tolist()
    with pytest.raises(ValueError, match="of one kind"):
        ScoreMap.mean([first, half([[[1]]])])
    with pytest.raises(ValueError, match="lie alike"):
        ScoreMap.mean([half([[[1, 2]]]), half([[[1]]])])


def test_what_disagrees_is_refused():
    frame = Frame.identity((2, 3))
    for planes, labels in (
        (np.zeros((1, 2, 4), np.uint8), None),
        (np.zeros((1, 2, 3), np.float32), None),
        (np.zeros((2, 2, 3), np.uint8), None),
        (np.zeros((2, 2, 3), np.uint8), (1, 1)),
    ):
        with pytest.raises(ValueError, match="ScoreMap"):
            ScoreMap(planes=planes, labels=labels, frame=frame)


def test_maps_are_read_when_asked_for():
    asked = []

    def read(position):
        asked.append(position)
        return None if position == 1 else half([[[position]]])

    maps = ScoreMaps(3, read)
    assert (len(maps), asked) == (3, [])
    assert [None if one is None else int(one.planes[0, 0, 0]) for one in maps] == [0, None, 2]
    assert asked == [0, 1, 2]
    with pytest.raises(IndexError):
        maps[3]
