"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scantling.train.ema import MovingAverage


def test_the_average_by_hand():
    """Weights 0, then 1, 2, 3 after the updates; decays 1/10, 2/11, then the configured 0.2 (3/12 is larger)."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = MovingAverage(model, 0.2)
    expected = 0.0
    for value, decay in ((1.0, 1 / 10), (2.0, 2 / 11), (3.0, 0.2)):
        model.weight.data.fill_(value)
        assert average.decay() == pytest.approx(decay)
        average.update(model)
        expected = decay * expected + (1 - decay) * value
        assert average.model.weight.item() == pytest.approx(expected)


def test_running_statistics_are_averaged_and_counters_copied():
    model = nn.BatchNorm1d(2)
    average = MovingAverage(model, 0.999)
    model(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))  # running mean 0.1 x (2, 4)
    average.update(model)
    assert average.model.running_mean.tolist() == pytest.approx([0.9 * 0.2, 0.9 * 0.4])
    assert average.model.num_batches_tracked.item() == 1


def test_the_average_is_a_model_of_its_own():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    average = MovingAverage(model, 0.9)
    before = average.model[0].weight.clone()
    model[0].weight.data.add_(1.0)
    assert torch.equal(average.model[0].weight, before)
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert model.training
    assert model[0].weight.requires_grad


def test_shared_weights_are_averaged_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    average = MovingAverage(model, 0.9)
    start = model[0].weight.detach().clone()
    model[0].weight.data.add_(1.0)
    average.update(model)
    assert torch.allclose(average.model[1].weight, start + 0.9)
