"""Our detectors against MMDetection 3.3.0 on the same weights and image (see tests/golden/README.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from models.conftest import unpacked
from scantling.models.assign import SampleConfig
from scantling.models.cascade_rcnn import published_stages
from scantling.models.rpn import propose
from scantling.models.suppression import SuppressConfig, suppress_instances
from scantling.structures.instances import Instances

HTCS = ("htc_r50", "htc_cb_swin_t")
SCNET = "scnet_r50_dcn_seesaw"
CASCADES = ("cascade_rcnn_r50", "cascade_rcnn_r50_dcn_gn", "cascade_mask_rcnn_r50_giou", *HTCS, SCNET)
DOUBLE_HEAD = "double_head_r50"
MASK_RCNN = "mask_rcnn_swin_t"
CB_RESNET = "cb_resnet50"
WITH_MASKS = (MASK_RCNN, "cascade_mask_rcnn_r50_giou", "htc_cb_swin_t", SCNET)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-3 of the expected tensor's largest magnitude, element by element."""
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.fixture(params=[*CASCADES, DOUBLE_HEAD, MASK_RCNN, CB_RESNET])
def golden(request, load_golden):
    return load_golden(request.param)


@pytest.fixture
def features(golden):
    return golden.features


def test_pyramid(golden, features) -> None:
    assert len(features) == 5
    for level, found in enumerate(features):
        assert_close(found[:, ::16, ::4, ::4], golden.tensor(f"fpn_{level}"))


def test_rpn_maps(golden, features) -> None:
    with torch.no_grad():
        output = golden.model.rpn(features)
    for level, feature in enumerate(features):
        height, width = feature.shape[-2:]
        logits = output.logits[level].view(1, height, width, -1).permute(0, 3, 1, 2)
        deltas = output.deltas[level].view(1, height, width, -1).permute(0, 3, 1, 2)
        assert_close(logits[:, :, ::2, ::2], golden.tensor(f"rpn_cls_{level}"))
        assert_close(deltas[:, :, ::2, ::2], golden.tensor(f"rpn_reg_{level}"))


