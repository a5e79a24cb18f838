"""Tiles: where they lie, and that every object comes out once and whole, wherever the borders fall."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reference.colour_detector import CLASS_NAMES, ColourDetector
from scantling.errors import ConfigError, DataError
from scantling.models.suppression import SuppressConfig
from scantling.predict.predictor import PredictConfig, Predictor
from scantling.predict.tiles import TileGrid, merge, sort_out
from scantling.structures.instances import Instances
from scantling.structures.masks import RoiMasks

TILED = {"tile": 100, "overlap": 0.3, "scales": 100, "long_side": 400}


def look(record, model=None, **settings):
    predictor = Predictor(model or ColourDetector(), PredictConfig(**(TILED | settings)), CLASS_NAMES)
    ((_, found),) = predictor.predict_records([record])
    return found


def seen_by_tiles(objects, size_hw, tile, overlap, *, shift=0.0, drop=()):
    """What an exact detector reports in every tile: objects clipped to its window; `drop` are blind tiles."""
    grid = TileGrid.over(size_hw, tile, overlap)
    tiles = []
    for index, window in enumerate(grid.windows):
        low, high = torch.tensor(window[:2] * 2), torch.tensor(window[2:] * 2)
        boxes = torch.tensor([box for _, box in objects], dtype=torch.float32).reshape(-1, 4)
        clipped = torch.minimum(torch.maximum(boxes, low), high)
        visible = ((clipped[:, 2:] - clipped[:, :2]) > 3).all(dim=1) & (index not in drop)
        labels = torch.tensor([label for label, _ in objects], dtype=torch.int64)[visible]
        boxes = clipped[visible] + shift * (-1) ** index
        found = Instances(size_hw=size_hw, boxes=boxes, labels=labels, scores=torch.full((len(labels),), 0.9))
        tiles.append(sort_out(grid, index, found))
    return grid, tiles


@given(st.integers(1, 3000), st.integers(32, 900), st.floats(0, 0.9))
def test_tiles_cover_the_image_evenly_with_at_least_the_overlap(length, tile, overlap):
    grid = TileGrid.over((length, 50), tile, overlap)
    rows = grid.rows
    assert (rows[0][0], rows[-1][1]) == (0, length)
    assert all(y2 - y1 == min(tile, length) for y1, y2 in rows)
    shared = [a[1] - b[0] for a, b in zip(rows, rows[1:], strict=False)]
    assert all(s >= tile * overlap - 1 for s in shared)
    assert not shared or max(shared) - min(shared) <= 1
    needed = 1 if length <= tile else np.ceil((length - tile) / np.floor(tile * (1 - overlap))) + 1
    assert len(rows) == needed


def test_windows_run_row_by_row_and_a_small_image_is_one_tile():
    assert TileGrid.over((60, 90), 50, 0.2).windows == [
        (0, 0, 50, 50), (40, 0, 90, 50), (0, 10, 50, 60), (40, 10, 90, 60)
    ]  # fmt: skip
    assert TileGrid.over((60, 90), 100, 0.2).windows == [(0, 0, 90, 60)]


def test_the_edge_of_the_image_is_no_border():
    grid = TileGrid.over((100, 180), 100, 0.2)
    assert grid.touches(torch.tensor([[0.0, 0, 40, 100], [50, 20, 99, 60]]), 0).tolist() == [
        [False] * 4,
        [False, False, True, False],
    ]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [100, 150, (100, 200)])
@pytest.mark.parametrize("x", [50, 69, 71, 85, 95, 99, 101, 120])
def test_an_object_on_a_border_comes_out_once_and_whole(paint, x, scales, flip):
    """Tiles 0..100, 67..167, 134..234 ...: the object of 28 px is shorter than the overlap."""
    box = (x, 60, x + 28, 85)
    record = paint("a.png", (170, 300), {1: box})
    found = look(record, scales=scales, flip=flip)
    assert found.labels.tolist() == [1]
    np.testing.assert_allclose(found.boxes[0], box, atol=0.2)
    assert found.size_hw == (170, 300)


@pytest.mark.parametrize(
    "box", [(10, 10, 290, 40), (60, 5, 100, 165), (20, 20, 280, 150), (0, 0, 300, 170), (66, 60, 134, 80)]
)
def test_an_object_larger_than_a_tile_comes_out_put_together(paint, box):
    found = look(paint("a.png", (170, 300), {2: box}))
    assert len(found) == 1
    np.testing.assert_allclose(found.boxes[0], box, atol=0.2)
    assert found.scores.tolist() == pytest.approx([0.9])


def test_many_objects_give_what_the_whole_image_gives(paint):
    objects = {0: (40, 30, 60, 180), 1: (90, 95, 108, 111), 2: (150, 20, 390, 60)}
    record = paint("a.png", (200, 400), objects)
    whole = Predictor(ColourDetector(), PredictConfig(scales=200), CLASS_NAMES)
    ((_, expected),) = whole.predict_records([record])
    for batch_size in (1, 4):
        found = look(record, batch_size=batch_size)
        assert sorted(found.labels.tolist()) == sorted(expected.labels.tolist()) == [0, 1, 2]
        order = found.labels.argsort()
        torch.testing.assert_close(
            found.boxes[order], expected.boxes[expected.labels.argsort()], atol=0.2, rtol=0
        )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 4), st.integers(8, 58), st.integers(8, 58)),
        min_size=1, max_size=8, unique_by=lambda o: (o[1], o[2]),
    ),
    st.sampled_from([0.2, 0.35, 0.5]),
    st.sampled_from([0.0, 0.4]),
)  # fmt: skip
@example([(0, 1, 1, 58, 58), (0, 2, 1, 58, 58)], 0.2, 0.4)
def test_separate_objects_come_back_one_for_one(objects, overlap, shift):
    """Objects in cells of 70 px; every tile's view of them may be off by a little, in opposite ways."""
    truths = [(c, (70 * x + 6, 70 * y + 6, 70 * x + 6 + w, 70 * y + 6 + h)) for c, x, y, w, h in objects]
    grid, tiles = seen_by_tiles(truths, (350, 490), 96, overlap, shift=shift)
    found = merge(grid, tiles)
    suppressed = {
        (int(label), *(round(v / 3) for v in box.tolist()))
        for label, box in zip(found.labels, found.boxes, strict=True)
    }
    for label, box in truths:
        near = (found.boxes - torch.tensor(box)).abs().amax(dim=1) <= 1.0
        assert bool((near & (found.labels == label)).any()), (label, box)
    strays = [
        box
        for label, box in zip(found.labels.tolist(), found.boxes, strict=True)
        if not any(c == label and float((box - torch.tensor(t)).abs().max()) <= 1.0 for c, t in truths)
    ]
    assert strays == [], suppressed


