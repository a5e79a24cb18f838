"""Each part of a detector has a normalisation of its own, and weights without a place are not dropped in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from models.conftest import golden_state
from scantling.errors import CheckpointError
from scantling.models.weights.conversion import load_converted
from scantling.models.weights.mmdet import ForeignCheckpoint, convert
from scantling.models.zoo import ModelConfig, build_model
from scantling.predict.import_weights import import_detector, take_over


def norms_of(module: nn.Module) -> set[type]:
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm)
    return {type(m) for m in module.modules() if isinstance(m, kinds)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"norm": "gn"}, ({nn.GroupNorm}, {nn.GroupNorm})),
        ({"norm": "gn", "head_norm": "bn"}, ({nn.GroupNorm}, {nn.BatchNorm2d})),
        ({"norm": "bn_eval", "neck_norm": "gn", "head_norm": "gn"}, ({nn.GroupNorm}, {nn.GroupNorm})),
        ({"norm": "gn", "neck_norm": "none", "head_norm": "sync_bn"}, (set(), {nn.SyncBatchNorm})),
        ({"norm": "bn_eval", "head_norm": "none"}, (set(), set())),
    ],
)
@pytest.mark.parametrize("name", ["double_head_rcnn_r50", "cascade_rcnn_r50"])
def test_neck_and_head_follow_the_backbone_unless_they_are_told_otherwise(name, options, expected):
    with torch.device("meta"):
        model = build_model(
            ModelConfig(name=name, head=None if "double" in name else "conv_fc", **options), 2
        )
    head = model.head if "double" in name else model.stages
    assert (norms_of(model.neck), norms_of(head)) == expected


@pytest.fixture(scope="module")
def gn_double_head():
    """As MMDetection makes it: GroupNorm in backbone and pyramid, BatchNorm in the convolution head."""
    weights = {
        k: v for k, v in golden_state("cascade_rcnn_r50_dcn_gn").items() if not k.startswith("roi_head.")
    }
    weights |= {k: v for k, v in golden_state("double_head_r50").items() if k.startswith("roi_head.")}
    return ForeignCheckpoint(path=Path("double_head_gn.pth"), weights=weights)


def test_batch_norm_in_the_head_of_a_group_norm_detector_is_read_as_it_is(gn_double_head, load_golden):
    made = take_over(gn_double_head, ModelConfig(name="double_head_rcnn_r50_dcn_gn"))
    assert made.conversion.unused == ()
    model = made.detector.eval()
    body, head = load_golden("cascade_rcnn_r50_dcn_gn"), load_golden("double_head_r50")
    with torch.no_grad():
        features = model.features(body.image)
        for level, feature in enumerate(features):
            expected = body.tensor(f"fpn_{level}")
            torch.testing.assert_close(feature[:, ::16, ::4, ::4], expected, rtol=1e-3, atol=1e-3)
        found = model.run_heads(features, [body.proposals])
        expected = head.model.run_heads(features, [body.proposals])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def shapes_of(case, folder):
    """The case's keys and shapes, without values."""
    entries = json.loads((folder / f"{case}.json").read_text())["state_dict"]
    return {e["key"]: torch.empty(e["shape"], device="meta") for e in entries}


def converted(config, weights):
    with torch.device("meta"):
        model = build_model(config, 3)
    load_converted(model, convert(weights, model))


def test_running_statistics_without_a_place_are_refused(gn_double_head, tmp_path):
    file = tmp_path / "double_head_gn.pth"
    torch.save({"state_dict": gn_double_head.weights}, file)
    config = ModelConfig(name="double_head_rcnn_r50_dcn_gn", head_norm="gn")
    with pytest.raises(CheckpointError, match=r"30 of its weights find no place.*running_mean") as caught:
        import_detector(file, config, tmp_path / "out")
    assert "`head_norm` (bn)" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_batch_norm_weights_do_not_enter_a_group_norm_backbone(golden_folder):
    weights = shapes_of("cascade_rcnn_r50", golden_folder)
    converted(ModelConfig(name="cascade_rcnn_r50"), weights)
    with pytest.raises(CheckpointError, match=r"106 of its weights find no place"):
        converted(ModelConfig(name="cascade_rcnn_r50", norm="gn", neck_norm="none"), weights)


def test_any_other_trained_tensor_without_a_place_is_refused(golden_folder):
    weights = shapes_of("cascade_rcnn_r50", golden_folder)
    derived = {"backbone.layer1.0.attn.relative_position_index": torch.zeros(1)}
    converted(ModelConfig(name="cascade_rcnn_r50"), weights | derived)
    extra = {"roi_head.semantic_head.convs.0.conv.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"1 of its weights .*semantic_head"):
        converted(ModelConfig(name="cascade_rcnn_r50"), weights | extra)


def test_the_masks_branch_may_be_left_out_of_a_detector_of_boxes(golden_folder):
    converted(ModelConfig(name="faster_rcnn_swin_t"), shapes_of("mask_rcnn_swin_t", golden_folder))
