"""The refiner's network: published widths, valid boxes, losses derived by hand, every part of its input used."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file

from refine.conftest import TINY
from scantling.errors import ConfigError
from scantling.refine.bbrefinement import (
    SIDES,
    CropBatch,
    Refiner,
    RefinerConfig,
    mixture_vector,
    overlap_loss,
)

CLASSES = ("slab", "plate", "bolt")


def tiny(**changes: object) -> Refiner:
    torch.manual_seed(0)
    return Refiner(RefinerConfig.model_validate({**TINY, **changes}), CLASSES)


def batch(count: int = 4, side: int = 32) -> CropBatch:
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(count, 4, generator=generator)
    return CropBatch(
        crops=torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator),
        labels=torch.arange(count) % 3,
        centres=torch.rand(count, 2, generator=generator),
        targets=torch.cat([corners[:, :2] * 0.4, 0.5 + corners[:, 2:] * 0.4], dim=1),
        image_ids=list(range(count)),
    )


def stir(refiner: Refiner) -> Refiner:
    """Give weights to what starts at 0, as after some training: the output layer, and each block's last norm."""
    torch.nn.init.normal_(refiner.output.weight, std=0.5)
    for module in refiner.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    return refiner


@pytest.mark.parametrize(
    ("name", "side", "width"),
    [
        ("efficientnet_b0", 224, 1280),
        ("efficientnet_b1", 240, 1280),
        ("efficientnet_b2", 260, 1408),
        ("efficientnet_b3", 300, 1536),
        ("efficientnet_b4", 380, 1792),
    ],
)
def test_the_published_backbones_have_the_published_sides_and_widths(name, side, width):
    config = RefinerConfig(backbone=name)
    with torch.device("meta"):
        refiner = Refiner(config, CLASSES)
    assert (config.crop_side, refiner.output.in_features) == (side, width)
    assert refiner.branch[-1].out_features == width
    assert name in SIDES


def test_an_untrained_refiner_returns_what_it_is_given():
    found = tiny(padding=0.25).predict(batch())
    assert torch.allclose(found, torch.tensor([[1 / 6, 1 / 6, 5 / 6, 5 / 6]]).expand(4, 4), atol=1e-6)


def test_every_output_is_a_box():
    refiner = stir(tiny())
    torch.nn.init.normal_(refiner.output.bias, std=2.0)
    found = refiner.predict(batch(32))
    assert (found[:, 2:] > found[:, :2]).all()
    assert found.min() > 0
    assert found.max() < 1
    assert len({tuple(row) for row in found.tolist()}) == 32


def test_flattened_features_keep_places_apart():
    averaged, flattened = (stir(tiny(side=64, pooling=p)).eval() for p in ("average", "flatten"))
    assert flattened.output.in_features == averaged.output.in_features * 4  # 2 x 2 cells
    maps = torch.rand(4, 96, 2, 2)
    flattened.backbone.forward_features = lambda _: maps
    before = flattened.predict(batch(side=64))
    maps = maps.flip(3)
    assert (flattened.predict(batch(side=64)) != before).all()


def test_no_crops_give_no_boxes_and_a_loss_that_can_be_differentiated():
    refiner = tiny()
    assert refiner.predict(batch(0)).shape == (0, 4)
    assert refiner.losses(batch(0))["box"] == 0


