"""Mask2Former for semantic maps (Cheng et al. 2022, arXiv 2112.01527); its network is transformers' (extra `semantic`).

    image ── backbone ──► four maps ── pixel decoder (deformable attention) ──► three scales and (B, D, H/4, W/4)
    Q queries ── L layers of masked attention over the scales ──► after each layer, and before the first:
        class logits (B, Q, 1 + P + 1): the ground, the planes, "no object"      mask logits (B, Q, H/4, W/4)
    training: each region of the truth (the ground and every plane that the image shows) ── Hungarian matching ──►
        one query: cross-entropy of the classes x 2, of the masks at sampled points x 5, dice of these x 5, every layer
    scores: mask logits resized to the image; sum over queries of P(class) x P(mask), as shares of ground and planes

The network's modules, and nothing else, are transformers'; targets, matching, losses and scores are our own and give
what transformers' classes give on the same tensors (tests). Deliberate differences: the ground is a class, as
VISION'23's team has it (binary labels of background and defect); scores are divided by their sum, so that "above 0.5"
is the class that a pixel is called in the published maximum; the number of masks that losses are divided by is that of
the process's own batch. Dims: B images, Q queries, P planes, C = 1 + P classes, T regions, N points, h w cells.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from scantling.models.context_heads import IGNORED
from scantling.models.contract import Segmenter
from scantling.models.normalise import PIXEL_MEAN, PIXEL_STD, Normalise
from scantling.models.weights.transformers_keys import open_transformers
from scantling.settings.fields import Count, NonNegative
from scantling.structures.sample import Batch

Backbones = Literal[
    "swin_t", "swin_s", "swin_b", "swin_l", "swin_narrow", "resnet50", "resnet101", "convnext_t"
]

BACKBONES: Mapping[Backbones, tuple[str, dict[str, Any]]] = {
    "swin_t": (
        "swin",
        {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "window_size": 7},
    ),
    "swin_s": (
        "swin",
        {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24), "window_size": 7},
    ),
    "swin_b": (
        "swin",
        {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "window_size": 12},
    ),
    "swin_l": (
        "swin",
        {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48), "window_size": 12},
    ),
    "swin_narrow": (
        "swin",
        {"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 7},
    ),
    "resnet50": ("resnet", {"depths": (3, 4, 6, 3)}),
    "resnet101": ("resnet", {"depths": (3, 4, 23, 3)}),
    "convnext_t": ("convnext", {"depths": (3, 3, 9, 3)}),
}
"""Name -> transformers' model type, and what is set in its configuration."""


