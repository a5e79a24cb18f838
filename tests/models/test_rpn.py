"""The proposal network's losses: evaluated at the sampled anchors only, equal to those of whole maps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scantling.models.assign import SampleConfig
from scantling.models.layers import cell_patches
from scantling.models.losses import BoxLossConfig, box_regression_loss, objectness_loss
from scantling.models.rpn import RPN, STDS, RPNConfig, RPNOutput
from scantling.structures.instances import Instances
from scantling.structures.sample import Batch, Frame

SIZE_HW = (64, 96)
STRIDES = (8, 16, 32)
CHANNELS = 6


def make_case(dtype: torch.dtype, boxes: int = 3) -> tuple[RPN, list[Tensor], Batch]:
    torch.manual_seed(3)
    config = RPNConfig(sample=SampleConfig(num=40), loss=BoxLossConfig(beta=0.0))
    rpn = RPN(CHANNELS, STRIDES, config).to(dtype)
    for parameter in rpn.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    features = [
        torch.randn(2, CHANNELS, SIZE_HW[0] // s, SIZE_HW[1] // s, dtype=dtype, requires_grad=True)
        for s in STRIDES
    ]
    corner = torch.rand(2, boxes, 2) * 30
    truths = [
        Instances(
            size_hw=SIZE_HW, boxes=torch.cat([c, c + 10 + 40 * c / 30], 1), labels=torch.zeros(boxes).long()
        )
        for c in corner
    ]
    batch = Batch(
        images=torch.zeros(2, 3, *SIZE_HW, dtype=torch.uint8),
        sizes_hw=[SIZE_HW] * 2,
        instances=truths,
        frames=[Frame.identity(SIZE_HW)] * 2,
        image_ids=[0, 1],
    )
    return rpn, features, batch


def whole_maps(rpn: RPN, output: RPNOutput, batch: Batch) -> dict[str, Tensor]:
    """The plain way: the head with gradients over every cell, then the sampled rows of all its predictions."""
    hidden = [rpn.conv(f).relu() for f in output.features]
    logits = torch.cat([rpn.objectness(h).permute(0, 2, 3, 1).flatten(1) for h in hidden], 1)
    deltas = torch.cat([rpn.deltas(h).permute(0, 2, 3, 1).reshape(2, -1, 4) for h in hidden], 1)
    anchors = torch.cat(output.anchors)
    terms, chosen_logits, is_object = [], [], []
    for i, truth in enumerate(batch.instances):
        chosen, matched = rpn._targets(anchors, truth, SIZE_HW)
        rows, own = chosen[matched >= 0], matched[matched >= 0]
        terms.append(
            box_regression_loss(anchors[rows], deltas[i, rows], truth.boxes[own], STDS, rpn.config.loss)
        )
        chosen_logits.append(logits[i, chosen])
        is_object.append(matched >= 0)
    count = sum(len(flags) for flags in is_object)
    return {
        "rpn/objectness": objectness_loss(torch.cat(chosen_logits), torch.cat(is_object)),
        "rpn/box": torch.stack(terms).sum() / count,
    }


def gradients(
    losses: Callable[[RPN, RPNOutput, Batch], dict[str, Tensor]], dtype: torch.dtype, boxes: int = 3
) -> dict[str, Tensor]:
    """Losses and gradients of parameters and features."""
    rpn, features, batch = make_case(dtype, boxes)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        output = rpn(features)
        torch.manual_seed(4)
        found = losses(rpn, output, batch)
    torch.stack(list(found.values())).sum().backward()
    named = dict(rpn.named_parameters()) | {f"level {i}": f for i, f in enumerate(features)}
    return {k: v.detach() for k, v in found.items()} | {k: v.grad for k, v in named.items()}


@pytest.mark.parametrize("boxes", [3, 0])
def test_losses_at_sampled_anchors_are_those_of_whole_maps(boxes: int) -> None:
    sampled, whole = (
        gradients(losses, torch.float64, boxes)
        for losses in (lambda rpn, output, batch: rpn.losses(output, batch), whole_maps)
    )
    assert float(whole["rpn/objectness"]) > 0.1
    assert (float(whole["rpn/box"]) > 0.1) == (boxes > 0)
    for name, expected in whole.items():
        torch.testing.assert_close(sampled[name], expected, rtol=1e-5, atol=1e-7, msg=name)


def test_mixed_precision_trains_every_parameter() -> None:
    """Autocast's half-precision weights, first made in the pass without gradients, do not cut off the second."""
    found = gradients(lambda rpn, output, batch: rpn.losses(output, batch), torch.float32)
    expected = gradients(whole_maps, torch.float32)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0.05, atol=0.05 * float(value.abs().max()))


def test_predictions_of_whole_maps_carry_no_gradient() -> None:
    rpn, features, _ = make_case(torch.float64)
    output = rpn(features)
    assert not any(t.requires_grad for t in [*output.logits, *output.deltas])


def test_patches_are_what_a_padded_convolution_sees() -> None:
    features = torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    image, cells = torch.tensor([0, 1]).repeat_interleave(35), torch.arange(35).repeat(2)
    expected = F.unfold(features, 3, padding=1).view(2, 4, 9, 35).permute(0, 3, 2, 1).reshape(70, 36)
    assert torch.equal(cell_patches(features, image, cells), expected)