@pytest.mark.parametrize(
    ("mixture", "told_class", "told_centre"),
    [("none", False, False), ("class", True, False), ("centre", False, True), ("both", True, True)],
)
def test_each_variant_uses_what_it_is_told_and_nothing_else(mixture, told_class, told_centre):
    refiner = stir(tiny(mixture=mixture)).eval()
    given = batch()
    before = refiner.predict(given)
    moved = {
        "labels": CropBatch(crops=given.crops, labels=(given.labels + 1) % 3, centres=given.centres),
        "centres": CropBatch(crops=given.crops, labels=given.labels, centres=given.centres + 0.2),
    }
    changed = {name: bool((refiner.predict(other) != before).any()) for name, other in moved.items()}
    assert changed == {"labels": told_class, "centres": told_centre}
    darker = CropBatch(crops=given.crops // 2, labels=given.labels, centres=given.centres)
    assert (refiner.predict(darker) != before).any()


def test_the_vector_is_the_class_and_then_the_centre():
    labels, centres = torch.tensor([2, 0]), torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    assert mixture_vector(labels, centres, "both", 3).tolist() == [
        [0, 0, 1, 0.25, 0.75],
        [1, 0, 0, 0.5, 0.5],
    ]
    assert mixture_vector(labels, centres, "class", 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert mixture_vector(labels, centres, "centre", 3).tolist() == centres.tolist()


def test_every_parameter_gets_a_gradient():
    refiner = stir(tiny())
    refiner.losses(batch(8))["box"].backward()
    silent = [name for name, p in refiner.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_losses_by_hand():
    """Two squares of side 0.4 that share half of their width: IoU 1/3, hull 0.6 x 0.4, centres 0.2 apart."""
    target = torch.tensor([[0.2, 0.2, 0.6, 0.6]])
    moved = torch.tensor([[0.4, 0.2, 0.8, 0.6]])
    diou = 1 / 3 - 0.2**2 / (0.6**2 + 0.4**2)
    assert overlap_loss(moved, target, "linear", "iou").item() == pytest.approx(2 / 3, abs=1e-6)
    assert overlap_loss(moved, target, "log", "iou").item() == pytest.approx(math.log(3), abs=1e-6)
    assert overlap_loss(moved, target, "linear", "giou").item() == pytest.approx(2 / 3, abs=1e-6)
    assert overlap_loss(moved, target, "log", "giou").item() == pytest.approx(math.log(1.5), abs=1e-6)
    assert overlap_loss(moved, target, "linear", "diou").item() == pytest.approx(1 - diou, abs=1e-6)
    assert overlap_loss(moved, target, "log", "ciou").item() == pytest.approx(
        -math.log((diou + 2) / 3), abs=1e-6
    )


@pytest.mark.parametrize("form", ["linear", "log"])
@pytest.mark.parametrize("overlap", ["iou", "giou", "diou", "ciou"])
def test_every_loss_is_zero_only_at_the_target_and_finite_far_away(form, overlap):
    target = torch.tensor([[0.2, 0.2, 0.6, 0.7]])
    assert overlap_loss(target, target, form, overlap).item() == pytest.approx(0, abs=1e-6)
    far = torch.tensor([[0.9, 0.9, 0.95, 0.95]], requires_grad=True)
    loss = overlap_loss(far, target, form, overlap)
    loss.sum().backward()
    assert loss.item() > 0.5
    assert torch.isfinite(far.grad).all()
    assert bool(far.grad.any()) == (overlap != "iou")  # IoU is 0 wherever boxes do not touch


def test_a_backbone_starts_from_a_local_file(tmp_path):
    torch.manual_seed(7)
    network = timm.create_model("test_resnet", num_classes=5)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    refiner = tiny(weights=str(tmp_path / "weights.safetensors"))
    loaded = refiner.backbone.state_dict()
    assert all(torch.equal(loaded[name], network.state_dict()[name]) for name in loaded)
    assert not torch.equal(loaded["conv1.0.weight"], tiny().backbone.state_dict()["conv1.0.weight"])
    with pytest.raises(ConfigError, match="does not fit backbone"):
        tiny(backbone="test_vit", weights=str(tmp_path / "weights.safetensors"))


def test_an_unknown_backbone_is_refused_with_similar_names():
    with pytest.raises(ConfigError, match="efficientnet_b9"):
        Refiner(RefinerConfig(backbone="efficientnet_b9"), CLASSES)


def test_pixels_are_normalised_as_the_weights_were_trained():
    """A refiner of shifted and stretched pixels, told so, sees what the usual one sees of the pixels themselves."""
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    usual = stir(tiny())
    told = tiny(pixel_mean=[m + 10 for m in mean], pixel_std=std)
    told.load_state_dict(usual.state_dict())
    given = batch()
    dark = replace(given, crops=given.crops.clamp(max=245))
    lighter = replace(dark, crops=dark.crops + 10)
    with torch.no_grad():
        torch.testing.assert_close(told.eval().predict(lighter), usual.eval().predict(dark))
        assert not torch.allclose(told.predict(dark), usual.predict(dark))
    assert RefinerConfig.model_validate(told.config.model_dump()) == told.config
    with pytest.raises(ValueError, match="pixel_std"):
        RefinerConfig(pixel_std=(1.0, 0.0, 1.0))
