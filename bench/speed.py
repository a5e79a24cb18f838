"""Step and inference time of our detectors against torchvision's Faster and Mask R-CNN, taken in turns in one run.

    python bench/speed.py [--rounds 8] [--threads 1] [--job step] [--only masks] [--device cuda --bf16 --compile]

Same widths (ResNet-50 + FPN, 256 channels, 1024-wide heads), FrozenBatchNorm, 512 x 512 pixels, batch 2, 22
classes, 1000 proposals, 512 RoIs, two RoIAlign samples per cell and direction, everything trainable. Our models get
torchvision's random weights in backbone, pyramid and RPN, so that all see the same features and proposals; those of
masks all of torchvision's Mask R-CNN that fits (four convolutions of 256 channels on 14 x 14 cells, a mask for each
class). Truths are ellipses; what scores above 0.045 is kept, the best 100 of an image, and its masks are laid over the
image: full frames of torchvision's, patches of ours. Each round times every entry once; the tables give medians and the
median of the rounds' ratios, which noise of the machine reaches least. On the CPU the ratios are those of processor
time, so that what else the machine does counts little; with one thread (`--threads 1`) no thread burns it while it
waits for another.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from scantling.models.contract import Detector, total_loss
from scantling.models.suppression import SuppressConfig, detect
from scantling.models.weights.torchvision_detectors import convert_torchvision, in_our_order
from scantling.models.zoo import ModelConfig, build_model
from scantling.structures.instances import Instances
from scantling.structures.masks import ImageMasks, RoiMasks
from scantling.structures.sample import Batch, Frame

SIDE, BATCH, CLASSES = 512, 2, 22
PEER, MASK_PEER = "torchvision Faster R-CNN", "torchvision Mask R-CNN"
TRUNK = "our backbone + FPN"
WARM_UP = 1  # rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Seconds that one call took: by the clock, and of processor time in all of this process's threads."""

    wall: float
    processor: float


def main() -> None:
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    entries = {} if arguments.only == "masks" else make_entries(arguments, device)
    if arguments.only != "boxes":
        entries |= make_mask_entries(arguments, device)
    entries = {k: v for k, v in entries.items() if arguments.job in k}
    with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16):
        readings = measure(entries, arguments.rounds, device)
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, threads: {torch.get_num_threads()}"
    )
    machine = f"{name}, torch {torch.__version__}, {'bf16' if arguments.bf16 else 'fp32'}"
    report(readings, machine, by="wall" if device.type == "cuda" else "processor")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument("--job", choices=("step", "inference"), default="", help="time only this")
    parser.add_argument("--only", choices=("boxes", "masks"), default="", help="time only these models")
    parser.add_argument("--device", default="cpu")
    for flag in ("--bf16", "--channels-last", "--compile"):
        parser.add_argument(flag, action="store_true")
    return parser.parse_args()


def make_entries(arguments: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], object]]:
    """Everything that is timed, by name; all models see the same images and boxes."""
    batch = make_batch().to(device)
    peer = make_peer().to(device)
    ours = {name: make_ours(f"{name}_rcnn_r50", peer).to(device) for name in ("faster", "cascade")}
    for model in (peer, *ours.values()):
        if arguments.channels_last:
            model.to(memory_format=torch.channels_last)
        if arguments.compile:
            model.backbone.compile()
    images = [image.float() / 255 for image in batch.images]
    targets = [{"boxes": i.boxes, "labels": i.labels + 1} for i in batch.instances]
    entries: dict[str, Callable[[], object]] = {
        f"{PEER} | step": lambda: train_step(peer, lambda: peer(images, targets)),
        f"{PEER} | inference": lambda: infer(peer, lambda: peer(images)),
    }
    for name, model in ours.items():
        entries[f"our {name} | step"] = lambda m=model: train_step(m, lambda: m.losses(batch))
        entries[f"our {name} | inference"] = lambda m=model: infer(m, lambda: detect(m, batch, SUPPRESS))
    features = ours["faster"]
    pixels = features.normalise(batch.images, batch.sizes_hw)
    entries[f"{TRUNK} | step"] = lambda: train_step(
        features, lambda: {str(i): f.square().mean() for i, f in enumerate(features.features(pixels))}
    )
    entries[f"{TRUNK} | inference"] = lambda: infer(features, lambda: features.features(pixels))
    return entries


