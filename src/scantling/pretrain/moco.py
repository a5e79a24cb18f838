"""MoCo v2: learn a backbone from crops alone, by telling each crop from all others.

    crop ─┬─ view ─► query encoder f_q ─► q (B, D) ────────────┐
          │                                                    ├─ logits (B, 1 + Q) / temperature ─► InfoNCE, target 0
          └─ view ─► key encoder f_k (no gradient) ─► k (B, D) ┤       q·k of the same crop first,
                                                               │       then q against the queue
             queue (Q, D) of the last Q keys ──────────────────┘
    after the loss:   queue ◄─ k        before the next keys:   f_k ◄─ m f_k + (1 - m) f_q

    f = Backbone ─► mean of the last stage's cells (B, C_5) ─► Linear ─► BN ─► ReLU ─► Linear ─► BN ─► length 1 (B, D)

B: crops of a batch. C_5: width of the last stage. D: 128. Q: length of the queue. G: processes.

Source: He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning", algorithm 1; Chen et al.
2020, "Improved Baselines with Momentum Contrastive Learning" (two-layer head, temperature 0.2). Deviations:

* Older keys of a crop are no negatives of it. With 1.3 million images they hardly occur in the queue, with a few
  thousand crops they are there at every step. `own_keys: negatives` is the published contrast.
* Places of the queue without a key do not count. The published queue starts with random vectors, from which all
  crops get away together, onto one point; a short training does not come back from there.
* The head standardises over the batch after each of its layers, as MoCo v3's does (Chen et al. 2021); `head: plain` is
  the published one. Without BatchNorm a fresh network describes all crops almost alike: a pretraining of a
  GroupNorm network with the plain head moved all crops together, away from the older keys, and learned nothing else.
* Shuffled batch statistics on one process: the published code hides which statistics a query shares with its key by
  shuffling over eight GPUs. Here the batch of a lone process is cut into parts of about 32, at least two, each with
  its own statistics, as if each part were on a GPU. Encoders without trained BatchNorm (`head: plain` with `norm: gn`)
  need and do nothing of this.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from scantling.errors import ConfigError
from scantling.models.backbone import Backbone, BackboneConfig, BackboneStage
from scantling.models.normalise import PIXEL_MEAN, PIXEL_STD
from scantling.pretrain.views import ViewPairBatch

Auto = Literal["auto"]
_NOBODY = -1
BATCH_NORM_SHARE = 32
"""Crops that share their batch statistics, as published: 256 on eight GPUs."""


class MocoConfig(BaseModel):
    """The network and the contrast.

    Attributes:
        backbone: timm model name.
        norm: As in a detector's model; `gn` and the fixed kinds need no shuffling of batch statistics. `sync_bn`
            learns with `bn`, whose weights are the same: as published, statistics are shuffled in pretraining and
            pooled over processes in the detector only.
        deform: Stages whose 3x3 convolutions are deformable.
        deform_version: 1 or 2.
        head: `bn` standardises in the head, `plain` is two linear layers and a ReLU.
        embedding: Numbers that describe a crop (D).
        temperature: Of the softmax over similarities.
        momentum: Share of itself that the key encoder keeps in each step; `auto` goes by the number of steps.
        queue: Keys to contrast with (Q); `auto` goes by the number of crops.
        own_keys: Whether older keys of a crop are negatives of it, as published, or left out of its contrast.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = "resnet50"
    norm: Literal["default", "bn", "bn_eval", "frozen_bn", "sync_bn", "gn"] = "gn"
    deform: tuple[BackboneStage, ...] = ()
    deform_version: Literal[1, 2] = 1
    head: Literal["bn", "plain"] = "bn"
    embedding: Annotated[int, Field(ge=1, le=4096)] = 128
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.2
    momentum: Annotated[float, Field(ge=0, le=1)] | Auto = "auto"
    queue: Annotated[int, Field(ge=1, le=10_000_000)] | Auto = "auto"
    own_keys: Literal["left_out", "negatives"] = "left_out"

    def backbone_config(self) -> BackboneConfig:
        """The backbone as a detector would have it, but for `sync_bn`; their weights fit each other."""
        return BackboneConfig(
            name=self.backbone,
            norm="bn" if self.norm == "sync_bn" else self.norm,
            deform=self.deform,
            deform_version=self.deform_version,
        )


