from __future__ import annotations

import torch
from torch import nn

from scantling.models.layers import ConvBlock, RoiPool, make_norm, norm_groups


def test_roi_level_by_hand() -> None:
    pool = RoiPool((4, 8, 16, 32), 7)
    sides = (1.0, 55.0, 56.0, 111.0, 112.0, 223.0, 224.0, 447.0, 448.0, 5000.0)
    rois = torch.tensor([[0.0, 0.0, s, s] for s in sides])
    assert pool.levels_of(rois).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_each_roi_is_read_from_its_level_and_image() -> None:
    pool = RoiPool((4, 8, 16, 32), 2)
    levels = [torch.full((2, 1, 512 // s, 512 // s), float(s)) for s in (4, 8, 16, 32)]
    for level in levels:
        level[1] += 100
    rois = [
        torch.tensor([[0.0, 0.0, 448.0, 448.0], [10.0, 10.0, 40.0, 40.0]]),
        torch.tensor([[10.0, 10.0, 140.0, 140.0]]),
    ]
    pooled = pool(levels, rois)
    assert pooled.shape == (3, 1, 2, 2)
    assert pooled.mean(dim=(1, 2, 3)).tolist() == [32.0, 4.0, 108.0]


def test_pooling_averages_where_the_box_lies() -> None:
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)  # value = column; cell centres at 4 (column + 0.5)
    pooled = RoiPool((4,), 2)([ramp], [torch.tensor([[8.0, 8.0, 40.0, 40.0]])])
    # the left half covers x = 8..24: mean column 16 / 4 - 0.5 = 3.5; the right half 32 / 4 - 0.5 = 7.5
    torch.testing.assert_close(pooled[0, 0], torch.tensor([[3.5, 7.5], [3.5, 7.5]]))


def test_an_enlarged_roi_keeps_its_centre_and_its_level() -> None:
    columns = [torch.arange(float(256 // n)).expand(1, 1, 64, 256 // n) for n in (1, 2)]  # value = column
    rois = [
        torch.tensor([[100.0, 100.0, 200.0, 200.0]])
    ]  # side 100: the finest level; 130 would be the second
    pooled = RoiPool((4, 8), 2)(columns, rois, enlarge=1.3)
    # 85..215: the halves' centres are 117.5 and 182.5; cell centres lie at 4 (column + 0.5)
    torch.testing.assert_close(pooled[0, 0, 0], torch.tensor([117.5 / 4 - 0.5, 182.5 / 4 - 0.5]))
    assert not torch.equal(pooled, RoiPool((4, 8), 2)(columns, rois))


def test_half_precision_features_are_pooled_at_exact_places() -> None:
    columns = torch.arange(256.0).expand(1, 1, 256, 256)  # exact in bfloat16
    rois = [torch.tensor([[901.0, 901.0, 1001.0, 1001.0]])]  # in bfloat16 901 and 1001 would be 900 and 1000
    exact = RoiPool((4,), 2)([columns], rois)
    half = RoiPool((4,), 2)([columns.bfloat16()], rois)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, exact.bfloat16())
    assert exact[0, 0, 0, 0] == 901 / 4 - 0.5 + 25 / 4


def test_no_rois_keep_every_level_in_the_graph() -> None:
    levels = [torch.rand(1, 3, 8, 8, requires_grad=True), torch.rand(1, 3, 4, 4, requires_grad=True)]
    pooled = RoiPool((4, 8), 7)(levels, [torch.zeros(0, 4)])
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert all(level.grad is not None and not level.grad.any() for level in levels)


def test_norms_by_name() -> None:
    assert isinstance(make_norm("gn", 64), nn.GroupNorm)
    assert isinstance(make_norm("bn", 64), nn.BatchNorm2d)
    assert isinstance(make_norm("sync_bn", 64), nn.SyncBatchNorm)
    assert [norm_groups(c) for c in (256, 64, 48, 24, 3)] == [32, 32, 16, 8, 1]
    assert ConvBlock(3, 8, 3).conv.bias is not None
    assert ConvBlock(3, 8, 3, "gn").conv.bias is None
