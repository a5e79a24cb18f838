"""SCNet: each part of it has its say, and learns from the loss that is meant for it alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.test_detectors import ALL, VARIANTS, build, two_images
from models.test_htc import named, silent
from scantling.errors import ConfigError
from scantling.models.assign import SampleConfig
from scantling.models.contract import CandidateLimits
from scantling.models.layers import conv_stack
from scantling.models.scnet import FeatureRelay
from scantling.models.suppression import detect
from scantling.models.zoo import build_model


def moved(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.manual_seed(1)))


@pytest.mark.parametrize("part", ["mask_head.convs", "mask_head.upsample", "mask_head.logits", "relay"])
def test_the_mask_branch_has_a_say_in_masks_alone(part: str) -> None:
    model, batch = build("scnet").eval(), two_images()
    with torch.no_grad():
        before = detect(model, batch, ALL)
        moved(model.get_submodule(part))
        after = detect(model, batch, ALL)
    for one, other in zip(before, after, strict=True):
        assert len(one) > 0
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)
        assert not torch.equal(one.masks.probabilities, other.masks.probabilities)


@pytest.mark.parametrize("variant", ["scnet", "scnet bare cb"])
def test_the_last_box_head_alone_is_relayed_to_the_masks(variant: str) -> None:
    model, batch = build(variant).eval(), two_images()
    changed = []
    with torch.no_grad():
        encoded = model.encode(batch)
        before = model.masks(encoded, batch.instances)[0].probabilities
        for head in model.heads:
            moved(head.trunk)
            after = model.masks(encoded, batch.instances)[0].probabilities
            changed.append(not torch.equal(before, after))
            before = after
    assert changed == [False, False, variant == "scnet"]


@pytest.mark.parametrize("name", ["semantic", "context"])
def test_branches_for_the_whole_image_inform_boxes_and_masks(name: str) -> None:
    model, batch = build("scnet").eval(), two_images()
    limits = CandidateLimits(score_threshold=0.0)
    with torch.no_grad():
        encoded = model.encode(batch)
        changed = replace(encoded, **{name: getattr(encoded, name) + 1})
        scores = [model.candidates(e, limits)[0].scores for e in (encoded, changed)]
        masks = [model.masks(e, batch.instances)[0].probabilities for e in (encoded, changed)]
        forgotten = replace(encoded, **{name: None})  # computed anew where it is missing
        assert torch.equal(model.candidates(forgotten, limits)[0].scores, scores[0])
        assert torch.equal(model.masks(forgotten, batch.instances)[0].probabilities, masks[0])
    assert not torch.allclose(*scores)
    assert not torch.equal(*masks)
    bare = build("scnet bare cb").eval().encode(batch)
    assert (bare.semantic, bare.context) == (None, None)


@pytest.mark.parametrize("branch", ["semantic", "context"])
def test_a_branch_of_weight_zero_learns_nothing_but_through_the_heads(branch: str) -> None:
    torch.manual_seed(0)
    model = build_model(VARIANTS["scnet"].with_options(**{f"{branch}_weight": 0.0}), num_classes=2)
    assert silent(model, two_images()) == named(model, f"{branch}_head.logits.")


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_of_weight_zero_learns_only_what_the_masks_need_of_it(stage: int) -> None:
    model = build("scnet")
    stages = list(model.config.stages)
    stages[stage] = stages[stage].model_copy(update={"weight": 0.0})
    model.config = model.config.model_copy(update={"stages": tuple(stages)})
    own = [f"stages.{stage}.logits.", f"stages.{stage}.deltas."] if stage == 2 else [f"stages.{stage}."]
    assert silent(model, two_images()) == named(model, *own)


def test_masks_are_learned_on_the_boxes_that_the_last_stage_reads() -> None:
    model, batch = build("scnet").eval(), two_images()
    model.config = model.config.model_copy(update={"sample": SampleConfig(num=None)})
    losses = []
    with torch.no_grad():
        encoded = replace(model.encode(batch), proposals=[t.boxes + 3 for t in batch.instances])
        for head in (None, model.heads[2], model.heads[1]):
            if head is not None:
                head.deltas.bias += (
                    1.0  # to the right, by less than would cost the overlap that a positive needs
                )
            losses.append(float(model.roi_losses(encoded, batch.instances)["mask_head/mask"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[2] != pytest.approx(losses[0], rel=1e-4)


def test_a_relayed_map_is_interpolated_between_its_corners() -> None:
    relay = FeatureRelay(in_features=4, channels=1, side=2)
    with torch.no_grad():
        relay.fc.weight.copy_(torch.eye(4))
        found = relay(torch.tensor([[0.0, 3.0, 6.0, 9.0]]))
    expected = torch.tensor([[0.0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9]])
    torch.testing.assert_close(found, expected[None, None])
    assert relay(torch.zeros(0, 4)).shape == (0, 1, 4, 4)


def test_convolutions_with_shortcuts_come_in_pairs() -> None:
    stack = conv_stack(2, 2, 2, residual=True)
    x = torch.randn(1, 2, 5, 5, generator=torch.manual_seed(0))
    first, second = stack[0].branch
    torch.testing.assert_close(stack(x), x + second[0](first[0](x).relu()))
    assert conv_stack(2, 3, 4, residual=True)(x).shape == (1, 3, 5, 5)
    with pytest.raises(ConfigError, match="3 convolutions of which each two have a shortcut"):
        build_model(VARIANTS["scnet"].with_options(mask_convs=3), num_classes=2)
