"""The MaskIoU head: what it should learn, from which masks, and what becomes of a score."""

from __future__ import annotations

import pytest
import torch

from models.test_context_heads import scene
from models.test_detectors import ALL, VARIANTS, build, two_images
from models.test_htc import named, silent
from scantling.models.box_heads import RoiSamples
from scantling.models.mask_iou import MaskIoUConfig, MaskIoUHead, mask_iou_targets
from scantling.models.suppression import detect
from scantling.models.zoo import build_model
from scantling.structures.instances import Instances, RoiMasks

# two objects: 40 x 20 pixels, of which the box shows the left half, and 10 x 10 pixels that fill a corner of theirs
TRUTH = scene((64, 64), [(0, 0, 40, 20), (40, 40, 50, 50)], [1, 0])
BOXES = torch.tensor([[0.0, 0, 20, 20], [40, 40, 60, 60], [40, 40, 60, 60]])
MATCHED = torch.tensor([0, 1, 1])


def drawn() -> torch.Tensor:
    """4 x 4 cells of 5 pixels: the left half; the upper left quarter and as much again; nothing that is right."""
    probabilities = torch.zeros(3, 4, 4)
    probabilities[0, :, :2] = 0.5
    probabilities[1, :2, :] = 0.9
    probabilities[1, 2:] = 0.49
    probabilities[2, 2:, 2:] = 1.0
    return probabilities


def test_a_target_counts_the_whole_object() -> None:
    # 8 cells drawn, all of them of the object, which has 800 pixels, 32 cells; 8 drawn, 4 of them of the object's 4
    found = mask_iou_targets(TRUTH, MATCHED, BOXES, drawn())
    assert found.tolist() == pytest.approx([8 / 32, 4 / 8, 0])
    assert mask_iou_targets(TRUTH, MATCHED[:0], BOXES[:0], drawn()[:0]).shape == (0,)


def test_the_loss_is_half_the_squared_difference_of_the_own_class_where_masks_meet() -> None:
    head = MaskIoUHead(3, 2, 2, MaskIoUConfig(num_convs=1, channels=4, fc_channels=4, weight=2.0))
    with torch.no_grad():
        head.ious.weight.zero_()
        head.ious.bias.copy_(torch.tensor([0.9, 0.35]))  # classes 0 and 1
    background = torch.tensor([[0.0, 0, 9, 9]])
    samples = RoiSamples(
        boxes=torch.cat([BOXES, background]),
        labels=torch.tensor([1, 0, 0, 2]),
        truths=torch.zeros(4, 4),
        matched=torch.tensor([0, 1, 1, -1]),
        is_truth=torch.zeros(4, dtype=torch.bool),
    )
    pooled = torch.zeros(3, 3, 2, 2)
    found = float(head.losses(pooled, drawn(), [samples], [TRUTH])["iou"].detach())
    assert found == pytest.approx(2.0 * ((0.35 - 0.25) ** 2 + (0.9 - 0.5) ** 2) / 2 / 2)


def test_the_head_reads_the_roi_and_the_mask_that_was_drawn() -> None:
    head = MaskIoUHead(3, 4, 2, MaskIoUConfig(channels=8, fc_channels=8)).eval()
    pooled, masks = torch.rand(2, 3, 4, 4), torch.rand(2, 8, 8)
    with torch.no_grad():
        before = head(pooled, masks)
        assert before.shape == (2, 2)
        assert not torch.equal(before, head(pooled + 1, masks))
        assert not torch.equal(before, head(pooled, masks / 2))
        largest = masks.unflatten(1, (4, 2)).unflatten(3, (4, 2)).amax(dim=(2, 4))  # of two by two cells
        coarse = largest.repeat_interleave(2, 1).repeat_interleave(2, 2)
        assert torch.equal(before, head(pooled, coarse))
        assert head(pooled[:0], masks[:0]).shape == (0, 2)


