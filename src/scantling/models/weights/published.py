"""Published weights to start from: which are recommended for a model, whose they are, and how they come here.

    torchvision's own detectors    torchvision's weights of the whole detector, trained on COCO
    everything else                timm's weights of the backbone, trained on ImageNet

Nothing is fetched unless `init: pretrained` asks for it. Without a network the message names the file, and where to put
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import nn
from torchvision.models import detection

from scantling.errors import CheckpointError, ConfigError
from scantling.models.timm_networks import timm_network
from scantling.models.weights.opener import read_weights
from scantling.models.weights.sources import (
    HUB_FILE,
    cached_from_hub,
    fetch_from_hub,
    fetch_url,
    hub_place,
    sha256_prefix,
)

if TYPE_CHECKING:
    from pathlib import Path

DETECTORS = {
    "torchvision_faster_rcnn_r50": detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
    "torchvision_faster_rcnn_r50_v2": detection.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
    "torchvision_mask_rcnn_r50": detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
    "torchvision_mask_rcnn_r50_v2": detection.MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
}
"""Models of ours whose weights torchvision publishes, and where."""
_DETECTORS_BACKBONE = "resnet50"
_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Weights that somebody has published.

    Attributes:
        what: Of what they are, and what they were trained on.
        source: Who publishes them.
        licence: Under which licence.
        megabytes: Size of the file.
        url: Where it is.
        file_name: What it is called here, if it is put into `place` by hand.
        hub_id: Its repository on Hugging Face, which timm asks first; None for torchvision's.
        is_detector: Whether they are those of a whole detector.
    """

    what: str
    source: str
    licence: str
    megabytes: float
    url: str
    file_name: str
    hub_id: str | None = None
    is_detector: bool = False

    @property
    def place(self) -> Path:
        """Where the file may be put by hand: PyTorch's hub folder."""
        return hub_place(self.file_name)

    def to_text(self) -> str:
        """One line: what, whose, under which licence, how large."""
        return (
            f"published weights: {self.what}; {self.source}; licence {self.licence}; {self.megabytes:.0f} MB"
        )

    def fetch(self) -> Path:
        """The local copy, fetched where there is none.

        Raises:
            CheckpointError: It cannot be fetched; says by hand from where and to where. Or it is damaged.
        """
        if self.hub_id is not None and not self.place.is_file():
            cached = cached_from_hub(self.hub_id, HUB_FILE)
            if cached is not None:
                return cached
        try:
            if self.place.is_file() or sha256_prefix(self.file_name) or self.hub_id is None:
                return fetch_url(self.url, self.place)
            return fetch_from_hub(self.hub_id, HUB_FILE)
        except CheckpointError as error:
            prefix = sha256_prefix(self.file_name)
            told = f" (its SHA-256 begins with {prefix})" if prefix else ""
            raise CheckpointError(
                f"init: pretrained: the {self.what} ({self.megabytes:.0f} MB) are not here, and {error.message}",
                hint=f"Fetch {self.url}{told} with a machine that has a network, put it at {self.place}, and run the "
                "same command again; or start from another file, or from random weights "
                "(--set members.NAME.model.init=random).",
            ) from error


def recommended(model: str, backbone: str) -> Published:
    """The published weights to start a model from.

    Args:
        model: Name in the zoo.
        backbone: timm's name of its backbone, which may be another than the named model's.

    Raises:
        ConfigError: timm has no weights for the backbone.
    """
    if model in DETECTORS and backbone == _DETECTORS_BACKBONE:
        weights = DETECTORS[model]
        return Published(
            what=f"weights of {weights.__class__.__name__.removesuffix('_Weights')} trained on COCO",
            source="torchvision",
            licence="BSD-3-Clause",
            megabytes=weights.meta["_file_size"],
            url=weights.url,
            file_name=weights.url.rsplit("/", 1)[-1],
            is_detector=True,
        )
    return published_backbone(backbone)


def published_backbone(name: str) -> Published:
    """The weights that timm publishes of one of its networks.

    Raises:
        ConfigError: There are none.
    """
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None or not (config.hf_hub_id or config.url):
        raise ConfigError(
            f"init: pretrained: timm publishes no weights of {name!r}",
            hint="Name a file, or start from random weights.",
        )
    with torch.device("meta"):
        size = sum(value.numel() for value in timm_network(name).state_dict().values()) * _BYTES
    hub_id, url = config.hf_hub_id or None, config.url or ""
    if not sha256_prefix(url.rsplit("/", 1)[-1]) and hub_id:
        url = f"https://huggingface.co/{hub_id}/resolve/main/{HUB_FILE}"
    tag = f".{config.tag}" if getattr(config, "tag", "") else ""
    ending = url.rsplit("/", 1)[-1]
    return Published(
        what=f"weights of {name}{tag}",
        source=f"timm, https://huggingface.co/{hub_id}" if hub_id else "timm",
        licence=config.license or "not stated",
        megabytes=size / 1e6,
        url=url,
        file_name=f"{(hub_id or name).rsplit('/', 1)[-1]}.safetensors" if ending == HUB_FILE else ending,
        hub_id=hub_id,
    )


def published_network(name: str, **options: Any) -> nn.Module:
    """One of timm's networks with its published weights.

    Args:
        name: timm's.
        options: As for `timm.create_model`.

    Raises:
        CheckpointError: The weights cannot be fetched.
        ConfigError: There are none.
    """
    weights = read_weights(published_backbone(name).fetch())
    network: nn.Module = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={"state_dict": weights}, **options
    )
    return network