def test_a_piece_that_a_blind_neighbour_should_have_continued_is_kept_as_it_is():
    """Nothing is lost when no tile sees more: the object is long, and the tile that goes on missed it."""
    grid, tiles = seen_by_tiles([(0, (20, 20, 150, 50))], (90, 180), 100, 0.2, drop={1})
    assert merge(grid, tiles).boxes.tolist() == [[20, 20, 100, 50]]


def test_a_piece_in_a_tile_whose_neighbour_sees_it_whole_and_says_no_is_dropped():
    """The fragment 80..90 lies whole in the first tile, which sees more around it and finds nothing."""
    grid, tiles = seen_by_tiles([(0, (70, 20, 90, 50))], (90, 180), 100, 0.2, drop={0})
    assert len(merge(grid, tiles)) == 0


def test_two_categories_are_never_put_together():
    grid = TileGrid.over((100, 180), 100, 0.2)
    found = [one(grid, index, [box], [label]) for index, (box, label) in enumerate(
        [((10, 10, 100, 40), 0), ((80, 10, 170, 40), 1)]
    )]  # fmt: skip
    merged = merge(grid, found)
    assert sorted(merged.labels.tolist()) == [0, 1]
    same = merge(grid, [found[0], one(grid, 1, [(80, 10, 170, 40)], [0])])
    assert same.boxes.tolist() == [[10, 10, 170, 40]]


def test_neighbours_that_disagree_on_the_common_strip_are_two_objects():
    grid = TileGrid.over((100, 180), 100, 0.2)
    left, right = one(grid, 0, [(10, 10, 100, 40)], [0]), one(grid, 1, [(80, 35, 170, 90)], [0])
    assert len(merge(grid, [left, right])) == 2


def test_candidates_near_a_cut_object_that_stop_short_of_the_border_go_with_it():
    """A second, weaker candidate of the cut object ends inside the tile; alone it would pass for whole."""
    grid = TileGrid.over((100, 180), 100, 0.2)
    left = one(grid, 0, [(10, 10, 100, 40), (10, 10, 92, 40)], [0, 0], scores=[0.9, 0.3])
    right = one(grid, 1, [(80, 10, 170, 40)], [0])
    assert merge(grid, [left, right]).boxes.tolist() == [[10, 10, 170, 40]]


def test_the_overview_replaces_pieces_of_what_it_shows_whole_and_adds_nothing_small():
    grid = TileGrid.over((100, 180), 100, 0.2)
    left = one(grid, 0, [(10, 10, 100, 40)], [0])
    blind = one(grid, 1, [], [])
    overview = scored(grid, [(9, 10, 171, 41), (30, 60, 45, 75)], [0, 0], [0.6, 0.8])
    assert merge(grid, [left, blind], overview).boxes.tolist() == [[9, 10, 171, 41]]
    unsure = scored(grid, [(9, 10, 171, 41)], [0], [0.2])
    assert len(merge(grid, [left, blind], unsure)) == 2