@pytest.mark.parametrize("variant", ["mask iou", "cascade mask agnostic", "scnet bare cb"])
def test_scores_are_multiplied_once_masks_are_drawn_and_nothing_else_changes(variant: str) -> None:
    model, batch = build(variant).eval(), two_images()
    assert model.ranks_by_masks
    with torch.no_grad():
        model.mask_iou_head.ious.weight.zero_()
        model.mask_iou_head.ious.bias.copy_(torch.tensor([0.5, 1.7]))  # held to 1
        ranked = detect(model, batch, ALL)
        model.ranks_by_masks = False
        plain = detect(model, batch, ALL)
    for one, other in zip(ranked, plain, strict=True):
        expected = other.scores * torch.where(other.labels == 0, 0.5, 1.0)
        order = expected.argsort(descending=True, stable=True)
        assert len(one) > 0
        assert torch.equal(one.scores, expected[order])
        assert torch.equal(one.boxes, other.boxes[order])
        assert torch.equal(one.masks.probabilities, other.masks.probabilities[order])
        assert one.mask_ious is None, "it has been used"


@pytest.mark.parametrize("variant", ["mask iou", "cascade mask agnostic", "scnet bare cb"])
def test_of_weight_zero_the_head_learns_nothing(variant: str) -> None:
    torch.manual_seed(0)
    model = build_model(VARIANTS[variant].with_options(mask_iou_weight=0.0), num_classes=2)
    assert silent(model, two_images()) == named(model, "mask_iou_head.")


@pytest.mark.parametrize("variant", ["cascade mask agnostic", "htc cb"])
def test_masks_of_several_stages_are_judged_as_the_one_that_is_drawn(variant: str) -> None:
    """Whatever stage's mask changes, the predicted IoU of the mean does."""
    model, batch = build(variant).eval(), two_images()
    with torch.no_grad():
        model.mask_iou_head.ious.bias.fill_(0.5)  # as drawn, some are below 0
        encoded = model.encode(batch)
        masks = model.masks(encoded, batch.instances)
        before = torch.cat(model.mask_ious(encoded, batch.instances, masks))
        assert before.shape == (5,)
        for head in model.mask_heads:
            head.logits.bias += 3.0
            changed = model.masks(encoded, batch.instances)
            after = torch.cat(model.mask_ious(encoded, batch.instances, changed))
            assert not torch.equal(before, after)
            before = after
        none = [each[:0] for each in batch.instances]
        assert [len(own) for own in model.mask_ious(encoded, none, model.masks(encoded, none))] == [0, 0]


def test_without_the_head_nothing_is_predicted_of_masks() -> None:
    model, batch = build("mask").eval(), two_images()
    assert not model.ranks_by_masks
    with torch.no_grad():
        encoded = model.encode(batch)
        masks = model.masks(encoded, batch.instances)
    with pytest.raises(TypeError, match="FasterRCNN does not rank by masks"):
        model.mask_ious(encoded, batch.instances, masks)


def test_ranked_instances_are_the_best_first_and_keep_all_they_have() -> None:
    found = Instances(
        size_hw=(8, 8),
        boxes=torch.tensor([[0.0, 0, 4, 4], [1, 1, 5, 5]]),
        labels=torch.tensor([0, 1]),
        scores=torch.tensor([0.9, 0.6]),
        masks=RoiMasks(probabilities=torch.tensor([0.25, 0.75])[:, None, None].repeat(1, 4, 4)),
    )
    assert found.ranked_by_masks() is found
    judged = found.replace(mask_ious=torch.tensor([0.5, 0.8]))
    ranked = judged.ranked_by_masks()
    assert ranked.scores.tolist() == pytest.approx([0.48, 0.45])
    assert ranked.labels.tolist() == [1, 0]
    assert ranked.masks.probabilities[0, 0, 0] == 0.75
    rows = judged.to_detections(0).ranked_by_masks()
    assert rows.scores.astype("float32").tolist() == ranked.scores.tolist()
    assert rows.mask_ious is None
    back = Instances.from_detections(judged.to_detections(0), (8, 8))
    assert torch.equal(back.mask_ious, judged.mask_ious)
    with pytest.raises(TypeError, match="ground truth"):
        judged.replace(scores=None).ranked_by_masks()