class Mask2FormerOptions(BaseModel):
    """All numbers of a Mask2Former; the defaults are the published ones.

    Attributes:
        backbone: Key of `BACKBONES`.
        drop_path: Stochastic depth rate of a Swin backbone.
        num_queries: Q.
        hidden_dim: Width D of pixel decoder and transformer.
        feedforward_dim: Width of the feed-forward layers; half of it in the pixel decoder.
        encoder_layers: Of the pixel decoder.
        decoder_layers: Layers of masked attention.
        num_heads: Of attention.
        num_points: Points N at which a mask's losses are computed, and masks are compared.
        oversample: Times as many points are drawn, of which the most uncertain are taken.
        importance: Share of the points taken so; the others are random.
        no_object_weight: Weight of the class "no object" in the cross-entropy.
        class_weight: Factor of the cross-entropy of the classes.
        mask_weight: Factor of the cross-entropy of the masks.
        dice_weight: Factor of the dice loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: Backbones = "swin_t"
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.3
    num_queries: Count = 100
    hidden_dim: Count = 256
    feedforward_dim: Count = 2048
    encoder_layers: Count = 6
    decoder_layers: Count = 9
    num_heads: Count = 8
    num_points: Count = 12544
    oversample: Annotated[float, Field(ge=1)] = 3.0
    importance: Annotated[float, Field(ge=0, le=1)] = 0.75
    no_object_weight: NonNegative = 0.1
    class_weight: NonNegative = 2.0
    mask_weight: NonNegative = 5.0
    dice_weight: NonNegative = 5.0

    def transformers_config(self, num_classes: int) -> Any:
        """The same in transformers' words.

        Args:
            num_classes: C, the ground counted.
        """
        library = importlib.import_module("transformers")
        kind, numbers = BACKBONES[self.backbone]
        if kind == "swin":
            numbers = {**numbers, "drop_path_rate": self.drop_path}
        stages = ["stage1", "stage2", "stage3", "stage4"]
        backbone = library.AutoConfig.for_model(kind, out_features=stages, **numbers)
        return library.Mask2FormerConfig(
            backbone_config=backbone,
            num_labels=num_classes,
            num_queries=self.num_queries,
            feature_size=self.hidden_dim,
            mask_feature_size=self.hidden_dim,
            hidden_dim=self.hidden_dim,
            encoder_feedforward_dim=max(1, self.feedforward_dim // 2),
            dim_feedforward=self.feedforward_dim,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers + 1,  # theirs counts the prediction before the first
            num_attention_heads=self.num_heads,
            train_num_points=self.num_points,
            oversample_ratio=self.oversample,
            importance_sample_ratio=self.importance,
            no_object_weight=self.no_object_weight,
            class_weight=self.class_weight,
            mask_weight=self.mask_weight,
            dice_weight=self.dice_weight,
        )


class Regions(NamedTuple):
    """The truth of one image.

    Attributes:
        classes: (T,) int64, 0 the ground, then the planes.
        masks: (T, H, W) float32 of 0 and 1, padding and crowds 0 in all.
    """

    classes: Tensor
    masks: Tensor


class Predicted(NamedTuple):
    """What one layer predicts.

    Attributes:
        classes: (B, Q, C + 1) logits, "no object" last.
        masks: (B, Q, h, w) logits.
    """

    classes: Tensor
    masks: Tensor


class Mask2Former(Segmenter):
    """See the module's head.

    Args:
        options: All numbers.
        num_planes: P.
        by_category: Whether the planes are categories.

    Raises:
        ConfigError: transformers is not installed.
    """

    def __init__(self, options: Mask2FormerOptions, num_planes: int, *, by_category: bool) -> None:
        super().__init__()
        self.options, self.num_planes, self.by_category = options, num_planes, by_category
        with open_transformers() as library:
            config = options.transformers_config(1 + num_planes)
            network = library.Mask2FormerForUniversalSegmentation(config)
        self.normalise = Normalise(PIXEL_MEAN, PIXEL_STD)
        self.backbone: nn.Module = network.model.pixel_level_module.encoder
        self.pixel_decoder: nn.Module = network.model.pixel_level_module.decoder
        self.transformer: nn.Module = network.model.transformer_module
        self.class_predictor: nn.Module = network.class_predictor

    def predicted(self, batch: Batch) -> list[Predicted]:
        """What every layer predicts, the last one last."""
        pixels = self.normalise(batch.images, batch.sizes_hw)
        decoded = self.pixel_decoder(self.backbone(pixels).feature_maps)
        found = self.transformer(
            multi_scale_features=decoded.multi_scale_features,
            mask_features=decoded.mask_features,
            output_hidden_states=True,
        )
        layers = zip(found.intermediate_hidden_states, found.masks_queries_logits, strict=True)
        return [
            Predicted(self.class_predictor(states.transpose(0, 1)).float(), masks.float())
            for states, masks in layers
        ]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`class`, `mask` and `dice`, each summed over the layers.

        Raises:
            TypeError: Objects without masks.
        """
        regions = [regions_of(labels) for labels in self.targets(batch)]
        *earlier, last = self.predicted(batch)
        found = [layer_losses(layer, regions, self.options) for layer in (last, *earlier)]
        return {name: torch.stack([losses[name] for losses in found]).sum() for name in found[0]}

    def scores(self, batch: Batch) -> list[Tensor]:
        """See `Segmenter.scores`."""
        last, found = self.predicted(batch)[-1], []
        for i, (height, width) in enumerate(batch.sizes_hw):  # Q maps of a whole image at a time
            one = Predicted(last.classes[i : i + 1], last.masks[i : i + 1])
            together = semantic_maps(one, (batch.images.shape[2], batch.images.shape[3]))[0]  # (C, H, W)
            shares = together / together.sum(dim=0).clamp(min=torch.finfo(torch.float32).tiny)
            found.append(shares[1:, :height, :width])
        return found


def regions_of(labels: Tensor) -> Regions:
    """Every class that an image shows, with all its pixels.

    Args:
        labels: (H, W) int64, `IGNORED` where there is none.
    """
    classes: Tensor = labels.unique()  # type: ignore[no-untyped-call]
    classes = classes[classes != IGNORED]
    return Regions(classes, (labels[None] == classes[:, None, None]).float())


