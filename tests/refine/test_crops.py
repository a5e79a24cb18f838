"""Windows and crops: what is shown lies exactly where it is said to lie."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scantling.refine import crops
from scantling.refine.crops import (
    OUTSIDE,
    _shown,
    crop_windows,
    cut,
    cut_on_device,
    from_crop,
    to_crop,
)
from scantling.structures.sample import Frame


def crop_frame(window: np.ndarray, image_hw: tuple[int, int], side: int) -> Frame:
    """Where the square crop of a window lies in its image, by the arithmetic of every other frame."""
    x1, y1, x2, y2 = (float(edge) for edge in window)
    scale_x, scale_y = side / (x2 - x1), side / (y2 - y1)
    matrix = np.array([[scale_x, 0.0, -x1 * scale_x], [0.0, scale_y, -y1 * scale_y]])
    return Frame.identity(image_hw).then(matrix, (side, side))


def windows_of(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def test_padding_is_relative_to_each_side_and_rounded_outwards():
    boxes = np.array([[10.0, 20.0, 20.5, 40.0]])
    assert crop_windows(boxes, 0.2).tolist() == [[7, 16, 23, 44]]  # 7.9, 16, 22.6, 44
    each = np.array([[0.0, 0.5, 1.0, 0.0]])
    assert crop_windows(boxes, each).tolist() == [[10, 10, 31, 40]]
    assert crop_windows(np.array([[5.0, 5.0, 5.0, 5.0]]), 0.2).tolist() == [[5, 5, 6, 6]]
    assert crop_windows(np.zeros((0, 4)), 0.2).shape == (0, 4)


@given(
    corner=st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
    size=st.tuples(st.floats(1, 60), st.floats(1, 60)),
    padding=st.floats(0, 1),
)
def test_crop_coordinates_are_those_of_the_frame_and_invert(corner, size, padding):
    box = np.array([[*corner, corner[0] + size[0], corner[1] + size[1]]])
    windows = crop_windows(box, padding)
    inside = to_crop(box, windows)
    assert inside.min() >= 0
    assert inside.max() <= 1
    frame = crop_frame(windows[0], (200, 300), 64)
    assert frame.size_hw == (64, 64)
    moved = frame.apply_boxes(torch.from_numpy(box)).numpy() / 64
    np.testing.assert_allclose(moved, inside, atol=1e-12)
    np.testing.assert_allclose(from_crop(inside, windows), box, atol=1e-9)
    np.testing.assert_allclose(from_crop(to_crop(box[:, 2:], windows), windows), box[:, 2:], atol=1e-9)


def test_what_is_cut_lies_where_the_frame_says():
    """A ramp makes every pixel tell its place: value = x (red) and y (green) of the pixel's centre."""
    height, width = 120, 200
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    window = windows_of([30, 40, 94, 72])  # enlarged 2 and 4 times in a crop of 128
    crop = cut(pixels, window, 128)[0].numpy().astype(float)
    inverse = crop_frame(window[0], (height, width), 128).inverse()
    centres = np.arange(128) + 0.5
    expected_x = inverse[0, 0] * centres + inverse[0, 2] - 0.5
    expected_y = inverse[1, 1] * centres + inverse[1, 2] - 0.5
    inner = slice(4, -4)  # at the border the crop repeats the window's last pixel
    assert np.abs(crop[0] - expected_x)[:, inner].max() <= 0.51
    assert np.abs(crop[1] - expected_y[:, None])[inner].max() <= 0.51


