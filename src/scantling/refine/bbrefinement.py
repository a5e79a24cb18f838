"""BBRefinement (Anonymous, ICLR 2021 submission): a network that sees one object and says where exactly it is.

    crop (B, 3, S, S) ── Normalise ── backbone, pooled ──────────► features (B, D) ─┐
                                                                                    × ── linear ── sigmoid ──► (B, 4)
    class one-hot (B, K), centre (B, 2) ── fully connected ──────► mixture (B, D) ──┘

It is trained on labelled boxes alone and then sharpens the boxes of any detector. Class and score pass through.
Centres and boxes are in crop coordinates: 0..1 over the crop in x and in y (`refine/crops.py`).

The four outputs are the coordinates x1, y1, x2, y2 of two opposite corners; the smaller x is the left edge, the
smaller y the top edge, so every output is a valid box and gradients reach all four at any time. (The paper says
"top-left and bottom-right coordinates" and not how their order is kept.) The output layer starts with weights of 0
and biases that give the crop without its padding, at least 1 % of it: an untrained refiner returns the boxes it is
given (up to the rounding of the window, `crops.crop_windows`), and the loss has a gradient from the first step on. The
branch ends in a layer with biases of 1, so that the product starts at the features themselves. Neither is in the paper.

B: crops, S: side of a crop, K: classes, D: width of the pooled features (EfficientNet B0 to B4: 1280, 1280, 1408,
1536, 1792).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from scantling.errors import CheckpointError, ConfigError
from scantling.models.normalise import PIXEL_MEAN, PIXEL_STD
from scantling.models.timm_networks import timm_network
from scantling.models.weights.opener import read_weights
from scantling.models.weights.published import published_backbone, published_network
from scantling.models.weights.torchvision_keys import timm_names
from scantling.ops.boxes import IouKind, paired_iou
from scantling.settings.fields import Positive

log = logging.getLogger(__name__)

Mixture = Literal["none", "class", "centre", "both"]
LossForm = Literal["linear", "log"]

SIDES = {
    "efficientnet_b0": 224,
    "efficientnet_b1": 240,
    "efficientnet_b2": 260,
    "efficientnet_b3": 300,
    "efficientnet_b4": 380,
}
"""Side of the crops by backbone, as published."""
OTHER_SIDE = 224

_LOWEST = {"iou": 0.0, "giou": -1.0, "diou": -1.0, "ciou": -2.0}
_SMALLEST = 1e-6


class RefinerConfig(BaseModel):
    """What a refiner is.

    Attributes:
        backbone: Name of any timm model; EfficientNet B0 to B4 are the published ones.
        side: Side of the crops in pixels; `auto` is the published one, 224 for other backbones.
        mixture: What the network is told besides the pixels: class and centre of the box, one of them, or nothing (the
            paper's naive refinement).
        pooling: How features become a vector: `average` over the crop, or `flatten`, which keeps places apart, at
            D = channels x cells (the paper allows either, section 2.2).
        hidden: Width of the hidden layer of the branch that takes class and centre in.
        loss: `linear` is 1 - x, `log` is -log x of the overlap x.
        overlap: Which overlap: iou, giou, diou or ciou.
        padding: Margin around a box that is refined, relative to its width and height.
        min_side: Boxes with a shorter side in pixels are neither learnt from nor refined.
        drop_path: Stochastic depth rate, for backbones that have it; null keeps timm's default.
        pretrained: Fetch timm's published weights (needs a network; never done unless asked).
        weights: Local file with the backbone's weights: timm's own files, torchvision's, or EfficientNet-PyTorch's.
        pixel_mean: Subtracted from RGB values in 0..255; what the weights were trained with.
        pixel_std: What they are then divided by.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = "efficientnet_b0"
    side: Annotated[int, Field(ge=32, le=1024)] | Literal["auto"] = "auto"
    mixture: Mixture = "both"
    pooling: Literal["average", "flatten"] = "average"
    hidden: Annotated[int, Field(ge=1, le=8192)] = 256
    loss: LossForm = "linear"
    overlap: IouKind = "iou"
    padding: Annotated[float, Field(ge=0, le=2)] = 0.2
    min_side: Annotated[float, Field(ge=1)] = 4.0
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    pretrained: bool = False
    weights: str | None = None
    pixel_mean: tuple[float, float, float] = PIXEL_MEAN
    pixel_std: tuple[Positive, Positive, Positive] = PIXEL_STD

    @property
    def crop_side(self) -> int:
        """S in pixels."""
        return SIDES.get(self.backbone, OTHER_SIDE) if self.side == "auto" else self.side


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class CropBatch:
    """Objects cut out of images.

    Attributes:
        crops: (B, 3, S, S) uint8 RGB.
        labels: (B,) int64, 0..K-1 in the refiner's classes.
        centres: (B, 2) float32, centre of the box to be refined, in crop coordinates.
        targets: (B, 4) float32 xyxy of the true box in crop coordinates; None where it is not known.
        image_ids: For each crop the id of its image.
        is_padding: The crops are repeated so that a training process is not idle; they do not count.
    """

    crops: Tensor
    labels: Tensor
    centres: Tensor
    targets: Tensor | None = None
    image_ids: Sequence[int | float | str] = ()
    is_padding: bool = False

    def __post_init__(self) -> None:
        count = len(self.crops)
        if self.crops.ndim != 4 or self.crops.shape[1] != 3 or self.crops.dtype != torch.uint8:
            found = f"{self.crops.dtype} {tuple(self.crops.shape)}"
            raise ValueError(f"CropBatch.crops: expected uint8 (B, 3, S, S), found {found}")
        shapes = [tuple(self.labels.shape), tuple(self.centres.shape)]
        if shapes != [(count,), (count, 2)] or self.labels.dtype != torch.int64:
            raise ValueError(f"CropBatch: expected int64 labels (B,) and centres (B, 2), found {shapes}")

    def __len__(self) -> int:
        return len(self.crops)

    def flipped(self) -> Self:
        """The same objects with left and right exchanged, without targets."""
        centres = torch.stack([1 - self.centres[:, 0], self.centres[:, 1]], dim=1)
        return replace(self, crops=self.crops.flip(-1), centres=centres, targets=None)

    def to(self, device: torch.device | str) -> Self:
        """The same batch with its tensors on another device."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)


class Refiner(nn.Module):
    """The network.

    Args:
        config: What it is.
        class_names: Of the K classes, in label order; categories of other data sets are matched with them by name.
        white: Value that is white in the pictures of 16 bits that it learns from; None for the full range.

    Raises:
        ConfigError: timm has no such backbone, or the weights do not fit it.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, config: RefinerConfig, class_names: Sequence[str], white: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.white = white
        self.class_names = tuple(class_names)
        self.register_buffer("mean", torch.tensor(config.pixel_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(config.pixel_std).view(1, 3, 1, 1), persistent=False)
        self.backbone = _create_backbone(config)
        width = _pooled_width(config)
        length = mixture_length(config.mixture, len(self.class_names))
        self.branch = nn.Sequential(
            nn.Linear(length, config.hidden), nn.ReLU(inplace=True), nn.Linear(config.hidden, width)
        ) if length else None  # fmt: skip
        self.output = nn.Linear(width, 4)
        self._initialise()

    def forward(self, batch: CropBatch) -> dict[str, Tensor]:
        """The loss by name; see `losses`."""
        return self.losses(batch)

    def losses(self, batch: CropBatch) -> dict[str, Tensor]:
        """How far the refined boxes are from the true ones.

        Args:
            batch: With targets.

        Returns:
            `box`: mean of the configured loss over the crops; 0 for none.

        Raises:
            ValueError: The batch has no targets.
        """
        if batch.targets is None:
            raise ValueError("Refiner.losses: the batch has no targets")
        boxes = self.predict(batch)
        each = overlap_loss(boxes, batch.targets, self.config.loss, self.config.overlap)
        return {"box": each.sum() / max(1, len(each))}

    def predict(self, batch: CropBatch) -> Tensor:
        """Refined boxes (B, 4) float32, xyxy in crop coordinates, x1 <= x2 and y1 <= y2; (0, 4) for no crops."""
        if not len(batch):
            return batch.centres.new_zeros(0, 4)
        features = pooled(
            (batch.crops.to(self.mean.dtype) - self.mean) * self.scale, self.backbone, self.config
        )
        if self.branch is not None:
            vector = mixture_vector(batch.labels, batch.centres, self.config.mixture, len(self.class_names))
            features = features * self.branch(vector)
        corners = self.output(features).float().sigmoid()
        low, high = corners[:, :2], corners[:, 2:]
        return torch.cat([torch.minimum(low, high), torch.maximum(low, high)], dim=1)

    def _initialise(self) -> None:
        """Start as described at the top of the module."""
        margin = self.config.padding / (1 + 2 * self.config.padding)
        logit = math.log(max(margin, 1e-2) / (1 - max(margin, 1e-2)))
        nn.init.zeros_(self.output.weight)
        self.output.bias.data = torch.tensor([logit, logit, -logit, -logit])
        if self.branch is not None:
            last = self.branch[-1]
            nn.init.normal_(last.weight, std=0.1 / math.sqrt(self.config.hidden))  # type: ignore[arg-type]
            nn.init.ones_(last.bias)  # type: ignore[arg-type]


def pooled(crops: Tensor, network: Any, config: RefinerConfig) -> Tensor:  # noqa: ANN401 - timm states no type
    """Features (B, D) of normalised crops (B, 3, S, S)."""
    if config.pooling == "average":
        averaged: Tensor = network(crops)
        return averaged
    maps: Tensor = network.forward_features(crops)
    return maps.flatten(1)


def mixture_length(mixture: Mixture, num_classes: int) -> int:
    """Length of the vector the network is told."""
    return (num_classes if mixture in ("class", "both") else 0) + 2 * (mixture in ("centre", "both"))


def mixture_vector(labels: Tensor, centres: Tensor, mixture: Mixture, num_classes: int) -> Tensor:
    """What the network is told about each box.

    Args:
        labels: (B,) int64, 0..K-1.
        centres: (B, 2) in crop coordinates.
        mixture: Which parts to take.
        num_classes: K.

    Returns:
        (B, L) float: the class as one-hot vector, then the centre.
    """
    parts = []
    if mixture in ("class", "both"):
        parts.append(functional.one_hot(labels, num_classes).to(centres.dtype))
    if mixture in ("centre", "both"):
        parts.append(centres)
    return torch.cat(parts, dim=1)


def overlap_loss(boxes: Tensor, targets: Tensor, form: LossForm, overlap: IouKind) -> Tensor:
    """The loss of each box.

    Args:
        boxes: (B, 4) xyxy.
        targets: (B, 4) xyxy, same frame.
        form: `linear`: 1 - x; `log`: -log x.
        overlap: What x is.

    Returns:
        (B,) at least 0, and 0 exactly where the boxes agree.

    Source:
        Section 2.2, l1 and l2. The paper gives the logarithm of IoU only. GIoU, DIoU and CIoU are negative for boxes
        that are far apart (down to m = -1, -1, -2), where a logarithm is not defined, so it is taken of
        (x - m) / (1 - m), which runs over the same 0..1. IoU is 0 for all boxes that do not overlap: there the
        logarithm is cut off at 1e-6 and the loss has no gradient.
    """
    x = paired_iou(boxes, targets, overlap)
    if form == "linear":
        return 1 - x
    lowest = _LOWEST[overlap]
    return -torch.log(((x - lowest) / (1 - lowest)).clamp(min=_SMALLEST))


def _create_backbone(config: RefinerConfig) -> nn.Module:
    """The timm network without classifier, global average pooling at its end: images -> (B, D)."""
    options: dict[str, Any] = {} if config.drop_path is None else {"drop_path_rate": config.drop_path}
    if config.backbone.startswith(("swin", "vit")):
        options["img_size"] = config.crop_side
    try:
        make = published_network if config.pretrained else timm_network
        network: nn.Module = make(config.backbone, num_classes=0, **options)
    except (RuntimeError, TypeError, AttributeError) as error:
        near = timm.list_models(f"*{config.backbone[:6]}*")[:8]
        message = f"backbone {config.backbone!r} cannot be made: {error}"
        raise ConfigError(message, hint=f"Similar names: {near}") from error
    if config.weights is not None:
        network.load_state_dict(_fitting(network, config))
    return network


def _pooled_width(config: RefinerConfig) -> int:
    """D, without computing anything."""
    with torch.device("meta"):
        network = _create_backbone(config.model_copy(update={"weights": None, "pretrained": False})).eval()
        return pooled(torch.empty(1, 3, config.crop_side, config.crop_side), network, config).shape[1]


def check_initial_weights(config: RefinerConfig) -> None:
    """Open the file that `weights` names, if it names one, and see whether it fits; nothing is trained or written.

    Published weights are fetched if they are wanted and not here yet.

    Raises:
        CheckpointError: The file is missing, damaged, or no file of weights, or cannot be fetched.
        ConfigError: It does not fit, or there is no such backbone.
    """
    if config.pretrained:
        published = published_backbone(config.backbone)
        log.info("refiner: %s", published.to_text())
        published.fetch()
    if config.weights is not None:
        with torch.device("meta"):
            network = _create_backbone(config.model_copy(update={"weights": None, "pretrained": False}))
        _fitting(network, config)


def _fitting(network: nn.Module, config: RefinerConfig) -> dict[str, Tensor]:
    """A classification network's weights for ours; its classifier is left out, everything else must be there."""
    try:
        state, own = timm_names(read_weights(Path(config.weights or ""))), network.state_dict()
    except CheckpointError as error:
        raise CheckpointError(f"model.weights: {error.message}", hint=error.hint) from error
    wrong = [key for key, value in own.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        raise ConfigError(
            f"model.weights: {config.weights} does not fit backbone {config.backbone!r}: {len(wrong)} of "
            f"{len(own)} entries are missing or have another shape, first {wrong[:5]}"
        )
    return {key: state[key] for key in own}
