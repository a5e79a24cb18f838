"""Heads for the whole image: what they should learn, and what they lend to others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scantling.errors import ConfigError
from scantling.models.context_heads import (
    IGNORED,
    ContextHead,
    ContextHeadConfig,
    SemanticHead,
    SemanticHeadConfig,
    context_of_rois,
    semantic_targets,
)
from scantling.structures.instances import ImageMasks, Instances


def scene(size_hw: tuple[int, int], areas: list[tuple[int, int, int, int]], labels: list[int]) -> Instances:
    """Objects that fill rectangles x1, y1, x2, y2."""
    dense = torch.zeros(len(areas), *size_hw, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(dense, areas, strict=True):
        mask[y1:y2, x1:x2] = 1
    return Instances(
        size_hw=size_hw,
        boxes=torch.tensor(areas, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=ImageMasks.from_dense(dense),
    )


def test_a_cell_has_the_label_of_its_upper_left_pixel() -> None:
    # 20 x 28 pixels are 3 rows and 4 columns of cells of 8; the map is padded to 4 x 4
    truth = scene((20, 28), [(8, 0, 17, 9), (16, 8, 28, 20), (1, 1, 8, 8)], [0, 2, 1])
    assert semantic_targets(truth, (4, 4), 8).tolist() == [
        [0, 1, 1, 0],
        [0, 1, 3, 3],
        [0, 0, 3, 3],
        [IGNORED] * 4,
    ]


def test_targets_are_every_eighth_pixel_of_the_painted_image() -> None:
    rng = np.random.default_rng(0)
    dense = rng.random((5, 45, 70)) < 0.2
    dense[:, :7] = False  # so that what is stored begins inside the image
    truth = scene((45, 70), [(0, 0, 70, 45)] * 5, [0, 2, 1, 0, 2]).replace(masks=ImageMasks.from_dense(dense))
    painted = np.zeros((45, 70), dtype=np.int64)
    for mask, label in zip(dense, truth.labels.tolist(), strict=True):
        painted[mask] = label + 1
    assert semantic_targets(truth, (6, 9), 8).tolist() == painted[::8, ::8].tolist()


def test_crowds_count_for_nothing_and_objects_in_them_do() -> None:
    truth = scene((16, 24), [(0, 0, 8, 8), (0, 0, 24, 8)], [1, 0])
    truth = truth.replace(is_crowd=torch.tensor([False, True]))
    assert semantic_targets(truth, (2, 3), 8).tolist() == [[2, IGNORED, IGNORED], [0, 0, 0]]


def test_an_image_without_objects_is_ground() -> None:
    assert semantic_targets(Instances.empty((16, 24), scored=False), (3, 3), 8).tolist() == [
        [0, 0, 0],
        [0, 0, 0],
        [IGNORED] * 3,
    ]


def test_the_loss_is_the_mean_over_cells_with_a_label() -> None:
    head = SemanticHead(4, (4, 8, 16), 2, SemanticHeadConfig(weight=0.5))
    truth = scene((8, 16), [(0, 0, 8, 8)], [1])
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, :, 0, 0] = torch.tensor([0.2, 0.3, 0.5]).log()  # label 2
    logits[0, :, 0, 1] = torch.tensor([0.25, 0.5, 0.25]).log()  # ground; the row below is padding
    loss = head.losses(logits, [truth])["class"]
    assert float(loss) == pytest.approx(0.5 * -(np.log(0.5) + np.log(0.25)) / 2)


def test_box_heads_read_the_mean_of_the_cells_that_mask_heads_read() -> None:
    head = SemanticHead(4, (4, 8, 16), 2, SemanticHeadConfig())
    features = torch.rand(2, 4, 8, 8, generator=torch.manual_seed(0))
    rois = [torch.tensor([[3.0, 5, 40, 60]]), torch.zeros(0, 4)]
    fine, coarse = head.of_rois(features, rois, 14), head.of_rois(features, rois, 7)
    torch.testing.assert_close(coarse, fine.unflatten(2, (7, 2)).unflatten(4, (7, 2)).mean(dim=(3, 5)))
    assert head.of_rois(features, [rois[1]] * 2, 7).shape == (0, 4, 7, 7)


def test_fewer_labels_than_categories_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 labels for 3 categories"):
        SemanticHead(4, (4, 8), 3, SemanticHeadConfig(num_labels=3))
    assert SemanticHead(4, (4, 8), 3, SemanticHeadConfig(num_labels=7)).logits.out_channels == 7


def test_the_context_is_the_mean_over_the_cells_of_the_image() -> None:
    head = ContextHead(1, 2, ContextHeadConfig(num_convs=0))
    # 100 x 70 pixels are 2 rows and 2 columns of cells of 64; the map is padded to 3 x 3
    level = torch.tensor([[1.0, 2, 99], [3, 6, 99], [99, 99, 99]]).expand(2, 1, 3, 3)
    found = head(level, 64, [(100, 70), (30, 128)])
    assert found.features.tolist() == [[3.0], [1.5]]
    torch.testing.assert_close(found.logits, head.logits(found.features))
    rois = [torch.zeros(2, 4), torch.zeros(1, 4)]
    assert context_of_rois(found.features, rois).flatten().tolist() == [3.0, 3.0, 1.5]
    assert context_of_rois(found.features, [rois[0][:0], rois[0][:0]]).shape == (0, 1, 1, 1)


def test_the_loss_of_the_context_is_the_mean_over_images_and_classes() -> None:
    head = ContextHead(1, 2, ContextHeadConfig(num_convs=0, weight=2.0))
    some = scene((8, 8), [(0, 0, 8, 8), (0, 0, 4, 4)], [1, 1])
    none = Instances.empty((8, 8), scored=False)
    logits = torch.tensor([[0.8, 0.3], [0.6, 0.9]]).logit()
    found = float(head.losses(logits, [some, none])["class"])
    assert found == pytest.approx(2.0 * -(np.log(0.2) + np.log(0.3) + np.log(0.4) + np.log(0.1)) / 4)
    crowd = some.replace(is_crowd=torch.tensor([True, True]))
    assert float(head.losses(logits, [crowd, none])["class"]) == pytest.approx(found)
