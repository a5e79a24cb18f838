from __future__ import annotations

import math

import pytest
import torch

from scantling.models.losses import (
    BoxLossConfig,
    box_regression_loss,
    classification_loss,
    objectness_loss,
    smooth_l1,
)

STDS = (0.1, 0.1, 0.2, 0.2)


def test_smooth_l1_by_hand() -> None:
    # |d| = 0.5 < beta 1: d²/2 = 0.125; |d| = 3: 3 - 0.5 = 2.5
    assert float(smooth_l1(torch.tensor([0.5, -3.0]), torch.zeros(2), 1.0)) == pytest.approx(2.625)


def test_classification_is_the_mean_negative_log_probability() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    expected = (-math.log(3 / 4) - math.log(1 / 2)) / 2
    assert float(classification_loss(logits, torch.tensor([0, 1]))) == pytest.approx(expected)


def test_objectness_by_hand() -> None:
    logits = torch.tensor([math.log(3.0), 0.0])
    expected = (-math.log(3 / 4) - math.log(1 / 2)) / 2
    assert float(objectness_loss(logits, torch.tensor([True, False]))) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["smooth_l1", "iou", "giou", "diou", "ciou"])
def test_exact_boxes_cost_nothing_and_wrong_ones_do(kind: str) -> None:
    references = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    config = BoxLossConfig(kind=kind, weight=2.0)
    exact = box_regression_loss(references, torch.zeros(1, 4), references, STDS, config)
    wrong = box_regression_loss(references, torch.ones(1, 4), references, STDS, config)
    assert float(exact) == pytest.approx(0, abs=1e-6)
    assert float(wrong) > 0.1


def test_giou_loss_by_hand() -> None:
    references = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    deltas = torch.tensor([[10.0, 0.0, 0.0, 0.0]])  # dx = 10 · 0.1 · 10 px: the box moves by its own width
    loss = box_regression_loss(references, deltas, references, STDS, BoxLossConfig(kind="giou", weight=10.0))
    assert float(loss) == pytest.approx(10.0, abs=1e-4)  # IoU 0, hull = union: GIoU 0


@pytest.mark.parametrize("kind", ["smooth_l1", "giou"])
def test_nothing_to_regress_is_zero_with_a_gradient_path(kind: str) -> None:
    deltas = torch.zeros(0, 4, requires_grad=True)
    loss = box_regression_loss(torch.zeros(0, 4), deltas, torch.zeros(0, 4), STDS, BoxLossConfig(kind=kind))
    loss.backward()
    assert float(loss) == 0
    assert deltas.grad.shape == (0, 4)
    assert float(classification_loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))) == 0
    assert float(objectness_loss(torch.zeros(0), torch.zeros(0, dtype=torch.bool))) == 0