def test_the_overview_finds_what_no_tile_can(paint):
    """This detector needs to see all four sides with room around them."""

    def sees(box, hw):
        return box[0] > 2 and box[1] > 2 and box[2] < hw[1] - 2 and box[3] < hw[0] - 2

    record = paint("a.png", (170, 300), {0: (20, 20, 280, 150)})
    assert len(look(record, ColourDetector(sees))) == 0
    found = look(record, ColourDetector(sees), overview=True)
    np.testing.assert_allclose(found.boxes, [(20, 20, 280, 150)], atol=1.5)


def test_the_last_step_is_the_configured_suppression(paint):
    record = paint("a.png", (170, 300), {0: (20, 20, 50, 50), 1: (200, 100, 230, 140)})
    assert len(look(record, suppress=SuppressConfig(max_per_image=1))) == 1
    soft = look(record, suppress=SuppressConfig(method="soft_linear", iou_threshold=0.3))
    assert len(soft) == 4
    assert soft.scores.min() < 0.6


def test_an_empty_image_and_an_image_smaller_than_a_tile(paint):
    assert look(paint("a.png", (170, 300), {})).boxes.shape == (0, 4)
    found = look(paint("b.png", (60, 70), {0: (5, 5, 30, 40)}), scales=60)
    np.testing.assert_allclose(found.boxes, [(5, 5, 30, 40)], atol=0.1)


def test_a_damaged_image_is_a_finding_and_the_rest_goes_on(paint):
    good, bad = paint("a.png", (150, 150), {0: (5, 5, 30, 40)}), paint("b.png", (150, 150), {})
    bad.path.write_bytes(bad.path.read_bytes()[:60])
    predictor = Predictor(ColourDetector(), PredictConfig(**TILED), CLASS_NAMES)
    assert [r.id for r, _ in predictor.predict_records([bad, good], skip_invalid=True)] == ["a.png"]
    assert len(predictor.findings) == 1
    with pytest.raises(DataError, match=r"b\.png"):
        list(predictor.predict_records([bad, good]))


def test_masks_are_refused():
    grid = TileGrid.over((100, 180), 100, 0.2)
    masks = RoiMasks(probabilities=torch.zeros(1, 28, 28))
    with pytest.raises(ConfigError, match="masks"):
        sort_out(grid, 0, scored(grid, [(1, 1, 5, 5)], [0], [0.5]).replace(masks=masks))


def scored(grid, boxes, labels, scores):
    return Instances(
        size_hw=grid.size_hw,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32),
    )


def one(grid, index, boxes, labels, scores=None):
    return sort_out(grid, index, scored(grid, boxes, labels, scores or [0.9] * len(labels)))


PEAK = r"""
    import re, sys
    from pathlib import Path
    from reference.colour_detector import CLASS_NAMES, ColourDetector
    from scantling.data.coco import ImageRecord
    from scantling.predict.predictor import PredictConfig, Predictor

    class Costly(ColourDetector):
        def encode(self, batch):
            maps = batch.images.float().repeat(1, 16, 1, 1)  # 50 MB for a tile of 512, as activations are
            return super().encode(batch) if float(maps.sum()) >= 0 else None

    for file in sys.argv[1:]:
        side = int(Path(file).stem)
        record = ImageRecord(id=side, file_name=file, path=Path(file), size_hw=(side, side))
        config = PredictConfig(scales=512, tile=512, overlap=0.1)
        ((_, found),) = Predictor(Costly(), config, CLASS_NAMES).predict_records([record])
        # ru_maxrss would be that of the process that started this one, if that was larger
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        print(int(peak[1]) * 1024, len(found))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_is_that_of_a_tile_and_the_image_itself(tmp_path: Path):
    """After an image of 1000 x 1000 (9 tiles) one of 3000 x 3000 (49) adds its own pixels, twice while they are
    decoded, and little more; the activations of all tiles would be 2.4 GB."""
    sides = (1000, 3000)
    files = [str(tmp_path / f"{side}.png") for side in sides]
    for file, side in zip(files, sides, strict=True):
        pixels = np.zeros((side, side, 3), np.uint8)
        pixels[100 : side - 100, 200:300, 2] = 255
        cv2.imwrite(file, pixels)
    source = Path(__file__).parents[2]
    path = os.pathsep.join([str(source / "src"), str(source / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PEAK), *files],
        capture_output=True, text=True, check=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )  # fmt: skip
    (before, _), (after, num_found) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert num_found == 1
    pixels = 3 * (sides[1] ** 2 - sides[0] ** 2)
    assert pixels / 2 < after - before < 2 * pixels + 192 * 2**20
