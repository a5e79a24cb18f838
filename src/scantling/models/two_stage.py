"""What two-stage detectors share up to their proposals; see `contract.Detector` for what they promise.

    Batch (uint8, padded) ── Normalise ── Backbone, or two joined ── FPN ──► features p2..p6 (B, C, H/s, W/s)
    p2..p6 ── RPN ──► proposals [(R, 4)]
    p2..p6, proposals ──► roi_losses / roi_candidates / masks, which each method has for itself

Boxes are absolute xyxy in the frame of the batch's images. K foreground classes are 0..K-1; K is background.
Dims: B images, C channels, R RoIs, K classes, N boxes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from scantling.models.anchors import AnchorConfig
from scantling.models.assign import SampleConfig
from scantling.models.backbone import Backbone, BackboneConfig, BackboneNorm, BackboneStage
from scantling.models.box_heads import BoxHeadConfig, RoiSamples
from scantling.models.cbnet import CompositeBackbone, CompositeConfig
from scantling.models.class_losses import ClassifierKind, ClassLossKind, count_labels
from scantling.models.contract import CandidateLimits, Detector, Encoded
from scantling.models.layers import NormKind
from scantling.models.losses import BoxLossConfig, BoxLossKind
from scantling.models.mask_heads import MaskHead, mean_probabilities
from scantling.models.mask_iou import MaskIoUConfig, MaskIoUHead, predicted_ious
from scantling.models.neck import FPN, FPNConfig
from scantling.models.normalise import PIXEL_MEAN, PIXEL_STD, Normalise
from scantling.models.rpn import RPN, RPNConfig
from scantling.settings.fields import Count, Positive
from scantling.structures.instances import Instances
from scantling.structures.masks import RoiMasks
from scantling.structures.sample import Batch


class TwoStageConfig(BaseModel):
    """The settings all two-stage detectors have; a method's config adds those of its heads.

    Attributes:
        backbone: Network that makes the features.
        composite: How two such networks are joined (CBNetV2); None for one alone.
        neck: The pyramid.
        rpn: The proposals.
        sample: RoIs per image that enter a head's loss.
        pixel_mean: Subtracted from RGB values in 0..255.
        pixel_std: What they are then divided by.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: BackboneConfig = BackboneConfig()
    composite: CompositeConfig | None = None
    neck: FPNConfig = FPNConfig()
    rpn: RPNConfig = RPNConfig()
    sample: SampleConfig = SampleConfig()
    pixel_mean: tuple[float, float, float] = PIXEL_MEAN
    pixel_std: tuple[float, float, float] = PIXEL_STD


class Pyramid(NamedTuple):
    """One set of features that the heads learn from.

    Attributes:
        levels: p2..p6, each (B, C, H/s, W/s).
        weight: Factor of the losses on it.
    """

    levels: list[Tensor]
    weight: float = 1.0


