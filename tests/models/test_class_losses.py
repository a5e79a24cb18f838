"""Class losses by hand: what logits mean, and what the labels seen so far change."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scantling.errors import ConfigError
from scantling.models.class_losses import (
    SeesawLoss,
    SoftmaxLoss,
    count_labels,
    make_class_loss,
    make_classifier,
)
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


def test_seesaw_of_three_classes_by_hand():
    """Of 8, 4 and 1 seen with this step's: S_ij = (N_j / N_i)^0.8 (s_j / s_i)^2, each factor 1 where it is not due."""
    loss = SeesawLoss(3)
    loss.counts.copy_(torch.tensor([7.0, 3, 0, 9]))
    rows = [
        [2.0, 5, 3, 1, 1],
        [6.0, 3, 1, 1, 1],
        [1.0, 1, 8, 1, 1],
        [1.0, 1, 1, 1, 3],
    ]  # before the logarithm
    logits = torch.tensor(rows).log().requires_grad_()
    found = loss.losses(logits, torch.tensor([0, 1, 2, 3]))
    assert loss.counts.tolist() == [8, 4, 1, 10]
    # class 0, the most frequent, is lowered less towards the rarer ones, and taken for both of them
    to_1, to_2 = (4 / 8) ** 0.8 * (0.5 / 0.2) ** 2, (1 / 8) ** 0.8 * (0.3 / 0.2) ** 2
    first = 2 + 5 * to_1 + 3 * to_2
    # class 1: taken for the more frequent 0, not for the rarer 2
    second = 3 + 6 * (0.6 / 0.3) ** 2 + 1 * (1 / 4) ** 0.8
    # class 2, the rarest, is certain: softmax as it is; the fourth is background, which no class learns from
    assert float(found["class"].detach()) == pytest.approx(-(LN(2 / first) + LN(3 / second) + LN(8 / 10)) / 4)
    assert float(found["objectness"].detach()) == pytest.approx(-(3 * LN(1 / 2) + LN(3 / 4)) / 4)
    found["class"].backward()
    # what pushes class 1 down from a RoI of class 0 is S_01 times what softmax's would be (equation 2)
    assert float(logits.grad[0, 1]) == pytest.approx(5 * to_1 / first / 4)
    assert logits.grad[3, :3].tolist() == [0, 0, 0]


def test_labels_of_a_repeated_batch_are_not_counted():
    model = nn.Sequential(SeesawLoss(2))
    logits, labels = torch.zeros(3, 4), torch.tensor([0, 0, 1])
    for wanted, counts in ((True, [2, 1, 0]), (False, [2, 1, 0]), (True, [4, 2, 0])):
        count_labels(model, wanted=wanted)
        model[0].losses(logits, labels)
        assert model[0].counts.tolist() == counts


def test_the_normalised_classifier_by_hand():
    layer = make_classifier("normalised", 2, 3)
    layer.weight.data = torch.tensor([[3.0, 4], [0.0, 2], [0.0, 0]])
    layer.bias.data = torch.tensor([0.0, 1, 2])
    # directions (0.6, 0.8) and (0, 1), of the feature (0, -1); 20 times the cosine, and the bias
    expected = [[-16.0, -19, 2], [12.0, 1, 2], [0.0, 1, 2]]
    torch.testing.assert_close(layer(torch.tensor([[0.0, -7], [5.0, 0], [0, 0]])), torch.tensor(expected))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(1, 2)).dtype == torch.float32
    assert type(make_classifier("linear", 2, 3)) is nn.Linear


@pytest.mark.parametrize("name", ["faster_rcnn_r18_small", "double_head_rcnn_r18_small"])
def test_only_directions_count_in_a_detector_with_a_normalised_classifier(name):
    from models.test_detectors import SMALL, two_images

    options = SMALL | {"class_loss": "seesaw", "classifier": "normalised"}
    model, batch = build_model(ModelConfig(name=name, **options), 2).eval(), two_images()

    def scores():
        with torch.no_grad():
            found = model.candidates(model.encode(batch), CandidateLimits(score_threshold=0.0))
        return torch.cat([each.scores for each in found])

    before = scores()
    model.head.logits.weight.data *= 7
    torch.testing.assert_close(scores(), before)
    model.head.logits.weight.data[0] *= -1
    assert not torch.allclose(scores(), before)


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
