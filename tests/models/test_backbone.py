from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from scantling.errors import ConfigError
from scantling.models.backbone import Backbone, BackboneConfig
from scantling.models.layers import DeformConv
from scantling.models.weights.opener import read_weights

FAMILIES = ("resnet18", "resnext50_32x4d", "convnext_atto", "swin_tiny_patch4_window7_224", "efficientnet_b0")


@pytest.mark.parametrize("name", FAMILIES)
def test_states_the_channels_and_strides_it_delivers(name: str) -> None:
    backbone = Backbone(BackboneConfig(name=name)).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 96, 160))
    assert backbone.strides == (4, 8, 16, 32)
    expected = [(1, c, 96 // s, 160 // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)]
    assert [tuple(m.shape) for m in maps] == expected


def test_swin_takes_sizes_its_windows_do_not_divide_and_normalises_its_outputs() -> None:
    backbone = Backbone(BackboneConfig(name="swin_tiny_patch4_window7_224")).eval()
    with torch.no_grad():
        small, large = backbone(torch.rand(1, 3, 64, 96)), backbone(torch.rand(1, 3, 224, 288))
    assert small[0].shape[-2:] == (16, 24)
    assert large[0].shape[-2:] == (56, 72)
    torch.testing.assert_close(
        large[1].mean(dim=1), torch.zeros_like(large[1].mean(dim=1)), atol=1e-5, rtol=0
    )


def test_group_norm_replaces_every_batch_norm_also_inside_efficientnet() -> None:
    for name in ("resnet18", "efficientnet_b0"):
        backbone = Backbone(BackboneConfig(name=name, norm="gn"))
        kinds = [type(m) for m in backbone.modules()]
        assert not any(issubclass(k, nn.BatchNorm2d) for k in kinds)
        assert any(issubclass(k, nn.GroupNorm) for k in kinds)
        assert all(torch.isfinite(m).all() for m in backbone(torch.rand(1, 3, 64, 64)))


def test_bn_eval_keeps_statistics_but_trains_weights() -> None:
    backbone = Backbone(BackboneConfig(name="resnet18", norm="bn_eval")).train()
    before = backbone.body.bn1.running_mean.clone()
    sum(m.mean() for m in backbone(torch.rand(2, 3, 64, 64))).backward()
    assert torch.equal(backbone.body.bn1.running_mean, before)
    assert backbone.body.bn1.weight.grad.abs().sum() > 0


def test_frozen_bn_changes_nothing_and_trains_the_rest() -> None:
    backbone = Backbone(BackboneConfig(name="resnet18", norm="frozen_bn")).train()
    norm = backbone.body.bn1
    before = norm.running_mean.clone()
    sum(m.mean() for m in backbone(torch.rand(2, 3, 64, 64))).backward()
    assert torch.equal(norm.running_mean, before)
    assert norm.weight.grad is norm.bias.grad is None
    assert backbone.body.conv1.weight.grad.abs().sum() > 0


def test_bn_updates_statistics_in_training() -> None:
    backbone = Backbone(BackboneConfig(name="resnet18", norm="bn")).train()
    before = backbone.body.bn1.running_mean.clone()
    backbone(torch.rand(2, 3, 64, 64))
    assert not torch.equal(backbone.body.bn1.running_mean, before)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "efficientnet_b0"])
def test_frozen_stages_get_no_gradient_and_later_ones_do(name: str) -> None:
    backbone = Backbone(BackboneConfig(name=name, frozen_stages=2)).train()
    sum(m.square().mean() for m in backbone(torch.rand(2, 3, 64, 64))).backward()
    frozen = {id(p) for number in (1, 2) for p in backbone.stage(number).parameters()}
    later = [p for number in (3, 4) for p in backbone.stage(number).parameters()]
    first = next(backbone.body.parameters())
    assert not first.requires_grad
    assert all(p.grad is None for p in backbone.parameters() if id(p) in frozen)
    assert all(p.grad is not None for p in later)
    assert not any(m.training for m in backbone.stage(1).modules() if isinstance(m, nn.BatchNorm2d))
    assert any(m.training for m in backbone.stage(4).modules())


def test_deformable_stages_start_as_the_convolution_they_replace() -> None:
    torch.manual_seed(0)
    plain = Backbone(BackboneConfig(name="resnet18")).eval()
    torch.manual_seed(0)
    deformable = Backbone(BackboneConfig(name="resnet18", deform=(3, 4))).eval()
    shared = plain.state_dict()
    deformable.load_state_dict(deformable.state_dict() | shared)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(plain(image), deformable(image), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert sum(isinstance(m, DeformConv) for m in deformable.stage(2).modules()) == 0
    assert sum(isinstance(m, DeformConv) for m in deformable.stage(4).modules()) == 2


def test_deformable_convolution_looks_where_its_offsets_point() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.zeros_(conv.weight)
    conv.weight.data[0, 0, 1, 1] = 1.0  # the centre tap copies
    shifted = DeformConv(conv, version=1)
    shifted.offset.bias.data.zero_()
    shifted.offset.bias.data[8:10] = torch.tensor([1.0, 2.0])  # centre tap: one row down, two columns right
    image = torch.arange(42.0).view(1, 1, 6, 7)
    with torch.no_grad():
        found = shifted(image)
    assert torch.equal(found[0, 0, :5, :5], image[0, 0, 1:, 2:])


def test_version_two_starts_with_half_the_response() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    image = torch.rand(1, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(DeformConv(conv, version=2)(image), conv(image) / 2)


def test_impossible_changes_are_refused_with_a_reason() -> None:
    with pytest.raises(ConfigError, match="no BatchNorm"):
        Backbone(BackboneConfig(name="convnext_atto", norm="gn"))
    with pytest.raises(ConfigError, match="ResNet family"):
        Backbone(BackboneConfig(name="convnext_atto", deform=(3,)))
    with pytest.raises(ConfigError, match="resnet99"):
        Backbone(BackboneConfig(name="resnet99"))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_loads_a_classifier_checkpoint_of_timm(name: str, tmp_path) -> None:
    source = timm.create_model(name, num_classes=5)
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": source.state_dict()}, path)
    backbone = Backbone(BackboneConfig(name=name)).eval()
    unused = backbone.load(read_weights(path))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = source.eval().forward_features(image)
        found = backbone(image)[-1]
    if name == "resnet18":
        torch.testing.assert_close(found, expected)
    assert unused
    assert all("fc" in k or "head" in k or "norm" in k for k in unused)


def test_weights_of_another_network_are_refused(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(Backbone(BackboneConfig(name="resnet34")).body.state_dict(), path)
    with pytest.raises(ConfigError, match="missing or have another shape"):
        Backbone(BackboneConfig(name="resnet50")).load(read_weights(path))


def test_a_network_that_needs_memory_to_be_made_is_checked_without(monkeypatch):
    """As RegNets do with torch 2.11, whose `unique` does not know the device meta."""
    create = timm.create_model

    def only_in_memory(*arguments, **options):
        if torch.get_default_device().type == "meta":
            raise NotImplementedError("aten::_unique2")
        return create(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", only_in_memory)
    with torch.device("meta"):
        checked = Backbone(BackboneConfig(name="test_resnet"))
    assert {parameter.device.type for parameter in checked.parameters()} == {"meta"}
    assert [*checked.state_dict()] == [*Backbone(BackboneConfig(name="test_resnet")).state_dict()]