class TwoStageDetector(Detector):
    """Images to features to proposals; what becomes of the proposals is the method's.

    Args:
        config: All numbers.
        num_classes: Foreground classes K.
    """

    config: TwoStageConfig

    def __init__(self, config: TwoStageConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.normalise = Normalise(config.pixel_mean, config.pixel_std)
        self.backbone: Backbone | CompositeBackbone = (
            Backbone(config.backbone)
            if config.composite is None
            else CompositeBackbone(config.backbone, config.composite)
        )
        self.neck = FPN(self.backbone.channels, self.backbone.strides, config.neck)
        self.rpn = RPN(self.neck.channels, self.neck.strides, config.rpn)
        self.mask_iou_head: MaskIoUHead | None = None

    def rank_by_masks(self, config: MaskIoUConfig | None, side: int) -> None:
        """Give the detector a MaskIoU head, where its settings have one.

        Args:
            config: Shape and loss; None for no such head.
            side: Cells per side of the RoIs that its mask heads read.
        """
        if config is not None:
            self.mask_iou_head = MaskIoUHead(self.neck.channels, side, self.num_classes, config)
            self.ranks_by_masks = True

    @abstractmethod
    def roi_losses(self, encoded: Encoded, truths: Sequence[Instances]) -> dict[str, Tensor]:
        """Losses of the heads, given the levels and the proposals of each image."""

    def mask_iou_losses(
        self,
        heads: Sequence[MaskHead],
        pooled: Tensor,
        drawn: Sequence[Tensor],
        samples: Sequence[RoiSamples],
        truths: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """Loss of the MaskIoU head on the positives' mean masks; none where there is no such head.

        Args:
            heads: The mask heads.
            pooled: (P, C, S, S), what they read.
            drawn: Of each (P, K or 1, M, M).
            samples: RoIs of each image.
            truths: Ground truth of each image with its masks.
        """
        if self.mask_iou_head is None:
            return {}
        labels = torch.cat([s.labels[s.matched >= 0] for s in samples])
        probabilities = mean_probabilities(heads, drawn, labels)
        found = self.mask_iou_head.losses(pooled, probabilities, samples, truths)
        return {f"mask_iou_head/{name}": value for name, value in found.items()}

    @abstractmethod
    def roi_candidates(self, encoded: Encoded, limits: CandidateLimits) -> list[Instances]:
        """Candidates of each image, given the levels and the proposals."""

    def features(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> p2..p6."""
        levels: list[Tensor] = self.neck(self.backbone(images))
        return levels

    def pyramids(self, images: Tensor) -> list[Pyramid]:
        """Normalised images (B, 3, H, W) -> the pyramids that training uses, first the one that predicts.

        Of a composite backbone those of the lead and of the assistant, through the one neck (Liang et al.'s CBFPN).
        """
        composite = self.config.composite
        if composite is None or not isinstance(self.backbone, CompositeBackbone):
            return [Pyramid(self.features(images))]
        lead, assistant = self.backbone.both(images)
        return [Pyramid(self.neck(lead)), Pyramid(self.neck(assistant), composite.assistant_weight)]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of the RPN and of the heads; of further pyramids under `pyramidN/`.

        All pyramids' heads learn from the proposals of the first.
        """
        count_labels(self, wanted=not batch.is_padding)
        pyramids = self.pyramids(self.normalise(batch.images, batch.sizes_hw))
        losses: dict[str, Tensor] = {}
        proposals: list[Tensor] | None = None
        for number, (levels, weight) in enumerate(pyramids):
            output = self.rpn(levels)
            if proposals is None:
                proposals = self.rpn.train_proposals(output, batch.sizes_hw)
            encoded = Encoded(levels=levels, sizes_hw=batch.sizes_hw, proposals=proposals)
            found = self.rpn.losses(output, batch) | self.roi_losses(encoded, batch.instances)
            prefix = f"pyramid{number}/" if number else ""
            losses |= {f"{prefix}{name}": weight * loss for name, loss in found.items()}
        return losses

    def encode(self, batch: Batch) -> Encoded:
        """Levels and proposals, of the pyramid that predicts alone."""
        levels = self.features(self.normalise(batch.images, batch.sizes_hw))
        proposals = self.rpn.test_proposals(self.rpn(levels), batch.sizes_hw)
        return Encoded(levels=levels, sizes_hw=batch.sizes_hw, proposals=proposals)

    def candidates(self, encoded: Encoded, limits: CandidateLimits) -> list[Instances]:
        """Scored boxes before suppression, best first."""
        return self.roi_candidates(encoded, limits)

    def mask_pooled(self, encoded: Encoded, boxes: Sequence[Tensor]) -> Tensor:  # noqa: ARG002 - see `Detector.masks`
        """What the mask heads read, (R, C, S, S), images one after the other.

        Args:
            encoded: Of the batch that the boxes lie in.
            boxes: For each image (R_i, 4) xyxy.

        Raises:
            TypeError: The detector has no masks.
        """
        raise TypeError(f"{type(self).__name__} has no masks")

    def mask_ious(
        self, encoded: Encoded, instances: Sequence[Instances], masks: Sequence[RoiMasks]
    ) -> list[Tensor]:
        """Predicted IoU of drawn masks with their objects; see `mask_iou`."""
        if self.mask_iou_head is None:
            return super().mask_ious(encoded, instances, masks)
        pooled = self.mask_pooled(encoded, [found.boxes for found in instances])
        return predicted_ious(self.mask_iou_head, pooled, instances, masks)


def top_candidates(
    boxes: Tensor, scores: Tensor, size_hw: tuple[int, int], limits: CandidateLimits
) -> Instances:
    """The best (box, class) pairs of one image.

    Args:
        boxes: (R, 4) shared by all classes, or (R, K, 4) one per class; xyxy in the image's frame.
        scores: (R, K) in [0, 1] of the foreground classes.
        size_hw: The image's size.
        limits: Score threshold and number of candidates.

    Returns:
        Scored instances above the threshold, best first; empty when there are none.
    """
    threshold, num_classes = limits.score_threshold, max(scores.shape[1], 1)
    above = scores > (threshold.to(scores.device) if isinstance(threshold, Tensor) else threshold)
    index = above.flatten().nonzero().squeeze(1)
    scores = scores.flatten()[index]
    order = scores.argsort(descending=True, stable=True)[: limits.max_candidates]
    index = index[order]
    roi, labels = index // num_classes, index % num_classes
    chosen = boxes[roi] if boxes.dim() == 2 else boxes[roi, labels]
    return Instances(size_hw=size_hw, boxes=chosen.float(), labels=labels, scores=scores[order].float())


class TwoStageOptions(BaseModel):
    """What a recipe may change in any two-stage detector; a method's options add those of its heads.

    Defaults are MMDetection's for Faster R-CNN on R50-FPN, but for the number of RoIAlign's samples.

    Attributes:
        backbone: timm model name.
        composite: Join two backbones of this kind (CBNetV2); the second predicts, the first teaches.
        pruned_stages: First stages that the second one leaves out, 0..3.
        assistant_weight: Factor of the losses on the first one's features.
        activation_checkpointing: Compute the backbone's blocks again in the backward pass instead of keeping what they
            made: a fraction of the memory for a third more time.
        norm: Normalisation of the backbone; `gn` and `sync_bn` also go into the pyramid and the heads'
            convolutions, unless these have their own.
        neck_norm: Normalisation of the pyramid's convolutions.
        head_norm: Normalisation of the heads' convolutions.
        frozen_stages: Stem and this many backbone stages are not trained; `auto` goes by what training starts from.
        deform: Stages (1..4) with deformable convolution.
        deform_version: 1 or 2.
        drop_path: Stochastic depth rate of the backbone.
        fpn_channels: Width of the pyramid.
        fc_channels: Width of the heads' fully connected layers.
        class_agnostic: One box for all classes, or one per class.
        class_loss: `softmax`, or `seesaw` for classes of very unlike frequency.
        classifier: The layer that makes the box heads' logits: `linear`, or `normalised`, in which no class wins by the
            length of its weights, as published with Seesaw loss.
        spare_logits: Rows of the classifier that stand for no class, in imported detectors.
        box_loss: Regression loss of the box heads.
        box_loss_weight: Its factor.
        smooth_l1_beta: Where smooth L1 turns linear; 0 is plain L1. Smaller values keep pulling on boxes that are
            nearly right.
        rpn_beta: The same for the proposals.
        rpn_convs: 3x3 convolutions of the proposals' head.
        roi_samples: Samples per cell and direction of RoIAlign; 0 adapts to the RoI's size, which weights trained in
            MMDetection expect.
        roi_aligned: Whether RoIAlign shifts by half a feature cell; torchvision's weights expect it not to.
        anchor_scales: Side of the anchors in strides of their level.
        anchor_ratios: Height over width.
        anchors_rounded: Whether anchors have whole pixels, as torchvision's weights expect.
        num_anchors: Anchors per image that enter the loss of the proposals' head; at most half are objects'.
        num_train_proposals: Proposals per image in training.
        num_test_proposals: Proposals per image at test time.
        num_rois: RoIs per image that enter a box head's loss.
        pixel_mean: Subtracted from RGB values in 0..255.
        pixel_std: What they are then divided by.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = "resnet50"
    composite: bool = False
    pruned_stages: Annotated[int, Field(ge=0, le=3)] = 0
    assistant_weight: Annotated[float, Field(ge=0)] = 0.5
    activation_checkpointing: bool = False
    norm: BackboneNorm = "bn_eval"
    neck_norm: NormKind | None = None
    head_norm: NormKind | None = None
    frozen_stages: Annotated[int, Field(ge=0, le=4)] | Literal["auto"] = 0
    deform: tuple[BackboneStage, ...] = ()
    deform_version: Literal[1, 2] = 1
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    fpn_channels: Count = 256
    fc_channels: Count = 1024
    class_agnostic: bool = False
    class_loss: ClassLossKind = "softmax"
    classifier: ClassifierKind = "linear"
    spare_logits: Annotated[int, Field(ge=0)] = 0
    box_loss: BoxLossKind = "smooth_l1"
    box_loss_weight: Annotated[float, Field(ge=0)] = 1.0
    smooth_l1_beta: Annotated[float, Field(ge=0)] = 0.0
    rpn_beta: Annotated[float, Field(ge=0)] = 0.0
    rpn_convs: Count = 1
    roi_samples: Annotated[int, Field(ge=0)] = 2
    roi_aligned: bool = True
    anchor_scales: tuple[Positive, ...] = (8.0,)
    anchor_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    anchors_rounded: bool = False
    num_anchors: Count = 256
    num_train_proposals: Count = 1000
    num_test_proposals: Count = 1000
    num_rois: Count = 512
    pixel_mean: tuple[float, float, float] = PIXEL_MEAN
    pixel_std: tuple[Positive, Positive, Positive] = PIXEL_STD

    @property
    def shared_norm(self) -> NormKind:
        """What the backbone's normalisation means for the pyramid and the heads that do not have their own."""
        return self.norm if self.norm in ("gn", "sync_bn") else "none"

    def shared(self, *, pretrained: bool) -> dict[str, Any]:
        """The fields of `TwoStageConfig`.

        Args:
            pretrained: Fetch timm's published weights of the backbone.
        """
        proposals = self.num_train_proposals
        return {
            "backbone": BackboneConfig(
                name=self.backbone,
                norm=self.norm,
                frozen_stages=0 if self.frozen_stages == "auto" else self.frozen_stages,
                deform=self.deform,
                deform_version=self.deform_version,
                drop_path=self.drop_path,
                activation_checkpointing=self.activation_checkpointing,
                pretrained=pretrained,
            ),
            "composite": CompositeConfig(
                pruned_stages=self.pruned_stages, assistant_weight=self.assistant_weight
            )
            if self.composite
            else None,
            "neck": FPNConfig(channels=self.fpn_channels, norm=self.neck_norm or self.shared_norm),
            "rpn": RPNConfig(
                anchors=AnchorConfig(
                    scales=self.anchor_scales, ratios=self.anchor_ratios, rounded=self.anchors_rounded
                ),
                sample=SampleConfig(num=self.num_anchors, positive_fraction=0.5),
                num_convs=self.rpn_convs,
                loss=BoxLossConfig(beta=self.rpn_beta),
                # twice the proposals, as published for 1000; 2000 for 2000, as published too
                train_per_level=min(2 * proposals, max(proposals, 2000)),
                train_proposals=proposals,
                test_per_level=self.num_test_proposals,
                test_proposals=self.num_test_proposals,
            ),
            "sample": SampleConfig(num=self.num_rois),
            "pixel_mean": self.pixel_mean,
            "pixel_std": self.pixel_std,
        }

    def box_loss_config(self) -> BoxLossConfig:
        """Of the box heads."""
        return BoxLossConfig(kind=self.box_loss, beta=self.smooth_l1_beta, weight=self.box_loss_weight)


class BoxHeadOptions(TwoStageOptions):
    """Those of a detector whose box heads are `box_heads.BoxHead`.

    Attributes:
        head: `shared_fc` or `conv_fc`.
    """

    head: Literal["shared_fc", "conv_fc"] = "shared_fc"

    def box_head(self) -> BoxHeadConfig:
        """Shape and losses of the box heads."""
        return BoxHeadConfig(
            kind=self.head,
            fc_channels=self.fc_channels,
            conv_channels=self.fpn_channels,
            norm=self.head_norm or self.shared_norm,
            pool_samples=self.roi_samples,
            aligned=self.roi_aligned,
            class_agnostic=self.class_agnostic,
            class_loss=self.class_loss,
            classifier=self.classifier,
            spare_logits=self.spare_logits,
            box_loss=self.box_loss_config(),
        )