def make_mask_entries(arguments: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], object]]:
    """Mask R-CNN and Cascade Mask R-CNN against torchvision's Mask R-CNN, on the same images and masks."""
    batch = with_ellipses(make_batch()).to(device)
    peer = make_mask_peer().to(device)
    ours = {name: make_masked(f"{name}_rcnn_r50", peer).to(device) for name in ("mask", "cascade_mask")}
    for model in (peer, *ours.values()):
        if arguments.channels_last:
            model.to(memory_format=torch.channels_last)
        if arguments.compile:
            model.backbone.compile()
    images = [image.float() / 255 for image in batch.images]
    targets = [
        {"boxes": i.boxes, "labels": i.labels + 1, "masks": i.masks.to_dense().to(device).to(torch.uint8)}
        for i in batch.instances
    ]
    entries: dict[str, Callable[[], object]] = {
        f"{MASK_PEER} | step": lambda: train_step(peer, lambda: peer(images, targets)),
        f"{MASK_PEER} | inference": lambda: infer(peer, lambda: peer(images)),
    }
    for name, model in ours.items():
        entries[f"our {name} | step"] = lambda m=model: train_step(m, lambda: m.losses(batch))
        entries[f"our {name} | inference"] = lambda m=model: infer(m, lambda: drawn(m, batch))
    return entries


def drawn(model: Detector, batch: Batch) -> list[ImageMasks]:
    """Detections of a batch with their masks laid over the images."""
    return [
        found.masks.to_image(found.boxes, found.size_hw)
        for found in detect(model, batch, MASKS_SUPPRESS)
        if isinstance(found.masks, RoiMasks)
    ]


SUPPRESS = SuppressConfig(score_threshold=0.05, iou_threshold=0.5, max_per_image=100)
MASKS_SUPPRESS = SUPPRESS.model_copy(update={"score_threshold": 0.045})


def with_ellipses(batch: Batch) -> Batch:
    """The same batch with the ellipse inside each box as its mask."""
    y, x = torch.arange(SIDE)[:, None] + 0.5, torch.arange(SIDE)[None] + 0.5
    masked = []
    for instances in batch.instances:
        x1, y1, x2, y2 = (edge[:, None, None] for edge in instances.boxes.unbind(dim=1))
        inside = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1  # (N, H, W)
        masked.append(instances.replace(masks=ImageMasks.from_dense(inside)))
    return replace(batch, instances=masked)


def make_batch() -> Batch:
    """Noise with twelve boxes of many sizes per image."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(BATCH, 12, 2, generator=generator) * SIDE * 0.7
    sides = 12 + torch.rand(BATCH, 12, 2, generator=generator) * SIDE * 0.25
    labels = torch.randint(CLASSES, (BATCH, 12), generator=generator)
    size = (SIDE, SIDE)
    return Batch(
        images=torch.randint(256, (BATCH, 3, *size), dtype=torch.uint8, generator=generator),
        sizes_hw=[size] * BATCH,
        instances=[
            Instances(size_hw=size, boxes=torch.cat([c, c + s], dim=1), labels=label)
            for c, s, label in zip(corner, sides, labels, strict=True)
        ],
        frames=[Frame.identity(size)] * BATCH,
        image_ids=list(range(BATCH)),
    )


PEER_NUMBERS = {
    "num_classes": CLASSES + 1,
    "min_size": SIDE,
    "max_size": SIDE,
    "rpn_pre_nms_top_n_train": 2000,
    "rpn_post_nms_top_n_train": 1000,
    "rpn_pre_nms_top_n_test": 1000,
    "rpn_post_nms_top_n_test": 1000,
    "box_batch_size_per_image": 512,
    "box_nms_thresh": 0.5,
    "box_detections_per_img": 100,
}


def make_peer() -> FasterRCNN:
    return FasterRCNN(peer_trunk(), box_score_thresh=SUPPRESS.score_threshold, **PEER_NUMBERS)


def make_mask_peer() -> MaskRCNN:
    return MaskRCNN(peer_trunk(), box_score_thresh=MASKS_SUPPRESS.score_threshold, **PEER_NUMBERS)


def peer_trunk() -> nn.Module:
    return resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
    )


def make_masked(name: str, peer: MaskRCNN) -> Detector:
    """Ours with every weight of torchvision's that it has a place for."""
    model = build_model(ModelConfig(name=name, norm="frozen_bn"), CLASSES)
    given = convert_torchvision(in_our_order(peer.state_dict()), model).weights
    own = model.state_dict()
    fitting = {key: value for key, value in given.items() if key in own and own[key].shape == value.shape}
    model.load_state_dict(own | fitting)
    return model


