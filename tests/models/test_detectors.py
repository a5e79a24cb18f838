"""What every detector must do: learn, use each of its parts, and cope with nothing to detect."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from scantling.errors import ConfigError
from scantling.models.assign import AssignConfig, SampleConfig
from scantling.models.box_heads import RoiSamples, sample_rois
from scantling.models.contract import CandidateLimits, Detector, Encoded, total_loss
from scantling.models.faster_rcnn import FasterRCNN
from scantling.models.mask_heads import mask_targets
from scantling.models.suppression import SuppressConfig, detect
from scantling.models.two_stage import Pyramid
from scantling.models.zoo import ModelConfig, build_model
from scantling.settings.draft import Draft
from scantling.structures.instances import ImageMasks, Instances, RoiMasks
from scantling.structures.sample import Batch, Frame, Sample

SIZE_HW = (128, 160)
ALL = SuppressConfig(score_threshold=0.0)
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
    "mask": ModelConfig(name="mask_rcnn_r18_small", mask_convs=1, mask_channels=32, **SMALL),
    "mask iou": ModelConfig(
        name="mask_rcnn_r18_small", mask_convs=1, mask_channels=32, mask_iou=True, **SMALL
    ),
    "cascade mask": ModelConfig(name="cascade_mask_rcnn_r18_small", mask_convs=1, mask_channels=32, **SMALL),
    "cascade mask agnostic": ModelConfig(
        name="cascade_mask_rcnn_r18_small",
        mask_convs=1,
        mask_class_agnostic=True,
        mask_iou=True,
        head_norm="sync_bn",
        head="conv_fc",
        mask_norm="gn",
        **SMALL,
    ),
    "htc": ModelConfig(name="htc_r18_small", mask_convs=1, mask_channels=32, semantic_convs=1, **SMALL),
    "htc bare giou": ModelConfig(
        name="htc_r18_small",
        semantic=False,
        head="conv_fc",
        box_loss="giou",
        box_loss_weight=10.0,
        mask_convs=1,
        mask_channels=24,
        mask_class_agnostic=True,
        **SMALL,
    ),
    "htc cb": ModelConfig(
        name="htc_cb_r18_small",
        pruned_stages=1,
        mask_convs=1,
        mask_channels=32,
        mask_iou=True,
        semantic_convs=1,
        **SMALL,
    ),
    "scnet": ModelConfig(
        name="scnet_r18_small",
        class_loss="seesaw",
        mask_convs=2,
        mask_channels=32,
        semantic_convs=2,
        context_convs=2,
        **SMALL,
    ),
    "scnet bare cb": ModelConfig(
        name="scnet_r18_small",
        composite=True,
        semantic=False,
        context=False,
        relay=False,
        residual=False,
        mask_convs=1,
        mask_channels=24,
        mask_class_agnostic=True,
        mask_iou=True,
        **SMALL,
    ),
    "double head": ModelConfig(name="double_head_rcnn_r18_small", **SMALL),
    "double head gn agnostic": ModelConfig(
        name="double_head_rcnn_r18_small", norm="gn", class_agnostic=True, **SMALL
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


def with_masks(sample: Sample) -> Sample:
    """The same with the masks of the objects: each box without its upper right quarter, painted over as ground."""
    truth, image = sample.instances, sample.image.copy()
    dense = torch.zeros(len(truth), *SIZE_HW, dtype=torch.uint8)
    for row, (x1, y1, x2, y2) in enumerate(truth.boxes.int().tolist()):
        dense[row, y1:y2, x1:x2] = 1
        middle = ((x1 + x2) // 2, (y1 + y2) // 2)
        dense[row, y1 : middle[1], middle[0] : x2] = 0
        image[:, y1 : middle[1], middle[0] : x2] = 110
    return replace(sample, image=image, instances=truth.replace(masks=ImageMasks.from_dense(dense)))


def two_images() -> Batch:
    return Batch.collate(
        [
            with_masks(painted([(10, 20, 50, 60), (90, 30, 150, 110)], [0, 1], seed=1)),
            with_masks(painted([(60, 70, 90, 120), (5, 5, 30, 40), (100, 10, 140, 40)], [0, 1, 1], seed=2)),
        ]
    )


def without_objects() -> Batch:
    return Batch.collate([with_masks(painted([], [], seed=3)), with_masks(painted([], [], seed=4))])


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
    losses = model.losses(without_objects())
    total_loss(losses).backward()
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(float(v.detach()) == 0 for k, v in losses.items() if k.endswith(("/box", "/mask", "/iou")))
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(
    "variant",
    ["faster", "cascade", "htc", "htc bare giou", "scnet", "double head", "double head gn agnostic"],
)
def test_no_proposals_give_no_detections(variant: str) -> None:
    model, batch = build(variant).eval(), two_images()
    with torch.no_grad():
        features = model.features(model.normalise(batch.images, batch.sizes_hw))
        encoded = Encoded(levels=features, sizes_hw=batch.sizes_hw, proposals=[torch.zeros(0, 4)] * 2)
        found = model.candidates(encoded, CandidateLimits())
    assert [len(f) for f in found] == [0, 0]
    losses = model.train().roi_losses(encoded, batch.instances)
    assert all(torch.isfinite(v) for v in losses.values())


@pytest.mark.parametrize(
    "variant", ["faster", "cascade", "mask", "cascade mask", "htc bare giou", "scnet bare cb", "double head"]
)
def test_no_proposals_and_no_truths_leave_nothing_to_learn(variant: str) -> None:
    model = build(variant).train()
    batch = without_objects()
    features = model.features(model.normalise(batch.images, batch.sizes_hw))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    encoded = Encoded(levels=features, sizes_hw=batch.sizes_hw, proposals=[torch.zeros(0, 4)] * 2)
    losses = model.roi_losses(encoded, batch.instances)
    total_loss(losses).backward()
    assert all(float(v.detach()) == 0 for v in losses.values())
    heads = [p for n, p in model.named_parameters() if n.startswith(("head.", "stages.", "mask_"))]
    assert all(p.grad is not None and not p.grad.any() for p in heads)
    after = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert all(torch.equal(before[k], v) for k, v in after.items())  # running statistics, too


@pytest.mark.parametrize("variant", ["cascade", "htc", "htc bare giou", "scnet", "scnet bare cb"])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_each_stage_has_a_say_in_the_result(part: int, variant: str) -> None:
    model, batch = build(variant).eval(), two_images()
    with torch.no_grad():
        before = detect(model, batch, ALL)
        head = model.heads[part]
        head.logits.bias[0] += 2.0
        scores_after = detect(model, batch, ALL)
        head.logits.bias[0] -= 2.0
        head.deltas.bias += 1.0
        boxes_after = detect(model, batch, ALL)
    assert differ(before[0].scores, scores_after[0].scores)
    assert differ(before[0].boxes, boxes_after[0].boxes)


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    """In number, or by more than rounding."""
    return one.shape != other.shape or not torch.allclose(one, other)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_of_weight_zero_does_not_learn(stage: int) -> None:
    model, batch = build("cascade").train(), two_images()
    stages = list(model.config.stages)
    stages[stage] = stages[stage].model_copy(update={"weight": 0.0})
    model.config = model.config.model_copy(update={"stages": tuple(stages)})
    total_loss(model.losses(batch)).backward()
    moved = [any(p.grad.any() for p in head.parameters()) for head in model.heads]
    assert moved == [number != stage for number in range(3)]


@pytest.mark.parametrize("part", [0, 1, 2])
def test_each_mask_head_of_a_cascade_has_a_say_and_the_boxes_none(part: int) -> None:
    model, batch = build("cascade mask").eval(), two_images()
    with torch.no_grad():
        encoded = model.encode(batch)
        before = detect(model, batch, ALL)
        head = model.mask_heads[part]
        head.logits.bias += torch.tensor([1.0, 0.0])
        after = model.masks(encoded, before)
    for found, masks in zip(before, after, strict=True):
        assert len(masks) == len(found) > 0
        changed = (found.masks.probabilities != masks.probabilities).flatten(1).any(1)
        assert changed.tolist() == (found.labels == 0).tolist()  # the class of the row that changed


@pytest.mark.parametrize(
    "variant", ["mask", "cascade mask", "cascade mask agnostic", "htc", "htc bare giou", "scnet"]
)
def test_masks_are_drawn_for_any_boxes_and_for_none(variant: str) -> None:
    model, batch = build(variant).eval(), two_images()
    with torch.no_grad():
        encoded = model.encode(batch)
        masks = model.masks(encoded, batch.instances)
        alone = model.masks(encoded, [batch.instances[0][:1], batch.instances[1][:0]])
    assert [m.probabilities.shape for m in masks] == [(2, 28, 28), (3, 28, 28)]
    torch.testing.assert_close(alone[0].probabilities, masks[0].probabilities[:1])
    assert alone[1].probabilities.shape == (0, 28, 28)
    with pytest.raises(TypeError, match="no masks"):
        build("cascade").masks(encoded, batch.instances)


@pytest.mark.parametrize("variant", ["mask", "cascade mask", "htc", "htc bare giou", "scnet"])
def test_a_mask_loss_of_weight_zero_teaches_nothing(variant: str) -> None:
    torch.manual_seed(0)
    config = VARIANTS[variant].with_options(mask_weight=0.0)
    model = build_model(config, num_classes=2).train()
    total_loss(model.losses(two_images())).backward()
    still = {n for n, p in model.named_parameters() if not n.startswith("backbone.") and not p.grad.any()}
    assert still == {n for n, _ in model.named_parameters() if n.startswith(("mask_", "relay."))}


@pytest.mark.parametrize("num_classes", [2, 40])
def test_masks_start_undecided_however_many_classes_there_are(num_classes: int) -> None:
    torch.manual_seed(0)
    model = build_model(VARIANTS["mask"], num_classes).train()
    loss = model.losses(two_images())["mask_head/mask"]
    assert float(loss.detach()) == pytest.approx(np.log(2), abs=0.02)


def test_masks_are_learned_from_masks_only() -> None:
    model = build("mask").train()
    batch = Batch.collate([painted([(10, 20, 50, 60)], [0], seed=1)])
    with pytest.raises(TypeError, match="masks of the image, found NoneType"):
        model.losses(batch)


def test_mask_targets_are_roi_align_of_the_whole_mask() -> None:
    truth = two_images().instances[1]
    boxes = torch.tensor(
        [[55.3, 60.1, 97.8, 121.4], [100.0, 10, 140, 40], [-3.0, -2, 33.5, 41.2], [62.0, 71, 64, 74]]
    )
    matched = torch.tensor([0, 2, 1, 0])
    found = mask_targets(truth, matched, boxes, 28)
    dense = truth.masks.to_dense().float()
    for row, which in enumerate(matched.tolist()):
        expected = roi_align(dense[which][None, None], [boxes[row : row + 1]], 28, aligned=True)[0, 0]
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-5)
    assert mask_targets(truth, matched[:0], boxes[:0], 28).shape == (0, 28, 28)


def test_each_positive_remembers_which_object_it_stands_for() -> None:
    truth = two_images().instances[1]
    proposals = torch.tensor([[101.0, 11, 139, 41], [0.0, 90, 20, 120], [61.0, 70, 91, 119]])
    samples = sample_rois(proposals, truth, 2, AssignConfig(), SampleConfig(num=20))
    positive = samples.matched >= 0
    assert sorted(samples.matched[positive].tolist()) == [0, 0, 1, 2, 2]
    assert torch.equal(truth.boxes[samples.matched[positive]], samples.truths[positive])
    assert torch.equal(truth.labels[samples.matched[positive]], samples.labels[positive])
    assert samples.labels[~positive].tolist() == [2]
    joined = RoiSamples.cat([samples, samples])
    assert torch.equal(joined.matched, samples.matched.repeat(2))


def test_a_second_pyramid_counts_by_its_weight() -> None:
    """The same features again with half the weight: the same losses again, halved; the first alone predicts."""

    class Twice(FasterRCNN):
        def pyramids(self, images: torch.Tensor) -> list[Pyramid]:
            levels = self.features(images)
            return [Pyramid(levels), Pyramid(levels, weight=0.5)]

    every = SampleConfig(num=None)
    config = build("mask").config
    config = config.model_copy(
        update={"sample": every, "rpn": config.rpn.model_copy(update={"sample": every})}
    )
    torch.manual_seed(0)
    model = Twice(config, 2).eval()
    found = {name: float(loss.detach()) for name, loss in model.losses(two_images()).items()}
    first = {name: loss for name, loss in found.items() if not name.startswith("pyramid1/")}
    second = {name.removeprefix("pyramid1/"): loss for name, loss in found.items() if name not in first}
    assert second == pytest.approx({name: 0.5 * loss for name, loss in first.items()})


FC_HEAD, CONV_HEAD = ("head.fc_trunk.", "head.logits."), ("head.widen.", "head.blocks.", "head.deltas.")


@pytest.mark.parametrize("variant", ["double head", "double head gn agnostic"])
@pytest.mark.parametrize("part", [*FC_HEAD, *CONV_HEAD])
def test_the_fc_head_scores_and_the_conv_head_places(variant: str, part: str) -> None:
    """Candidates in the order of their RoIs and classes, before and after each part of a head is changed."""
    model, batch = build(variant).eval(), two_images()
    proposals = [
        torch.tensor([[10.0, 20, 50, 60], [80.0, 30, 150, 110]]),
        torch.tensor([[60.0, 60, 95, 120]]),
    ]

    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            features = model.features(model.normalise(batch.images, batch.sizes_hw))
            return model.run_heads(features, proposals)

    with torch.no_grad():
        model.head.deltas.weight.mul_(100)  # as drawn, the deltas are too small to show a change
        before = outputs()
        for name, parameter in model.named_parameters():
            if name.startswith(part):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.manual_seed(1)))
    after = outputs()
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == ([False, True] if part in FC_HEAD else [True, False])


def test_double_head_results_are_the_logits_of_one_head_and_the_boxes_of_the_other() -> None:
    model, batch = build("double head").eval(), two_images()
    rois = torch.tensor([[10.0, 20.0, 50.0, 60.0]])
    with torch.no_grad():
        features = model.features(model.normalise(batch.images, batch.sizes_hw))
        model.head.logits.weight.zero_()
        model.head.logits.bias.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
        model.head.deltas.weight.zero_()
        # class 0 a tenth of the width to the right, class 1 twice as high; deltas are divided by 0.1 and 0.2
        model.head.deltas.bias.copy_(torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 5 * np.log(2)]))
        encoded = Encoded(levels=features, sizes_hw=batch.sizes_hw, proposals=[rois, rois[:0]])
        found = model.candidates(encoded, CandidateLimits(score_threshold=0.0))
    assert [len(f) for f in found] == [2, 0]
    assert found[0].labels.tolist() == [0, 1]
    assert found[0].scores.tolist() == pytest.approx([0.5, 0.3])
    torch.testing.assert_close(found[0].boxes, torch.tensor([[14.0, 20, 54, 60], [10.0, 0, 50, 80]]))


def test_only_the_conv_head_sees_what_lies_around_a_roi() -> None:
    """A RoI that covers the left half of a map; beyond its edge, but within 1.3 times its size, a feature changes."""
    model = build("double head").eval()
    rois = [torch.tensor([[0.0, 0.0, 48.0, 48.0]])]
    features = [
        torch.rand(1, 32, 128 // s, 128 // s, generator=torch.manual_seed(0)) for s in (4, 8, 16, 32, 64)
    ]
    changed = [level.clone() for level in features]
    changed[0][:, :, :, 13:] = 5.0  # cells from x = 52 on; the enlarged RoI ends at 55.2
    with torch.no_grad():
        (logits, deltas), (logits_after, deltas_after) = (
            model.run_heads(levels, rois) for levels in (features, changed)
        )
    assert torch.equal(logits, logits_after)
    assert not torch.equal(deltas, deltas_after)


@pytest.mark.parametrize(("weight", "silent"), [("class_weight", FC_HEAD), ("box_loss", CONV_HEAD)])
def test_a_double_head_loss_of_weight_zero_teaches_nothing(weight: str, silent: tuple[str, ...]) -> None:
    model, batch = build("double head").train(), two_images()
    head = model.config.head
    zero = {"class_weight": 0.0, "box_loss": head.box_loss.model_copy(update={"weight": 0.0})}[weight]
    model.config = model.config.model_copy(update={"head": head.model_copy(update={weight: zero})})
    total_loss(model.losses(batch)).backward()
    still = {n for n, p in model.named_parameters() if n.startswith("head.") and not p.grad.any()}
    assert still == {n for n, _ in model.named_parameters() if n.startswith(silent)}


def test_double_head_takes_no_other_head() -> None:
    with pytest.raises(ConfigError, match=r"head: unknown key.*keys here: name, init, backbone.*fc_channels"):
        Draft.of(ModelConfig, ["name=double_head_rcnn_r50", "head=conv_fc"]).check()
    draft = Draft.of(ModelConfig, ["name=double_head_rcnn_r50", "fc_channel=4", "deform=[1, 2.5]"])
    with pytest.raises(ConfigError) as caught:
        draft.check()
    assert "fc_channel: unknown key; did you mean 'fc_channels'?" in caught.value.message
    assert "deform.1: found 2.5; expected a valid integer" in caught.value.message


def test_losses_do_not_depend_on_the_mode_without_batch_statistics() -> None:
    model, batch = build("cascade gn"), two_images()
    found = []
    for mode in (True, False):
        torch.manual_seed(5)
        found.append({k: float(v.detach()) for k, v in model.train(mode).losses(batch).items()})
    assert found[0] == found[1]


def test_an_image_is_detected_alike_alone_and_beside_a_larger_one() -> None:
    model = build("cascade").eval()
    small = painted([(10, 20, 50, 60)], [0], seed=1)
    wide = Sample(
        image=np.zeros((3, 128, 256), np.uint8),
        instances=Instances.empty((128, 256), scored=False),
        frame=Frame.identity((128, 256)),
        image_id=9,
    )
    with torch.no_grad():
        alone, together = (
            model.candidates(model.encode(Batch.collate(samples)), CandidateLimits(score_threshold=0.0))
            for samples in ([small], [small, wide])
        )
    assert together[0].size_hw == alone[0].size_hw == SIZE_HW
    assert together[0].boxes[:, 2].max() <= SIZE_HW[1]


@pytest.mark.slow
@pytest.mark.timeout(0)  # bound by its steps: how long they take is the machine's affair
@pytest.mark.parametrize(
    ("variant", "steps"),
    [
        ("faster", 300),
        ("cascade", 180),
        ("cascade conv_fc giou", 180),
        ("double head", 260),
        ("mask", 240),
        ("cascade mask", 160),
        ("htc", 120),
        ("scnet", 150),
    ],
)
def test_two_images_are_overfitted(variant: str, steps: int) -> None:
    """Within so many steps, of which the second half is looked at every now and then."""
    torch.manual_seed(0)
    small = VARIANTS[variant].model_copy(update={"backbone": "test_resnet"})
    model, batch = build_model(small, num_classes=2).train(), two_images()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.15)
    reached: list[float] = []
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        total_loss(model.losses(batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        left = steps - 1 - step
        if left <= steps // 2 and left % 12 == 0:
            with torch.no_grad():
                found = detect(model.eval(), batch)
            kinds = ("bbox", "segm") if model.has_masks else ("bbox",)
            reached = [mean_average_precision(found, batch.instances, kind) for kind in kinds]
            if min(reached) > 0.9:
                break
            model.train()
    assert min(reached) > 0.9


def mean_average_precision(found: list[Instances], truths: list[Instances], iou_type: str = "bbox") -> float:
    """COCO's AP 0.50:0.95 by pycocotools, the arbiter."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rles(each: Instances) -> list[dict]:
        masks = each.masks
        if isinstance(masks, RoiMasks):
            masks = masks.to_image(each.boxes, SIZE_HW)
        return [{}] * len(each) if masks is None else [{"segmentation": rle} for rle in masks.to_rles()]

    def records(instances: list[Instances]) -> list[dict]:
        shapes = [shape for each in instances for shape in rles(each)]
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
        pairs = zip(rows, shapes, strict=True)
        return [row | shape | {"id": number} for number, (row, shape) in enumerate(pairs, start=1)]

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
    evaluation = COCOeval(truth, detections, iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])
