"""CBNetV2 (Liang et al. 2021): two backbones of one architecture, the second fed with all that the first has made.

    image ── stem ── stage 1 .. 4 of the assistant ──► x_1 .. x_4 (B, C_j, H/s_j, W/s_j)
    sum_i = over j >= i:  up(w_ij(x_j)),  w_ij a 1x1 convolution to the width that stage i reads, up to its size
    stem's output + sum_1 ── stage 1 of the lead ── + sum_2 ── stage 2 ── + sum_3 ── .. ── stage 4 ──► y_1 .. y_4
    training: neck and heads on y, and on x with half the weight (assistant supervision); test: on y alone

The lead has no stem. Of a pruned one the first stages are left out too: what they would make is the assistant's, and
the first stage left reads what the assistant's reads. Connections are, as published,

    ResNet, ResNeXt    x_j as it is;        w = convolution without bias, BatchNorm that starts at 0
    Swin, ConvNeXt     x_j after its norm;  w = convolution with bias that starts at 0; nothing where the widths agree

so that a ResNet starts as two backbones that do not know of each other. (The authors have no ConvNeXt: it is joined as
Swin is, whose order of norms and halving it has.) A Swin stage reads its map after halving it: there the sum is added.
Numbers of pruned stages: 1 is `cb_del_stages` 1 of the authors' ResNets and 2 of their Swins, whose stem counts as one.
Dims: B images, C_j channels of stage j, s_j its stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from scantling.models.backbone import Backbone, BackboneConfig, BackboneNorm
from scantling.models.layers import ConvBlock, NormKind

STAGES = (1, 2, 3, 4)


class CompositeConfig(BaseModel):
    """How two backbones are joined.

    Attributes:
        pruned_stages: First stages that the lead leaves out, 0..3.
        assistant_weight: Factor of the losses on the assistant's features.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pruned_stages: Annotated[int, Field(ge=0, le=3)] = 0
    assistant_weight: Annotated[float, Field(ge=0)] = 0.5


class StagesPassed(NamedTuple):
    """What went through the stages of one backbone, in its own order of dimensions.

    Attributes:
        read: What the blocks of each stage read.
        made: What they made of it.
    """

    read: list[Tensor]
    made: list[Tensor]


class CompositeBackbone(nn.Module):
    """Two backbones and the connections between them; a source of maps as `Backbone` is.

    Args:
        config: The network of both, and what is changed in it; frozen stages are frozen in both.
        composite: How they are joined.

    Attributes:
        assistant: The first backbone.
        lead: The second one, whose maps are the result.
        channels: Width of each returned map, finest first.
        strides: (4, 8, 16, 32).

    Raises:
        ConfigError: As for `Backbone`, or the network cannot be taken apart into stages.
    """

    def __init__(self, config: BackboneConfig, composite: CompositeConfig) -> None:
        super().__init__()
        self.config = config
        self.first = composite.pruned_stages
        self.assistant, self.lead = Backbone(config), Backbone(config)
        self.assistant.require_parts()
        self.channels, self.strides = self.lead.channels, self.lead.strides
        widths = self.channels if self.lead.enters_apart else (self.lead.stem_channels, *self.channels[:3])
        self.lead.leave_out(self.first)
        self.links = nn.ModuleList(
            nn.ModuleList(self._link(width, widths[i]) for width in self.channels[i:] if i >= self.first)
            for i in range(len(STAGES))
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W), H and W multiples of 32 -> the lead's four maps (B, C, H/s, W/s)."""
        return self.both(images)[0]

    def both(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The lead's four maps and the assistant's; see `forward`."""
        passed = self._pass(self.assistant, self.assistant.stem(images))
        maps = self.assistant.outputs(passed.made)
        sums = self.sums(maps, [self._size_of(x) for x in passed.read])
        lead = self._pass(self.lead, passed.read[self.first], sums)
        return self.lead.outputs([*passed.made[: self.first], *lead.made]), maps

    def sums(self, maps: Sequence[Tensor], sizes_hw: Sequence[torch.Size]) -> list[Tensor | None]:
        """What is added to the input of each of the lead's stages.

        Args:
            maps: The assistant's four (B, C_j, H/s_j, W/s_j).
            sizes_hw: Size at which each stage reads.

        Returns:
            For each stage (B, C, H, W); None for one that is left out.
        """
        sums: list[Tensor | None] = []
        for i, size in enumerate(sizes_hw):
            links = [*self.links[i].children()]  # none for a stage that is left out
            parts = [
                F.interpolate(link(x), size=size, mode="nearest")
                for link, x in zip(links, maps[len(maps) - len(links) :], strict=True)
            ]
            sums.append(torch.stack(parts).sum(dim=0) if parts else None)
        return sums

    def train(self, mode: bool = True) -> CompositeBackbone:
        """Training mode, but for what is frozen and for BatchNorm with fixed statistics, in the connections too."""
        super().train(mode)
        if self.config.norm in ("bn_eval", "frozen_bn"):
            self.links.eval()  # nothing else in them has a mode
        return self

    def _pass(
        self, backbone: Backbone, x: Tensor, sums: Sequence[Tensor | None] | None = None
    ) -> StagesPassed:
        """All stages that a backbone has, the first of which reads `x`, with the sums added to what each reads."""
        passed = StagesPassed([], [])
        for number in STAGES if sums is None else STAGES[self.first :]:
            x = backbone.enter(number, x)
            added = None if sums is None else sums[number - 1]
            if added is not None:
                x = x + (added.permute(0, 2, 3, 1) if backbone.channels_last else added)
            passed.read.append(x)
            x = backbone.blocks(number, x)
            passed.made.append(x)
        return passed

    def _size_of(self, x: Tensor) -> torch.Size:
        return x.shape[1:3] if self.assistant.channels_last else x.shape[2:]

    def _link(self, in_channels: int, out_channels: int) -> nn.Module:
        link: nn.Module = nn.Conv2d(in_channels, out_channels, 1)
        if not self.lead.enters_apart:
            link = ConvBlock(in_channels, out_channels, 1, _LINK_NORMS[self.config.norm], relu=False)
        elif in_channels == out_channels:
            return nn.Identity()
        last = list(link.modules())[-1]
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        return link


_LINK_NORMS: dict[BackboneNorm, NormKind] = {
    "default": "bn",
    "bn": "bn",
    "bn_eval": "bn",  # in evaluation mode, as the backbones'
    "frozen_bn": "bn",  # likewise, but its scale is trained: fixed at 0 there would be no connection
    "sync_bn": "sync_bn",
    "gn": "gn",
}