def make_ours(name: str, peer: FasterRCNN) -> Detector:
    model = build_model(ModelConfig(name=name, norm="frozen_bn"), CLASSES)
    body = model.backbone.body
    body.load_state_dict(body.state_dict() | peer.backbone.body.state_dict())
    for ours, theirs in (
        (model.neck.laterals, peer.backbone.fpn.inner_blocks),
        (model.neck.outputs, peer.backbone.fpn.layer_blocks),
    ):
        ours.load_state_dict(theirs.state_dict())
    model.rpn.conv.load_state_dict(peer.rpn.head.conv[0][0].state_dict())
    model.rpn.objectness.load_state_dict(peer.rpn.head.cls_logits.state_dict())
    model.rpn.deltas.load_state_dict(peer.rpn.head.bbox_pred.state_dict())
    return model


def train_step(model: nn.Module, losses: Callable[[], Mapping[str, Tensor]]) -> None:
    model.train()
    model.zero_grad(set_to_none=True)
    total_loss(losses()).backward()


@torch.inference_mode()
def infer(model: nn.Module, run: Callable[[], object]) -> None:
    model.eval()
    run()


def measure(
    entries: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[Reading]]:
    readings: dict[str, list[Reading]] = {name: [] for name in entries}
    for turn in range(rounds + WARM_UP):
        for name, run in entries.items():
            with stopwatch(device) as taken:
                run()
            if turn >= WARM_UP:
                readings[name] += taken
    return readings


@contextmanager
def stopwatch(device: torch.device) -> Iterator[list[Reading]]:
    def now() -> tuple[float, float]:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter(), time.process_time()

    taken: list[Reading] = []
    wall, processor = now()
    yield taken
    wall_end, processor_end = now()
    taken.append(Reading(wall=wall_end - wall, processor=processor_end - processor))


def report(readings: Mapping[str, list[Reading]], machine: str, by: str) -> None:
    """Print the tables, of boxes and of masks; ratios are of the time called `by`."""
    masks = {name: taken for name, taken in readings.items() if "ask" in name}
    boxes = {name: taken for name, taken in readings.items() if name not in masks}
    print(f"{machine}, {len(next(iter(readings.values())))} rounds, ratios of {by} time")
    if boxes:
        print("\n" + table_of(boxes, by, {"torchvision": PEER, "our Faster": "our faster"}, trunk=TRUNK))
    if masks:
        print("\n" + table_of(masks, by, {"torchvision": MASK_PEER, "our Mask": "our mask"}))


def table_of(
    readings: Mapping[str, list[Reading]], by: str, others: Mapping[str, str], trunk: str | None = None
) -> str:
    """One table: `others` are what each row is compared with, by its name in the head; `trunk` is a part of all."""
    heads = [f"ratio to {word}" for word in others] + (["beyond backbone + FPN"] if trunk else [])
    lines = [
        f"| | | wall ms | processor ms | {' | '.join(heads)} |",
        "|---|---|---:|---:|" + "---:|" * len(heads),
    ]
    times = {name: [getattr(reading, by) for reading in taken] for name, taken in readings.items()}
    for name, taken in times.items():
        title, job = name.split(" | ")
        wall, processor = (
            statistics.median(getattr(reading, kind) for reading in readings[name]) * 1000
            for kind in ("wall", "processor")
        )
        cells = [f"{ratio(taken, times[f'{other} | {job}']):.2f}" for other in others.values()]
        if trunk:
            cells.append(f"{1 - 1 / ratio(taken, times[f'{trunk} | {job}']):.0%}")
        lines.append(f"| {title} | {job} | {wall:.0f} | {processor:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


if __name__ == "__main__":
    main()
