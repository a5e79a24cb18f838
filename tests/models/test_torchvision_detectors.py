"""torchvision's own detectors, imported: the same boxes, scores and masks on the golden scene.

Their weights are random here, with a classifier that is sure of itself; rows without a category take part, as they do
in the published files, though there they hardly ever win.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torchvision.models import detection, resnet50
from torchvision.models._meta import _COCO_CATEGORIES
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops.misc import FrozenBatchNorm2d

from scantling.errors import CheckpointError
from scantling.models.contract import CandidateLimits
from scantling.models.suppression import SuppressConfig, suppress_instances
from scantling.models.weights.torchvision_detectors import COCO_IDS, COCO_NAMES
from scantling.models.zoo import ModelConfig, build_model
from scantling.predict.import_weights import KEEP, HeadChoice, import_detector
from scantling.structures.sample import Batch, Frame
from scantling.train.checkpoint import load_checkpoint, load_weights, weights_in

SIZE_HW = (192, 256)
PROPOSALS = 200
"""Instead of 1000, for the time that the heads take."""
MODELS = {
    "torchvision_faster_rcnn_r50": detection.fasterrcnn_resnet50_fpn,
    "torchvision_faster_rcnn_r50_v2": detection.fasterrcnn_resnet50_fpn_v2,
    "torchvision_mask_rcnn_r50": detection.maskrcnn_resnet50_fpn,
    "torchvision_mask_rcnn_r50_v2": detection.maskrcnn_resnet50_fpn_v2,
}


def confident(model: torch.nn.Module, pixels: torch.Tensor) -> torch.nn.Module:
    """Random weights that give scores, boxes and masks that differ, and boxes of ordinary size."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1 and "backbone.body" not in name:
                fan_in = value[0].numel()
                value.copy_(torch.randn(value.shape, generator=generator) * (1.4 / fan_in**0.5))
        for name, value in model.named_buffers():
            if name.endswith("running_var"):
                value.copy_(0.8 + 0.4 * torch.rand(value.shape, generator=generator))
            elif name.endswith("running_mean"):
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
        spread = model.eval().backbone(pixels[None].float() / 255)["0"].std()
        for block in model.backbone.fpn.layer_blocks:
            last = [module for module in block.modules() if hasattr(module, "weight")][-1]
            last.weight /= spread
            if last.bias is not None:
                last.bias /= spread
        model.rpn.head.bbox_pred.weight *= 0.1
        model.roi_heads.box_predictor.bbox_pred.weight *= 0.5
        model.roi_heads.box_predictor.cls_score.weight *= 3
    model.roi_heads.detections_per_img, model.roi_heads.nms_thresh = (
        1000,
        0.2,
    )  # few, so that masks take moments
    model.rpn._pre_nms_top_n["testing"] = model.rpn._post_nms_top_n["testing"] = PROPOSALS
    model.transform.min_size, model.transform.max_size = (SIZE_HW[0],), SIZE_HW[1]
    return model.eval()


def scene(golden_folder) -> torch.Tensor:
    """The golden scene as pixels (3, H, W), uint8."""
    image = torch.from_numpy(np.load(golden_folder / "scene.npz")["image"])[0]
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    return (image * std[:, None, None] + mean[:, None, None]).round().clamp(0, 255).to(torch.uint8)


def imported(peer, name, folder, choice=KEEP):
    file = folder / "theirs.pth"
    torch.save(peer.state_dict(), file)
    summary = import_detector(file, ModelConfig(name=name), folder / "ours", choice=choice)
    tensors, meta = load_checkpoint(summary.checkpoint)
    config = ModelConfig(**{**meta.model, "num_test_proposals": PROPOSALS})
    model = build_model(config, len(meta.class_names)).eval()
    load_weights(model, weights_in(tensors), source=summary.checkpoint)
    return model, meta, summary