def test_rpn_proposals(golden, features) -> None:
    with torch.no_grad():
        boxes, scores = propose(golden.model.rpn(features), [golden.size_hw], (1000, 1000), 0.7)
    assert_same_boxes(boxes[0][:200], golden.tensor("rpn_boxes"), at_least=0.99)
    torch.testing.assert_close(scores[0][:200], golden.tensor("rpn_scores"), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("golden", CASCADES, indirect=True)
def test_stages(golden, features) -> None:
    with torch.no_grad():
        outputs = golden.model.run_stages(golden.encoded(features))
    assert len(outputs) == 3
    for stage, output in enumerate(outputs):
        expected = golden.tensor(f"stage{stage}_rois")[:, 1:]
        torch.testing.assert_close(output.rois[0], expected, rtol=0, atol=0.05)
        assert_close(output.logits[0], golden.tensor(f"stage{stage}_cls"))
        assert_close(output.deltas[0], golden.tensor(f"stage{stage}_reg"))


@pytest.mark.parametrize("golden", [SCNET], indirect=True)
def test_branches_for_the_whole_image(golden, features) -> None:
    model = golden.model
    with torch.no_grad():
        cells = model.semantic_head(features).logits
        present = model.context_head(features[-1], 64, [golden.size_hw]).logits
    assert_close(cells[:, :, ::4, ::4], golden.tensor("semantic_logits"))
    assert_close(present, golden.tensor("global_context_logits"))


@pytest.mark.parametrize("golden", [DOUBLE_HEAD], indirect=True)
def test_double_head(golden, features) -> None:
    rois = golden.tensor("stage0_rois")[:, 1:]
    torch.testing.assert_close(golden.proposals, rois)
    with torch.no_grad():
        logits, deltas = golden.model.run_heads(features, [rois])
    assert_close(logits, golden.tensor("stage0_cls"))
    assert_close(deltas.flatten(1), golden.tensor("stage0_reg"))


@pytest.mark.parametrize("golden", [MASK_RCNN, CB_RESNET], indirect=True)
def test_box_head(golden, features) -> None:
    with torch.no_grad():
        logits, deltas = golden.model.head(golden.model.pool(features, [golden.proposals]))
    assert_close(logits, golden.tensor("stage0_cls"))
    assert_close(deltas.flatten(1), golden.tensor("stage0_reg"))


@pytest.mark.parametrize("golden", ["cascade_mask_rcnn_r50_giou"], indirect=True)
def test_mask_logits(golden, features) -> None:
    boxes = golden.tensor("final_boxes")[:5]
    for stage, head in enumerate(golden.model.mask_heads):
        with torch.no_grad():
            logits = head(features, [boxes])
        assert_close(logits, golden.tensor(f"stage{stage}_mask_logits_top5"))


@pytest.mark.parametrize("golden", HTCS, indirect=True)
def test_masks_of_all_stages_know_the_stages_before(golden, features) -> None:
    """With the information flow; the result is the mean of all stages, as in the paper."""
    found = Instances(
        size_hw=golden.size_hw,
        boxes=golden.tensor("final_boxes")[:5],
        labels=golden.tensor("final_labels")[:5],
    )
    with torch.no_grad():
        logits = golden.model.mask_logits(golden.encoded(features), [found.boxes])
        (masks,) = golden.model.masks(golden.encoded(features), [found])
    expected = [golden.tensor(f"stage{stage}_mask_logits_top5") for stage in range(3)]
    assert len(logits) == 3
    for stage in range(3):
        assert_close(logits[stage], expected[stage])
    own = torch.stack([stage[torch.arange(5), found.labels] for stage in expected])
    assert_close(masks.probabilities, own.sigmoid().mean(dim=0))
    assert (
        float((own.sigmoid().mean(dim=0) - own[2].sigmoid()).abs().max()) > 0.05
    )  # the last alone is another


@pytest.mark.parametrize("golden", WITH_MASKS, indirect=True)
def test_masks_of_given_boxes(golden, features) -> None:
    found = Instances(
        size_hw=golden.size_hw,
        boxes=golden.tensor("final_boxes"),
        labels=golden.tensor("final_labels"),
        scores=golden.tensor("final_scores"),
    )
    with torch.no_grad():
        (masks,) = golden.model.masks(golden.encoded(features), [found])
    dense = masks.to_image(found.boxes, golden.size_hw).to_dense()
    areas = golden.tensor("final_mask_areas").float()
    x1, y1, x2, y2 = found.boxes.unbind(1)
    flat = (x2 == x1) | (
        y2 == y1
    )  # boxes clipped to the border, where the reference paints a line; ours is empty
    assert not dense[flat].any()
    # a pixel at the threshold may fall either way
    assert float((dense.sum((1, 2)) - areas)[~flat].abs().max()) <= 3
    expected = torch.from_numpy(unpacked(golden.arrays["final_masks_top5"], 5, golden.size_hw)).bool()
    assert int((dense[:5] ^ expected).sum((1, 2)).max()) <= 3
    if golden.facts["losses"].get("loss_mask") is not None:
        assert int(expected.sum()) > 1000
        return
    # the cascade's masks are empty on the scene, so their probabilities are compared: the mean of the stages'
    logits = [golden.tensor(f"stage{stage}_mask_logits_top5") for stage in range(3)]
    own = [stage[torch.arange(5), found.labels[:5]] for stage in logits]
    assert_close(masks.probabilities[:5], torch.stack(own).sigmoid().mean(dim=0))


def test_final_detections(golden, features) -> None:
    model = golden.model
    told = (golden.facts.get("test_cfg") or golden.facts["model"]["test_cfg"])["rcnn"]
    is_soft = told["nms"].get("type") == "soft_nms"
    suppression = SuppressConfig(
        method="soft_linear" if is_soft else "hard",
        min_score=told["nms"].get("min_score", 0.0),
        iou_threshold=told["nms"]["iou_threshold"],
        score_threshold=told["score_thr"],
        max_per_image=told["max_per_img"],
    )
    with torch.no_grad():
        candidates = model.candidates(golden.encoded(features), suppression.limits(()))[0]
    found = suppress_instances(candidates, suppression, ())
    assert len(found) == len(golden.arrays["final_boxes"])
    torch.testing.assert_close(found.scores, golden.tensor("final_scores"), rtol=1e-3, atol=1e-4)
    expected_labels = golden.tensor("final_labels")
    for label in range(3):
        mine, theirs = (
            found.boxes[found.labels == label],
            golden.tensor("final_boxes")[expected_labels == label],
        )
        assert len(mine) == len(theirs)
        if len(mine):
            assert_same_boxes(mine, theirs, at_least=1.0)


def test_losses(golden, features) -> None:
    model, facts = golden.model, golden.facts["losses"]
    with every_sample(golden), torch.no_grad():
        found = model.rpn.losses(model.rpn(features), golden.batch)
        found |= model.roi_losses(golden.encoded(features), [golden.truth])
    heads = (
        {"": "box_head"} if "loss_cls" in facts else {f"s{number}.": f"stage{number}" for number in range(3)}
    )
    expected = {ours: facts[theirs] for theirs, ours in ONCE.items() if theirs in facts}
    for theirs, ours in heads.items():
        expected |= {
            f"{ours}/{part}": facts[f"{theirs}{name}"]
            for name, part in PER_HEAD.items()
            if f"{theirs}{name}" in facts and (theirs or name != "loss_mask")
        }
    assert {k: float(v) for k, v in found.items()} == pytest.approx(expected, rel=1e-3)


ONCE = {
    "loss_rpn_bbox": "rpn/box",
    "loss_rpn_cls": "rpn/objectness",
    "loss_semantic_seg": "semantic_head/class",
    "loss_glbctx": "context_head/class",
    "loss_mask": "mask_head/mask",
}
PER_HEAD = {
    "loss_cls": "class",
    "loss_cls_classes": "class",
    "loss_cls_objectness": "objectness",
    "loss_bbox": "box",
    "loss_mask": "mask",
}
"""Their names of losses, and ours."""


@contextmanager
def every_sample(golden) -> Iterator[None]:
    """The reference's training settings: all RoIs are taken, and all anchors that its border leaves over."""
    model = golden.model
    counts = {k: v.clone() for k, v in model.state_dict().items() if k.endswith("class_loss.counts")}
    config, rpn = model.config, model.rpn.config
    every = SampleConfig(num=None)
    border = golden.facts["model"]["train_cfg"]["rpn"]["allowed_border"]
    changes = {"sample": every, "allowed_border": None if border < 0 else float(border)}
    model.rpn.config = rpn.model_copy(update=changes)
    model.config = config.model_copy(update={"sample": every})
    told = golden.facts["model"]["train_cfg"]["rcnn"]
    if isinstance(told, list):
        ious = tuple(stage["assigner"]["pos_iou_thr"] for stage in told)
        stages = published_stages(config.stages[0].head, ious)
        model.config = model.config.model_copy(update={"stages": stages})
    yield
    model.config, model.rpn.config = config, rpn
    model.load_state_dict(model.state_dict() | counts)


def assert_same_boxes(found: torch.Tensor, expected: torch.Tensor, at_least: float) -> None:
    """The same set of boxes to 0.05 px, in any order (equal scores may swap)."""
    apart = (found[:, None] - expected).abs().amax(dim=2)
    distance, nearest = apart.min(dim=0)
    assert float((distance <= 0.05).float().mean()) >= at_least, (
        f"largest distance {float(distance.max())} px"
    )
    assert len(nearest.unique()) >= at_least * len(expected.unique(dim=0))
