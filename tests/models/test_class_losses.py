"""Class losses by hand: what logits mean, and what the labels seen so far change."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scantling.errors import ConfigError
from scantling.models.class_losses import SeesawLoss, SoftmaxLoss, make_class_loss
from scantling.models.contract import CandidateLimits, total_loss
from scantling.models.zoo import ModelConfig, build_model

LN = math.log


def test_each_kind_says_how_many_logits_it_needs():
    assert SoftmaxLoss(3).num_logits(3) == 4
    assert SoftmaxLoss(3, spare_logits=2).num_logits(3) == 6
    assert SeesawLoss(3).num_logits(3) == 5
    with pytest.raises(ConfigError, match="spare_logits"):
        make_class_loss("seesaw", 3, spare_logits=1)


def test_softmax_by_hand():
    logits = torch.tensor([[1.0, 2, 5], [3.0, 1, 6]]).log()
    loss = SoftmaxLoss(2)
    torch.testing.assert_close(loss.probabilities(logits), torch.tensor([[1 / 8, 2 / 8], [3 / 10, 1 / 10]]))
    found = loss.losses(logits, torch.tensor([1, 2]))
    assert found.keys() == {"class"}
    assert float(found["class"]) == pytest.approx(-(LN(2 / 8) + LN(6 / 10)) / 2)


def test_spare_logits_take_their_part_of_the_softmax_and_name_nothing():
    logits = torch.tensor([[1.0, 2, 5, 8]]).log()
    assert SoftmaxLoss(2, 1).probabilities(logits)[0].tolist() == pytest.approx([1 / 16, 2 / 16])


def test_seesaw_scores_are_the_classes_times_being_an_object():
    logits = torch.tensor([[1.0, 3, 2, 6]]).log()  # classes 1 : 3, object 2, background 6
    found = SeesawLoss(2).probabilities(logits)
    assert found[0].tolist() == pytest.approx([0.25 * 0.25, 0.75 * 0.25])


def test_seesaw_by_hand():
    """Two classes; of class 0 nine have been seen, of class 1 one, with the two positives of this step 10 and 2."""
    loss = SeesawLoss(2)
    loss.counts.copy_(torch.tensor([9.0, 1, 5]))
    logits = torch.tensor([[3.0, 1, 1, 1], [3.0, 1, 1, 3], [1.0, 1, 3, 1]]).log()
    found = loss.losses(logits, torch.tensor([0, 1, 2]))
    assert loss.counts.tolist() == [10, 2, 6]
    # RoI 0, class 0, certain: class 1 is rarer, lowered by (2 / 10)^0.8, and less likely, so no more
    first = -LN(3 / (3 + (2 / 10) ** 0.8 * 1))
    # RoI 1, class 1: class 0 is more frequent (no mitigation) but taken for it, raised by (0.75 / 0.25)^2
    second = -LN(1 / (9 * 3 + 1))
    assert float(found["class"]) == pytest.approx((first + second) / 3)
    objectness = -(LN(1 / 2) + LN(1 / 4) + LN(1 / 4)) / 3
    assert float(found["objectness"]) == pytest.approx(objectness)


def test_seesaw_without_its_exponents_is_cross_entropy():
    loss = SeesawLoss(3, p=0.0, q=0.0)
    logits, labels = torch.randn(6, 5, generator=torch.manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    found = loss.losses(logits, labels)["class"]
    torch.testing.assert_close(found, nn.functional.cross_entropy(logits[:, :3], labels))


@pytest.mark.parametrize("loss", [SoftmaxLoss(2), SeesawLoss(2)])
@pytest.mark.parametrize("labels", [[], [2, 2]])
def test_nothing_and_background_alone_are_learned_from(loss, labels):
    logits = torch.zeros(len(labels), loss.num_logits(2), requires_grad=True)
    found = loss.losses(logits, torch.tensor(labels, dtype=torch.int64))
    total_loss(found).backward()
    assert float(found["class"].detach()) == pytest.approx(
        LN(3) if labels and isinstance(loss, SoftmaxLoss) else 0
    )
    assert torch.isfinite(logits.grad).all()
    assert loss.probabilities(logits).shape == (len(labels), 2)


@pytest.mark.parametrize(
    "name", ["faster_rcnn_r18_small", "cascade_rcnn_r18_small", "double_head_rcnn_r18_small"]
)
def test_every_detector_takes_seesaw_and_its_counts_are_saved(name):
    from models.test_detectors import SMALL, two_images

    model = build_model(ModelConfig(name=name, class_loss="seesaw", **SMALL), 2).train()
    batch = two_images()
    losses = model.losses(batch)
    heads = {key.split("/")[0] for key in losses} - {"rpn"}
    assert {f"{head}/objectness" for head in heads} <= losses.keys()
    counts = {key: value for key, value in model.state_dict().items() if key.endswith("class_loss.counts")}
    assert len(counts) == len(heads)
    assert all(value[:2].sum() >= 5 for value in counts.values())  # five objects join the proposals
    with torch.no_grad():
        found = model.eval().candidates(model.encode(batch), CandidateLimits(score_threshold=0.0))
    assert all(set(f.labels.tolist()) <= {0, 1} for f in found)