class Encoder(nn.Module):
    """Views (B, 3, S, S), normalised -> unit vectors (B, D)."""

    def __init__(self, config: MocoConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config.backbone_config())
        width = self.backbone.channels[-1]
        self.head = make_head(width, config.embedding, config.head)

    def forward(self, views: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D) of length 1."""
        return functional.normalize(self.head(self.features(views)).float(), dim=1)

    def features(self, views: Tensor) -> Tensor:
        """What the backbone says about a view: the mean of its last stage (B, C_5)."""
        pooled: Tensor = self.backbone(views)[-1].mean(dim=(2, 3))
        return pooled


def make_head(width: int, embedding: int, kind: Literal["bn", "plain"]) -> nn.Sequential:
    """Two layers: (B, width) -> (B, embedding)."""
    if kind == "plain":
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, embedding))
    return nn.Sequential(
        nn.Linear(width, width, bias=False),
        nn.BatchNorm1d(width),
        nn.ReLU(inplace=True),
        nn.Linear(width, embedding, bias=False),
        nn.BatchNorm1d(embedding, affine=False),
    )


class MoCo(nn.Module):
    """Both encoders and the queue.

    Args:
        config: Without `auto`.

    Attributes:
        queue: (Q, D) unit vectors; 0 where there is no key yet.
        queue_crops: (Q,) positions of the crops they are of; -1 where there is no key yet.
        place: Where the next key goes.
        hits: Queries whose own key was the most similar, since they were last counted.
        seen: Queries since then.
    """

    queue: Tensor
    queue_crops: Tensor
    place: Tensor
    hits: Tensor
    seen: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: MocoConfig) -> None:
        super().__init__()
        if config.queue == "auto" or config.momentum == "auto":
            raise ConfigError("queue and momentum are `auto`, which must be turned into numbers first")
        self.temperature, self.momentum = config.temperature, config.momentum
        self.leaves_out_own = config.own_keys == "left_out"
        self.query = Encoder(config)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.shuffles = _uses_batch_statistics(self.query)
        self.register_buffer("queue", torch.zeros(config.queue, config.embedding))
        self.register_buffer("queue_crops", torch.full((config.queue,), _NOBODY))
        for name in ("place", "hits", "seen"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, batch: ViewPairBatch) -> dict[str, Tensor]:
        """The same as `losses`."""
        return self.losses(batch)

    def losses(self, batch: ViewPairBatch) -> dict[str, Tensor]:
        """InfoNCE of a batch; afterwards its keys are in the queue."""
        queries = self._queries(self.normalise(batch.queries))
        with torch.no_grad():
            follow(self.key, self.query, self.momentum)
            keys = self._keys(self.normalise(batch.keys))
        ignored = (self.queue_crops == _NOBODY).expand(len(keys), -1)
        if self.leaves_out_own:
            ignored = ignored | (batch.crops[:, None] == self.queue_crops)
        logits = contrast(queries, keys, self.queue.clone(), ignored) / self.temperature
        self._count(logits)
        self._remember(gathered(keys), gathered(batch.crops))
        return {"info_nce": functional.cross_entropy(logits, torch.zeros_like(batch.crops))}

    def features(self, views: Tensor) -> Tensor:
        """The query backbone's description (B, C_5) of views (B, S, S, 3) uint8."""
        return self.query.features(self.normalise(views)).float()

    def normalise(self, views: Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> (B, 3, S, S), normalised as detectors do."""
        return (views.permute(0, 3, 1, 2).float() - self.mean) / self.std

    def take_accuracy(self) -> float | None:
        """Share of queries whose own key ranked first since the last call; None if there were none."""
        hits, seen = int(self.hits), int(self.seen)
        self.hits.zero_()
        self.seen.zero_()
        return hits / seen if seen else None

    def backbone_tensors(self) -> dict[str, Tensor]:
        """The query backbone's weights, named as in a detector."""
        state = self.query.backbone.state_dict()
        return {f"backbone.{name}": tensor for name, tensor in state.items() if name.startswith("body.")}

    def _queries(self, views: Tensor) -> Tensor:
        return in_parts(self.query, views, self._parts_of(len(views)))

    def _keys(self, views: Tensor) -> Tensor:
        if not self.shuffles:
            return in_parts(self.key, views, 1)
        return with_shuffled(views, lambda mine: in_parts(self.key, mine, self._parts_of(len(mine))))

    def _parts_of(self, batch: int) -> int:
        """Into how many parts with their own batch statistics a process cuts its batch."""
        if not self.shuffles:
            return 1
        at_least = 2 if _world() == 1 else 1
        return max(1, min(batch // 2, max(at_least, batch // BATCH_NORM_SHARE)))

    @torch.no_grad()
    def _count(self, logits: Tensor) -> None:
        self.hits += (logits.argmax(dim=1) == 0).sum()
        self.seen += len(logits)

    @torch.no_grad()
    def _remember(self, keys: Tensor, crops: Tensor) -> None:
        """Put keys in the place of the oldest ones; of more than the queue holds the last."""
        length = len(self.queue)
        keys, crops = keys[-length:], crops[-length:]
        places = (self.place + torch.arange(len(keys), device=keys.device)) % length
        self.queue[places] = keys.to(self.queue.dtype)
        self.queue_crops[places] = crops
        self.place.copy_((self.place + len(keys)) % length)


def contrast(queries: Tensor, keys: Tensor, queue: Tensor, ignored: Tensor) -> Tensor:
    """Similarities of each query: first with its own key, then with every key of the queue.

    Args:
        queries: (B, D) unit vectors.
        keys: (B, D) of the same crops.
        queue: (Q, D) unit vectors.
        ignored: (B, Q) where the queue's key is no negative of the query; that similarity becomes -inf.

    Returns:
        (B, 1 + Q) in [-1, 1] or -inf.
    """
    positive = (queries * keys).sum(dim=1, keepdim=True)
    return torch.cat([positive, (queries @ queue.T).masked_fill(ignored, -torch.inf)], dim=1)


@torch.no_grad()
def follow(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """Move each parameter of the key encoder towards the query encoder's: k <- m k + (1 - m) q."""
    for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
        slow.lerp_(fast, 1 - momentum)


def in_parts(encoder: nn.Module, views: Tensor, parts: int) -> Tensor:
    """Encode a batch in parts, each with its own batch statistics; the order stays."""
    return torch.cat([encoder(part) for part in views.chunk(parts)])


def with_shuffled(views: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Encode views in an order that is random over the batches of all processes.

    Args:
        views: (B, ...) of this process, equally many on each.
        encode: (B, ...) -> (B, D).

    Returns:
        (B, D) in the order of `views`.
    """
    everything = gathered(views)
    order = torch.randperm(len(everything), device=views.device)
    if _world() > 1:
        dist.broadcast(order, src=0)
    start = _rank() * len(views)
    encoded = gathered(encode(everything[order[start : start + len(views)]]))
    return encoded[order.argsort()[start : start + len(views)]]


def gathered(tensor: Tensor) -> Tensor:
    """The tensors of all processes, one after the other by rank; each process has the same shape."""
    if _world() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(_world())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if _world() > 1 else 0


def _uses_batch_statistics(encoder: nn.Module) -> bool:
    """Whether a BatchNorm is left in training mode when the encoder trains; its mode is training afterwards."""
    encoder.train()
    return any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.training for m in encoder.modules())
