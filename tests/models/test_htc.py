"""Hybrid Task Cascade: each part of it has its say, and learns from the loss that is meant for it alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch

from models.test_detectors import ALL, VARIANTS, build, two_images
from scantling.models.assign import SampleConfig
from scantling.models.contract import CandidateLimits, Detector, Encoded, total_loss
from scantling.models.htc import HTC, informed_features
from scantling.models.suppression import detect
from scantling.models.zoo import build_model
from scantling.structures.instances import Instances
from scantling.structures.sample import Batch


def silent(model: Detector, batch: Batch) -> set[str]:
    """Parameters outside of the backbone that one step does not move; a shift in features shows in all of them."""
    total_loss(model.train().losses(batch)).backward()
    return {n for n, p in model.named_parameters() if not n.startswith("backbone.") and not p.grad.any()}


def named(model: Detector, *beginnings: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(beginnings)}


@dataclass(frozen=True)
class Drawn:
    """A model as it is built, and what it gives for two images."""

    model: Detector
    encoded: Encoded
    logits: list[torch.Tensor]
    found: list[Instances]


@pytest.fixture(scope="module", params=["htc", "htc bare giou"])
def drawn(request: pytest.FixtureRequest) -> Drawn:
    model, batch = build(request.param).eval(), two_images()
    with torch.no_grad():
        encoded = model.encode(batch)
        logits = model.mask_logits(encoded, [truth.boxes for truth in batch.instances])
        return Drawn(model, encoded, logits, detect(model, batch, ALL))


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("part", ["convs", "upsample", "logits", "flow"])
def test_each_mask_head_has_a_say_and_the_boxes_none(drawn: Drawn, part: str, stage: int) -> None:
    model, batch, before, found = copy.deepcopy(drawn.model), two_images(), drawn.logits, drawn.found
    module = getattr(model.mask_heads[stage], part)
    if module is None:
        assert (part, stage) == ("flow", 0)
        return
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.manual_seed(1)))
        after = model.mask_logits(drawn.encoded, [truth.boxes for truth in batch.instances])
        again = detect(model, batch, ALL)
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    informs = part in ("convs", "flow")  # what changes before the mask is drawn reaches the heads that follow
    assert changed == [number == stage or (informs and number > stage) for number in range(3)]
    for one, other in zip(found, again, strict=True):
        assert len(one) > 0
        assert torch.equal(one.boxes, other.boxes)
        assert not torch.equal(one.masks.probabilities, other.masks.probabilities)


def test_a_head_that_reads_earlier_features_must_get_them() -> None:
    heads = build("htc").mask_heads
    pooled = torch.rand(2, 32, 14, 14)
    features = informed_features(heads, pooled)
    assert [f.shape for f in features] == [(2, 32, 14, 14)] * 3
    with pytest.raises(TypeError, match="earlier features: False"):
        heads[1].features(pooled)
    with pytest.raises(TypeError, match="earlier features: True"):
        heads[0].features(pooled, features[0])


def test_the_semantic_branch_informs_boxes_and_masks() -> None:
    model, batch = build("htc").eval(), two_images()
    limits = CandidateLimits(score_threshold=0.0)
    with torch.no_grad():
        encoded = model.encode(batch)
        assert encoded.semantic.shape == (2, 32, 16, 20)
        moved = replace(encoded, semantic=encoded.semantic + 1)
        scores = [model.candidates(e, limits)[0].scores for e in (encoded, moved)]
        masks = [model.masks(e, batch.instances)[0].probabilities for e in (encoded, moved)]
        forgotten = replace(encoded, semantic=None)  # computed anew where they are missing
        assert torch.equal(
            model.candidates(forgotten, limits)[0].boxes, model.candidates(encoded, limits)[0].boxes
        )
        assert torch.equal(model.masks(forgotten, batch.instances)[0].probabilities, masks[0])
    assert not torch.allclose(*scores)
    assert not torch.equal(*masks)
    assert build("htc bare giou").eval().encode(batch).semantic is None


def test_labels_of_cells_of_weight_zero_teach_the_semantic_features_nothing_but_through_the_heads() -> None:
    torch.manual_seed(0)
    model = build_model(VARIANTS["htc"].with_options(semantic_weight=0.0), num_classes=2)
    assert silent(model, two_images()) == named(model, "semantic_head.logits.")


@pytest.mark.parametrize("weight", ["class_weight", "box_loss"])
def test_a_box_head_of_weight_zero_does_not_learn_what_it_weighs(weight: str) -> None:
    model = build("htc")
    for head in model.heads:
        zero = {"class_weight": 0.0, "box_loss": head.config.box_loss.model_copy(update={"weight": 0.0})}
        head.config = head.config.model_copy(update={weight: zero[weight]})
    part = {"class_weight": "logits", "box_loss": "deltas"}[weight]
    assert silent(model, two_images()) == named(model, *(f"stages.{s}.{part}." for s in range(3)))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_of_weight_zero_learns_only_what_the_later_masks_need_of_it(stage: int) -> None:
    model = build("htc")
    stages = list(model.config.stages)
    stages[stage] = stages[stage].model_copy(update={"weight": 0.0})
    model.config = model.config.model_copy(update={"stages": tuple(stages)})
    drawing = [f"mask_stages.{stage}.upsample.", f"mask_stages.{stage}.logits."]
    own_mask = [f"mask_stages.{stage}."] if stage == 2 else drawing
    assert silent(model, two_images()) == named(model, f"stages.{stage}.", *own_mask)


def test_masks_are_learned_on_the_boxes_of_their_own_stage() -> None:
    """Interleaved: where a stage moves its boxes, it moves what its mask head is shown."""
    every = SampleConfig(num=None)
    model, batch = build("htc").eval(), two_images()
    model.config = model.config.model_copy(update={"sample": every})
    with torch.no_grad():
        encoded = replace(model.encode(batch), proposals=[t.boxes + 3 for t in batch.instances])
        before = model.roi_losses(encoded, batch.instances)
        model.heads[1].deltas.bias += 1.0  # a twentieth of the width to the right, ...
        after = model.roi_losses(encoded, batch.instances)
    same = {name for name in before if float(before[name]) == pytest.approx(float(after[name]), rel=1e-6)}
    assert {name for name in before if name.startswith(("semantic_head", "stage0"))} < same
    assert same.isdisjoint({"stage1/box", "stage1/mask", "stage2/box", "stage2/mask"})


def test_there_is_no_mask_without_masks_to_learn_from() -> None:
    batch = two_images()
    bare = replace(batch, instances=[truth.replace(masks=None) for truth in batch.instances])
    with pytest.raises(TypeError, match="semantic head learns from masks of the image, found NoneType"):
        build("htc").train().losses(bare)
    assert isinstance(build("htc"), HTC)
