"""What training starts from decides the model, its frozen stages, learning rate and length, and it is said."""

from __future__ import annotations

import pytest
import timm
import torch

from scantling.errors import CheckpointError
from scantling.models.zoo import ModelConfig, build_model
from scantling.recipe.auto import resolve
from scantling.recipe.facts import DataFacts
from scantling.recipe.recipe import parse_recipe
from scantling.recipe.suggest import MEMBER, OpenRecipe
from scantling.train.checkpoint import CheckpointMeta, model_tensors, save_checkpoint

FACTS = {
    "num_images": 400,
    "median_hw": (480, 640),
    "small_object": 32.0,
    "memory_gib": None,
    "cpu_count": 2,
    "class_counts": {"bolt": 900},
    "max_objects": 12,
}
GPU = {"device": "cuda", "memory_gib": 24.0, "bf16": True}
WRITTEN = """
members:
  a:
    model: {name: NAME, init: "INIT", frozen_stages: auto}
    augment: {short_side: 480}
    train: {epochs: auto, workers: 0, lr: auto, optimizer: OPTIMIZER, batch_size: 4}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's member: a detector with anchors and a width of its own."""
    folder = tmp_path_factory.mktemp("run") / "members" / "detector"
    folder.mkdir(parents=True)
    options = {"backbone": "resnet10t", "fpn_channels": 16, "fc_channels": 16, "anchor_scales": (2.0,)}
    config = ModelConfig(name="faster_rcnn_r18_small", **options)
    meta = CheckpointMeta(class_names=("bolt",), category_ids=(1,), model=config.model_dump(mode="json"))
    save_checkpoint(folder / "best.safetensors", model_tensors(build_model(config, 1)), meta)
    return folder.parent.parent


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(timm.create_model("resnet50").state_dict(), file)
    return file


def resolved(name, init, optimizer="sgd", **changes):
    text = WRITTEN.replace("NAME", name).replace("INIT", str(init)).replace("OPTIMIZER", optimizer)
    facts = DataFacts(**{**FACTS, "device": "cpu", **changes})
    recipe, reasons = resolve(parse_recipe(text, file="r.yaml"), facts)
    member = recipe.members["a"]
    return (member.detector.frozen_stages, member.train.lr, member.train.epochs), "\n".join(reasons)


def test_from_random_weights_all_is_trained_at_the_usual_rate():
    assert resolved("cascade_rcnn_r50", "random")[0] == (0, 0.005, 100)  # 0.02 * 4 / 16; 24 sqrt(7000 / 400)
    assert resolved("cascade_rcnn_r50", "random", "adamw")[0] == (0, 1e-3, 100)
    assert resolved("cascade_rcnn_r50", "random", "adamw", **GPU)[0] == (0, 1e-4, 100)
    assert resolved("cascade_rcnn_r50", "random", "adadelta")[0] == (0, 1.0, 100)


def test_from_a_backbone_stem_and_first_stage_stay(backbone):
    found, reasons = resolved("cascade_rcnn_r50", backbone)
    assert found == (1, 0.005, 100)
    assert "frozen_stages = 1: training starts from a trained backbone" in reasons
    assert resolved("cascade_rcnn_r50", "pretrained")[0] == (
        1,
        0.005,
        100,
    )  # timm's; nothing is fetched to know it


def test_from_a_detector_a_third_of_the_rate_and_half_the_length(trained):
    found, reasons = resolved("faster_rcnn_r18_small", trained)
    assert found == (1, 0.00167, 50)
    assert "a third of it from a trained detector" in reasons
    assert "half of it from a trained detector" in reasons
    assert resolved("faster_rcnn_r18_small", trained, num_images=99)[0][0] == 2
    assert resolved("torchvision_mask_rcnn_r50_v2", "pretrained")[0] == (1, 0.00167, 50)  # COCO's
    name = "torchvision_mask_rcnn_r50_v2, backbone: resnet34"  # which torchvision has no detector of
    assert resolved(name, "pretrained")[0] == (1, 0.005, 100)


def test_a_run_brings_its_model_along(trained):
    overrides = [f'members.*.model.init="{trained}"']
    recipe, reasons = OpenRecipe.over("data", overrides=overrides).choose(DataFacts(**FACTS, device="cpu"))
    model = recipe.members[MEMBER].detector
    assert (model.name, model.init) == ("faster_rcnn_r18_small", str(trained))
    assert (model.backbone, model.anchor_scales, model.fpn_channels) == ("resnet10t", (2.0,), 16)
    assert "faster_rcnn_r18_small from a trained detector (" in reasons[0]
    assert "stem and 1 stage stay as they are, learning rate 0.000333" in reasons[0]
    assert max(map(len, reasons)) < 170


@pytest.mark.parametrize("masks", [False, True])
def test_a_detector_of_masks_brings_them_along_where_the_objects_have_them(masks, tmp_path):
    options = {"backbone": "resnet10t", "fpn_channels": 16, "mask_channels": 8}
    config = ModelConfig(name="mask_rcnn_r18_small", **options)
    meta = CheckpointMeta(class_names=("bolt",), category_ids=(1,), model=config.model_dump(mode="json"))
    save_checkpoint(tmp_path / "weights.safetensors", model_tensors(build_model(config, 1)), meta)
    opened = OpenRecipe.over("data", overrides=[f'members.*.model.init="{tmp_path}"'])
    facts = DataFacts(**FACTS, device="cpu", has_masks=masks)
    model = opened.choose(facts).recipe.members[MEMBER].detector
    assert model.name == ("mask_rcnn_r18_small" if masks else "faster_rcnn_r18_small")
    assert model.fpn_channels == 16
    assert model.options.get("mask_channels") == (8 if masks else None)


def test_what_cannot_be_started_from_is_told_before_any_data_is_read(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such file"):
        OpenRecipe.over("nowhere", overrides=[f"members.*.model.init={tmp_path / 'none.safetensors'}"])
    with pytest.raises(CheckpointError, match=r"members\.a: model\.init: .*there is no such file"):
        resolved("cascade_rcnn_r50", tmp_path / "none.pth")