def layer_losses(
    found: Predicted, regions: Sequence[Regions], options: Mask2FormerOptions
) -> dict[str, Tensor]:
    """Losses of one layer: `class`, `mask`, `dice`, with their factors (equations as in the paper's section 3.3).

    Args:
        found: Of B images.
        regions: Of each image; T may be 0.
        options: Factors, and how points are drawn.
    """
    num_images, num_queries, num_logits = found.classes.shape
    pairs = [
        match(Predicted(found.classes[i], found.masks[i]), regions[i], options) for i in range(num_images)
    ]
    targets = found.classes.new_full((num_images, num_queries), num_logits - 1, dtype=torch.int64)
    for i, (queries, rows) in enumerate(pairs):
        targets[i, queries] = regions[i].classes[rows]
    weights = found.classes.new_ones(num_logits)
    weights[-1] = options.no_object_weight
    classes = F.cross_entropy(found.classes.transpose(1, 2), targets, weights)
    masks = torch.cat([found.masks[i, queries] for i, (queries, _) in enumerate(pairs)])  # (T of all, h, w)
    truth = torch.cat([regions[i].masks[rows] for i, (_, rows) in enumerate(pairs)])
    with torch.no_grad():
        points = uncertain_points(masks, options)
        wanted = at_points(truth, points)
    logits, count = at_points(masks, points), max(1, sum(len(one.classes) for one in regions))  # (T, N)
    crossed = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1).sum() / count
    chances = logits.sigmoid()
    dice = 1 - (2 * (chances * wanted).sum(1) + 1) / (chances.sum(1) + wanted.sum(1) + 1)  # (T,)
    return {
        "class": options.class_weight * classes,
        "mask": options.mask_weight * crossed,
        "dice": options.dice_weight * dice.sum() / count,
    }


@torch.no_grad()
def match(found: Predicted, regions: Regions, options: Mask2FormerOptions) -> tuple[Tensor, Tensor]:
    """The cheapest assignment of one query to each region, by what the losses would be at random points.

    Args:
        found: Of one image, (Q, C + 1) and (Q, h, w).
        regions: T of them; those beyond Q stay without a query.
        options: Factors and number of points.

    Returns:
        Queries and rows of the regions, each (min(Q, T),).
    """
    points = torch.rand(1, options.num_points, 2, device=found.masks.device)
    logits, truth = at_points(found.masks, points), at_points(regions.masks, points)  # (Q, N), (T, N)
    chances = logits.sigmoid()
    crossed = F.softplus(-logits) @ truth.T + F.softplus(logits) @ (1 - truth).T  # (Q, T)
    both = chances.sum(1)[:, None] + truth.sum(1)
    costs = (
        options.mask_weight * crossed / options.num_points
        - options.class_weight * found.classes.softmax(-1)[:, regions.classes]
        + options.dice_weight * (1 - (2 * chances @ truth.T + 1) / (both + 1))
    )
    largest = torch.finfo(costs.dtype).max
    costs = costs.nan_to_num(nan=largest, posinf=largest, neginf=largest)
    from scipy.optimize import (
        linear_sum_assignment,  # half a second, which only the training of this model needs
    )

    queries, rows = linear_sum_assignment(costs.cpu().numpy())
    device = found.masks.device
    return torch.as_tensor(queries, device=device), torch.as_tensor(rows, device=device)


def uncertain_points(masks: Tensor, options: Mask2FormerOptions) -> Tensor:
    """Where the losses of masks are computed: mostly where it is least clear what a pixel is (Kirillov et al. 2020).

    Args:
        masks: (T, h, w) logits.
        options: How many points, and how they are chosen.

    Returns:
        (T, N, 2) x, y in 0..1 of the map.
    """
    num_drawn = int(options.num_points * options.oversample)
    num_uncertain = int(options.num_points * options.importance)
    drawn = torch.rand(len(masks), num_drawn, 2, device=masks.device)
    unsure = at_points(masks, drawn).abs().topk(num_uncertain, dim=1, largest=False).indices  # (T, N')
    chosen = drawn.gather(1, unsure[..., None].expand(-1, -1, 2))
    others = torch.rand(len(masks), options.num_points - num_uncertain, 2, device=masks.device)
    return torch.cat([chosen, others], dim=1)


def at_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values (T, N) of maps (T, h, w) at points (T, N, 2) or (1, N, 2), x and y in 0..1 of each map."""
    places = (2 * points - 1).expand(len(maps), -1, -1)[:, :, None]  # (T, N, 1, 2)
    return F.grid_sample(maps[:, None], places, align_corners=False)[:, 0, :, 0]


def semantic_maps(found: Predicted, size_hw: tuple[int, int]) -> Tensor:
    """(B, C, H, W): how much the queries together call a pixel each class.

    Args:
        found: Of B images.
        size_hw: Height and width of the images, padding included.
    """
    masks = F.interpolate(found.masks, size_hw, mode="bilinear", align_corners=False).sigmoid()
    return torch.einsum("bqc,bqhw->bchw", found.classes.softmax(dim=-1)[..., :-1], masks)