def assert_same_detections(peer, model, pixels):
    batch = batch_of(pixels)
    with torch.no_grad():
        (theirs,) = peer([pixels.float() / 255])
        encoded = model.encode(batch)
        config = SuppressConfig(max_per_image=None, iou_threshold=0.2)
        limits = CandidateLimits(score_threshold=0.05, max_candidates=100_000)
        found = suppress_instances(model.candidates(encoded, limits)[0], config, ())
    named = torch.tensor([int(label) in COCO_IDS for label in theirs["labels"]])
    assert len(theirs["labels"]) < 1000  # nothing was cut off
    assert int(named.sum()) >= 10
    expected = {key: value[named] for key, value in theirs.items()}
    assert len(found) == len(expected["labels"])
    labels = torch.tensor([COCO_IDS[label] for label in found.labels])
    distance = (found.boxes[:, None] - expected["boxes"]).abs().amax(-1)
    distance += 1e4 * (labels[:, None] != expected["labels"])
    row = distance.argmin(dim=0)  # equal scores may swap
    assert len(row.unique()) == len(row)
    assert float(distance.amin(dim=0).max()) < 0.05
    found = found[row]
    torch.testing.assert_close(found.scores, expected["scores"], rtol=1e-3, atol=1e-4)
    if not model.has_masks:
        return
    with torch.no_grad():
        (masks,) = model.masks(encoded, [found])
    pasted = paste_masks_in_image(masks.probabilities[:, None], expected["boxes"], SIZE_HW)
    torch.testing.assert_close(pasted, expected["masks"], rtol=0, atol=2e-3)
    # theirs are pasted into whole pixels, which moves the edges of these random masks
    ours = masks.to_image(found.boxes, SIZE_HW).to_dense()
    reference = expected["masks"][:, 0] >= 0.5
    overlap = (ours & reference).sum((1, 2)) / (ours | reference).sum((1, 2)).clamp(min=1)
    large = reference.sum((1, 2)) > 500
    assert float(overlap[large].mean()) > 0.6


def batch_of(pixels):
    from scantling.structures.instances import Instances

    return Batch(
        images=pixels[None],
        sizes_hw=[SIZE_HW],
        instances=[Instances.empty(SIZE_HW, scored=False)],
        frames=[Frame.identity(SIZE_HW)],
        image_ids=[0],
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_same_boxes_scores_and_masks(name, golden_folder, tmp_path):
    torch.manual_seed(0)
    pixels = scene(golden_folder)
    peer = confident(MODELS[name](weights=None, weights_backbone=None), pixels)
    model, meta, summary = imported(peer, name, tmp_path)
    assert summary.conversion.unused == summary.conversion.missing == ()
    assert meta.class_names == COCO_NAMES
    assert tuple(meta.category_ids) == COCO_IDS
    assert_same_detections(peer, model, pixels)


def test_the_published_first_generation_has_fixed_statistics_without_epsilon_and_older_names(
    golden_folder, tmp_path
):
    torch.manual_seed(0)
    body = resnet50(norm_layer=FrozenBatchNorm2d)
    pixels = scene(golden_folder)
    peer = confident(detection.MaskRCNN(_resnet_fpn_extractor(body, 3), num_classes=91), pixels)
    for module in peer.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0
    model, _, _ = imported(peer, "torchvision_mask_rcnn_r50", tmp_path)
    assert_same_detections(peer, model, pixels)
    old = {}
    for key, value in peer.state_dict().items():
        name = re.sub(r"_blocks\.(\d)\.0\.", r"_blocks.\1.", key).replace("head.conv.0.0.", "head.conv.")
        name = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name)
        old[name] = value
    file = tmp_path / "old.pth"
    torch.save(old, file)
    summary = import_detector(file, ModelConfig(name="torchvision_mask_rcnn_r50"), tmp_path / "old")
    for key, value in load_checkpoint(summary.checkpoint).tensors.items():
        assert torch.equal(value, {f"model.{k}": v for k, v in model.state_dict().items()}.get(key, value))


def test_the_names_are_cocos():
    named = [
        (row, name) for row, name in enumerate(_COCO_CATEGORIES) if name not in ("N/A", "__background__")
    ]
    assert named == list(zip(COCO_IDS, COCO_NAMES, strict=True))


def test_other_categories_take_over_rows_by_name(tmp_path):
    peer = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    choice = HeadChoice(head="by-name", classes=("zebra", "bolt", "Cat"))
    model, meta, summary = imported(peer, "torchvision_mask_rcnn_r50", tmp_path, choice)
    assert summary.reused == ("zebra", "Cat")
    assert model.head.logits.bias.shape == (4,)
    theirs = peer.roi_heads.box_predictor.cls_score.weight
    assert torch.equal(model.head.logits.weight[[0, 2, 3]], theirs[[24, 17, 0]])
    boxes = peer.roi_heads.box_predictor.bbox_pred.weight.view(91, 4, -1)
    assert torch.equal(model.head.deltas.weight.view(3, 4, -1)[[0, 2]], boxes[[24, 17]])
    masks = peer.roi_heads.mask_predictor.mask_fcn_logits.weight
    assert torch.equal(model.mask_head.logits.weight[[0, 2]], masks[[24, 17]])


def test_a_detector_of_another_architecture_is_refused(tmp_path):
    peer = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    with pytest.raises(CheckpointError, match="does not fit"):
        imported(peer, "torchvision_faster_rcnn_r50", tmp_path)
    v2 = detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    with pytest.raises(CheckpointError, match="does not fit"):
        imported(v2, "torchvision_faster_rcnn_r50", tmp_path)
