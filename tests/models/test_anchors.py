from __future__ import annotations

import torch

from scantling.models.anchors import AnchorCache, AnchorConfig, cell_anchors, grid_anchors


def test_shapes_of_one_cell_by_hand() -> None:
    anchors = cell_anchors(4, AnchorConfig(scales=(8.0,), ratios=(0.25, 1.0, 4.0)))
    # side 32; ratio is height / width: 0.25 -> 64 x 16, 1 -> 32 x 32, 4 -> 16 x 64, all centred on the origin
    expected = [[-32.0, -8.0, 32.0, 8.0], [-16.0, -16.0, 16.0, 16.0], [-8.0, -32.0, 8.0, 32.0]]
    torch.testing.assert_close(anchors, torch.tensor(expected))


def test_every_scale_keeps_its_area_at_every_ratio() -> None:
    config = AnchorConfig(scales=(2.0, 5.0), ratios=(0.5, 1.0, 2.0))
    anchors = cell_anchors(8, config)
    areas = (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])
    assert len(anchors) == config.num_anchors == 6
    torch.testing.assert_close(areas.view(3, 2), torch.tensor([[256.0, 1600.0]]).expand(3, 2))


def test_grid_runs_over_rows_then_columns_then_shapes() -> None:
    anchors = grid_anchors((2, 3), 10, AnchorConfig(scales=(1.0,), ratios=(1.0, 4.0)))
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    expected = [[x, y] for y in (0.0, 10.0) for x in (0.0, 10.0, 20.0) for _ in range(2)]
    torch.testing.assert_close(centres, torch.tensor(expected))


def test_cache_follows_the_feature_maps() -> None:
    cache = AnchorCache(AnchorConfig(), (4, 8))
    maps = [torch.zeros(1, 1, 4, 6), torch.zeros(1, 1, 2, 3)]
    first = cache.levels(maps)
    assert [len(a) for a in first] == [4 * 6 * 3, 2 * 3 * 3]
    assert cache.levels(maps)[0] is first[0]
    assert len(cache.levels([torch.zeros(1, 1, 5, 6), maps[1]])[0]) == 5 * 6 * 3
