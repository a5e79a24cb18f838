"""What every detector must do: learn, use each of its parts, and cope with nothing to detect."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scantling.models.two_stage import Detector, SuppressConfig, suppress_instances, total_loss
from scantling.models.zoo import ModelConfig, build_model
from scantling.ops.boxes import pairwise_iou
from scantling.structures.instances import Instances
from scantling.structures.sample import Batch, Frame, Sample

SIZE_HW = (128, 160)
STEPS = 160
SMALL = {
    "backbone": "resnet10t",
    "fpn_channels": 32,
    "fc_channels": 64,
    "num_rois": 32,
    "num_train_proposals": 100,
}
VARIANTS = {
    "faster": ModelConfig(name="faster_rcnn_r18_small", **SMALL),
    "cascade": ModelConfig(name="cascade_rcnn_r18_small", **SMALL),
    "cascade gn": ModelConfig(name="cascade_rcnn_r18_small", norm="gn", **SMALL),
    "cascade conv_fc giou": ModelConfig(
        name="cascade_rcnn_r18_small", head="conv_fc", box_loss="giou", box_loss_weight=10.0, **SMALL
    ),
    "cascade per class dcn": ModelConfig(
        name="cascade_rcnn_r18_small", class_agnostic=False, deform=(3, 4), deform_version=2, **SMALL
    ),
}


def painted(boxes: list[tuple[int, int, int, int]], labels: list[int], seed: int) -> Sample:
    """A noisy image with one filled rectangle per box, its colour telling the label."""
    image = np.random.default_rng(seed).integers(90, 130, (*SIZE_HW, 3), dtype=np.uint8)
    for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
        image[y1:y2, x1:x2] = ((220, 40, 40), (40, 220, 40))[label]
    truth = Instances(
        size_hw=SIZE_HW,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
    )
    frame = Frame.identity(SIZE_HW)
    return Sample(image=image.transpose(2, 0, 1), instances=truth, frame=frame, image_id=seed)


def two_images() -> Batch:
    return Batch.collate(
        [
            painted([(10, 20, 50, 60), (90, 30, 150, 110)], [0, 1], seed=1),
            painted([(60, 70, 90, 120), (5, 5, 30, 40), (100, 10, 140, 40)], [0, 1, 1], seed=2),
        ]
    )


def build(variant: str) -> Detector:
    torch.manual_seed(0)
    return build_model(VARIANTS[variant], num_classes=2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient(variant: str) -> None:
    model, batch = build(variant).train(), two_images()
    total_loss(model.losses(batch)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []
    untouched = {n for n, p in model.named_parameters() if not p.grad.any()}
    # a zero-initialised residual branch hides the layers before it in the first step, and offsets that are zero
    # everywhere hide nothing; all the rest must move
    assert all("backbone" in n for n in untouched), untouched


@pytest.mark.parametrize("variant", VARIANTS)
def test_images_without_objects(variant: str) -> None:
    model = build(variant).train()
    losses = model.losses(Batch.collate([painted([], [], seed=3), painted([], [], seed=4)]))
    total_loss(losses).backward()
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(float(v.detach()) == 0 for k, v in losses.items() if k.endswith("/box"))
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_no_proposals_give_no_detections() -> None:
    for variant in ("faster", "cascade"):
        model, batch = build(variant).eval(), two_images()
        with torch.no_grad():
            features = model.features(model.normalise(batch.images, batch.sizes_hw))
            found = model.roi_candidates(features, [torch.zeros(0, 4)] * 2, batch.sizes_hw)
        assert [len(f) for f in found] == [0, 0]
        losses = model.train().roi_losses(features, [torch.zeros(0, 4)] * 2, batch.instances)
        assert all(torch.isfinite(v) for v in losses.values())


@pytest.mark.parametrize("part", [0, 1, 2])
def test_each_stage_has_a_say_in_the_result(part: int) -> None:
    model, batch = build("cascade").eval(), two_images()
    model.suppression = SuppressConfig(score_threshold=0.0)
    with torch.no_grad():
        before = model.predict(batch)
        head = model.heads[part]
        head.logits.bias += torch.tensor([2.0, 0.0, 0.0])
        scores_after = model.predict(batch)
        head.logits.bias -= torch.tensor([2.0, 0.0, 0.0])
        head.deltas.bias += 1.0
        boxes_after = model.predict(batch)
    assert not torch.allclose(before[0].scores, scores_after[0].scores)
    assert not torch.allclose(before[0].boxes, boxes_after[0].boxes[: len(before[0])])


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_of_weight_zero_does_not_learn(stage: int) -> None:
    model, batch = build("cascade").train(), two_images()
    stages = list(model.config.stages)
    stages[stage] = stages[stage].model_copy(update={"weight": 0.0})
    model.config = model.config.model_copy(update={"stages": tuple(stages)})
    total_loss(model.losses(batch)).backward()
    moved = [any(p.grad.any() for p in head.parameters()) for head in model.heads]
    assert moved == [number != stage for number in range(3)]


def test_losses_do_not_depend_on_the_mode_without_batch_statistics() -> None:
    model, batch = build("cascade gn"), two_images()
    found = []
    for mode in (True, False):
        torch.manual_seed(5)
        found.append({k: float(v.detach()) for k, v in model.train(mode).losses(batch).items()})
    assert found[0] == found[1]


def test_an_image_is_detected_alike_alone_and_beside_a_larger_one() -> None:
    model = build("cascade").eval()
    model.suppression = SuppressConfig(score_threshold=0.0)
    small = painted([(10, 20, 50, 60)], [0], seed=1)
    wide = Sample(
        image=np.zeros((3, 128, 256), np.uint8),
        instances=Instances.empty((128, 256), scored=False),
        frame=Frame.identity((128, 256)),
        image_id=9,
    )
    with torch.no_grad():
        alone, together = (
            model.candidates(Batch.collate([small])),
            model.candidates(Batch.collate([small, wide])),
        )
    assert together[0].size_hw == alone[0].size_hw == SIZE_HW
    assert together[0].boxes[:, 2].max() <= SIZE_HW[1]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["faster", "cascade", "cascade conv_fc giou"])
def test_two_images_are_learned_by_heart(variant: str) -> None:
    model, batch = build(variant).train(), two_images()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS, pct_start=0.15)
    for step in range(STEPS):
        torch.manual_seed(step)
        optimizer.zero_grad()
        total_loss(model.losses(batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = model.eval().predict(batch)
    assert mean_average_precision(found, batch.instances) > 0.9


def mean_average_precision(found: list[Instances], truths: list[Instances]) -> float:
    """COCO's AP 0.50:0.95 by pycocotools, the arbiter."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def records(instances: list[Instances]) -> list[dict]:
        rows = [
            {
                "image_id": image,
                "category_id": int(label),
                "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
                "area": float((box[2:] - box[:2]).prod()),
                "iscrowd": 0,
                "score": 1.0 if found_in.scores is None else float(found_in.scores[i]),
            }
            for image, found_in in enumerate(instances)
            for i, (box, label) in enumerate(zip(found_in.boxes, found_in.labels, strict=True))
        ]
        return [row | {"id": number} for number, row in enumerate(rows, start=1)]

    truth = COCO()
    truth.dataset = {
        "images": [{"id": i, "height": SIZE_HW[0], "width": SIZE_HW[1]} for i in range(len(truths))],
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
        "annotations": records(truths),
    }
    truth.createIndex()
    detections = COCO()
    detections.dataset = truth.dataset | {"annotations": records(found)}
    detections.createIndex()
    evaluation = COCOeval(truth, detections, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def test_suppression_settings_reach_the_result() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 10.0]])
    found = Instances(
        size_hw=(20, 20), boxes=boxes, labels=torch.tensor([0, 0, 1]), scores=torch.tensor([0.9, 0.8, 0.7])
    )
    assert pairwise_iou(boxes[:1], boxes[1:2]).item() == pytest.approx(0.8)
    hard = suppress_instances(found, SuppressConfig(), ())
    assert hard.scores.tolist() == pytest.approx([0.9, 0.7])
    soft = suppress_instances(found, SuppressConfig(method="soft_linear"), ())
    assert soft.scores.tolist() == pytest.approx([0.9, 0.7, 0.8 * 0.2])
    per_class = SuppressConfig(iou_threshold={"a": 0.85, "default": 0.5})
    assert len(suppress_instances(found, per_class, ("a", "b"))) == 3
    assert len(suppress_instances(found, SuppressConfig(max_per_image=1), ())) == 1