@given(
    corner=st.tuples(st.floats(-50, 300), st.floats(-50, 300)),
    size=st.tuples(st.floats(0, 9000), st.floats(0, 900)),
    side=st.sampled_from([32, 64, 224]),
)
def test_windows_that_are_halved_halve_exactly_and_grow_by_less_than_a_pixel_of_the_crop(corner, size, side):
    box = np.array([[*corner, corner[0] + size[0], corner[1] + size[1]]])
    plain, window = crop_windows(box, 0.2)[0], crop_windows(box, 0.2, side)[0]
    assert (window[:2] == plain[:2]).all()
    before, after = plain[2:] - plain[:2], window[2:] - window[:2]
    assert ((after >= before) & (after - before < np.maximum(1, before / side))).all()
    now, sizes = after.copy(), before.copy()
    while max(sizes) > 2 * side:  # as `cut` halves: both sides, none below that of the crop
        assert max(now) > 2 * side
        assert all(length % 2 == 0 for length in now if length // 2 >= side)
        now, sizes = (np.maximum(side, (lengths + 1) // 2) for lengths in (now, sizes))
    assert max(now) <= 2 * side  # no further halving becomes due


@pytest.mark.parametrize(
    ("windows", "framed"),
    [
        ([[-9, -7, 120, 90], [10, 5, 140, 100], [40, 30, 60, 50], [-5, 3, 110, 99]], True),
        ([[-9, -7, 10, 6], [110, 80, 140, 110]], False),  # small: each is filled up alone
        ([[-90, -90, -10, -10], [5, 5, 140, 99], [-20, 0, 110, 80]], False),  # the frame would be large
        ([[-9, -7, 120, 90]], False),
    ],
)
def test_windows_that_leave_the_image_together_are_those_that_leave_it_alone(
    picture, windows, framed, monkeypatch
):
    shown = []
    monkeypatch.setattr(
        crops, "_shown", lambda pixels, window: shown.append(pixels) or _shown(pixels, window)
    )
    together = cut(picture, windows_of(*windows), 48)
    assert all((pixels is not picture) == framed for pixels in shown)
    alone = [cut(picture, windows_of(window), 48)[0] for window in windows]
    assert torch.equal(together, torch.stack(alone))


def test_outside_the_image_is_the_mean_colour():
    pixels = np.full((20, 20, 3), 200, dtype=np.uint8)
    crops = cut(pixels, windows_of([-10, 0, 10, 20], [30, 30, 40, 40], [5, 5, 15, 15]), 40).numpy()
    assert crops[0, :, :, 0].tolist() == [[level] * 40 for level in OUTSIDE]
    assert (crops[0, :, :, 25:] == 200).all()
    assert (crops[1] == np.array(OUTSIDE)[:, None, None]).all()
    assert (crops[2] == 200).all()
    assert cut(pixels, windows_of(), 40).shape == (0, 3, 40, 40)


def test_shrinking_averages_instead_of_skipping():
    """A fine checkerboard becomes grey; without averaging it would stay black and white."""
    board = np.indices((512, 512)).sum(axis=0) % 2 * 255
    pixels = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    for crop in (cut(pixels, windows_of([0, 0, 512, 512]), 64), on_device(pixels, [0, 0, 512, 512], 64)):
        assert np.abs(crop.numpy().astype(float) - 127.5).max() <= 1


def on_device(pixels: np.ndarray, window: list[int], side: int) -> torch.Tensor:
    return cut_on_device(torch.from_numpy(pixels).permute(2, 0, 1), windows_of(window), side)


@pytest.mark.parametrize("window", [[20, 10, 60, 50], [-8, 30, 40, 90], [100, 60, 150, 110]])
def test_both_ways_of_cutting_agree_where_a_window_is_enlarged(picture, window):
    height, width = picture.shape[:2]
    pixels = cv2.GaussianBlur(picture, (5, 5), 1)
    ours = cut(pixels, windows_of(window), 120).numpy().astype(int)[0]
    theirs = on_device(pixels, window, 120).numpy().astype(int)[0]
    scale = 120 / (window[2] - window[0])
    rows, columns = (np.arange(120) + 0.5) / scale + window[1], (np.arange(120) + 0.5) / scale + window[0]
    near = lambda places, low, high: (  # noqa: E731 - where interpolation meets the window's or the image's border
        (np.abs(places - low) < 1.5) | (np.abs(places - high) < 1.5)
    )
    keep_y = ~(near(rows, 0, height) | near(rows, window[1], window[3]))
    keep_x = ~(near(columns, 0, width) | near(columns, window[0], window[2]))
    difference = np.abs(ours - theirs)[:, keep_y][:, :, keep_x]
    assert difference.size > 3 * 80 * 80
    assert difference.max() <= 1


def test_both_ways_of_cutting_are_alike_where_a_window_is_shrunk(picture):
    pixels = cv2.resize(picture, (640, 480), interpolation=cv2.INTER_CUBIC)
    ours = cut(pixels, windows_of([3, 5, 403, 303]), 96).numpy().astype(float)
    theirs = on_device(pixels, [3, 5, 403, 303], 96).numpy().astype(float)
    assert np.abs(ours - theirs).mean() < 2
