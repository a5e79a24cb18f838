"""What a classifier's numbers mean: how many there are for K classes, how they are trained, and what they say.

    softmax  logits (R, K + 1): K classes, background ──► softmax ──► probabilities (R, K)
    seesaw   logits (R, K + 2): K classes, object, background ──► softmax of each part, multiplied ──► (R, K)

The layer that makes the logits is the head's: `make_classifier`.
Dims: R RoIs, P positives, K classes, L logits, C width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from scantling.errors import ConfigError
from scantling.models.layers import init_conv
from scantling.models.losses import classification_loss

ClassLossKind = Literal["softmax", "seesaw"]
ClassifierKind = Literal["linear", "normalised"]

TEMPERATURE = 20.0
"""Of a normalised classifier, as published."""


class ClassLoss(nn.Module, ABC):
    """The meaning of a classifier's logits.

    Args:
        num_classes: Foreground classes K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @abstractmethod
    def num_logits(self, num_classes: int) -> int:
        """Logits per RoI for K classes; the first K are those of the classes."""

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Losses by name, each divided by the number of RoIs; 0 for none.

        Args:
            logits: (R, `num_logits`).
            labels: (R,) in 0..K, K being background.
        """

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Scores in [0, 1] of the K classes, (R, K) float32, of logits (R, `num_logits`)."""


class SoftmaxLoss(ClassLoss):
    """Cross-entropy over the classes and background.

    Args:
        num_classes: Foreground classes K.
        spare_logits: Further logits that take part in the softmax and stand for no class: rows that the classifier of
            an imported detector has for categories without a name.
    """

    def __init__(self, num_classes: int, spare_logits: int = 0) -> None:
        super().__init__(num_classes)
        self.spare_logits = spare_logits

    def num_logits(self, num_classes: int) -> int:
        """K + 1, background after the classes, and the spare ones."""
        return num_classes + 1 + self.spare_logits

    def losses(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """`class`: the mean cross-entropy."""
        return {"class": classification_loss(logits, labels)}

    def probabilities(self, logits: Tensor) -> Tensor:
        """The softmax without background's part."""
        return logits.float().softmax(dim=1)[:, : self.num_classes]


class SeesawLoss(ClassLoss):
    """Seesaw loss (Wang et al. 2021): frequent classes push rare ones down less, where they are not mistaken for them.

    A positive RoI of class i lowers class j by the weight S_ij = M_ij C_ij (equations 3 to 6): the mitigation
    M_ij = (N_j / N_i)^p where class j has been seen less often, and the compensation C_ij = (s_j / s_i)^q where the
    classifier takes it for j. Whether there is an object at all is told by two more logits (section 3.3). The numbers
    seen, N, are counted from the first step on, over all processes that train together, and are part of the model's
    state.

    Args:
        num_classes: Foreground classes K.
        p: Exponent of the mitigation; 0 leaves it out.
        q: Exponent of the compensation; 0 leaves it out.

    Attributes:
        counts: (K + 1,) RoIs seen of each class, background last.
        counts_labels: Whether the labels given to `losses` are new ones; see `count_labels`.
    """

    EPSILON = 1e-2
    """Smallest own score in the compensation; as in MMDetection, the paper does not say."""

    counts: Tensor

    def __init__(self, num_classes: int, p: float = 0.8, q: float = 2.0) -> None:
        super().__init__(num_classes)
        self.p, self.q = p, q
        self.counts_labels = True
        self.register_buffer("counts", torch.zeros(num_classes + 1))

    def num_logits(self, num_classes: int) -> int:
        """K + 2: the classes, object, background."""
        return num_classes + 2

    def losses(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """`class`: of the positive RoIs; `objectness`: of all; both divided by the number of RoIs.

        The labels are counted first, background as the last of K + 1. Processes that train together add up what they
        have seen, so each must call this as often as the others.
        """
        self._count(labels)
        classes, objectness = torch.split(logits.float(), [self.num_classes, 2], dim=1)
        positive = (labels < self.num_classes).nonzero().squeeze(1)
        own = labels[positive]
        weighted = classes[positive] + self._weights(classes[positive].detach(), own).log()  # (P, K)
        count = max(len(labels), 1)
        is_background = (labels == self.num_classes).long()
        return {
            "class": F.cross_entropy(weighted, own, reduction="sum") / count,
            "objectness": F.cross_entropy(objectness, is_background, reduction="sum") / count,
        }

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class scores times the score of being an object."""
        classes, objectness = torch.split(logits.float(), [self.num_classes, 2], dim=1)
        scores: Tensor = classes.softmax(dim=1) * objectness.softmax(dim=1)[:, :1]
        return scores

    def _count(self, labels: Tensor) -> None:
        """Add the labels (R,) of all processes to those seen."""
        seen = torch.bincount(labels, minlength=self.num_classes + 1).to(self.counts.dtype)  # (K + 1,)
        if not self.counts_labels:
            seen.zero_()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(seen)
        self.counts += seen

    def _weights(self, logits: Tensor, labels: Tensor) -> Tensor:
        """S (P, K), 1 for the RoI's own class, of logits (P, K) and labels (P,)."""
        seen = self.counts[: self.num_classes].clamp(min=1)
        mitigation = (seen[None, :] / seen[:, None]).clamp(max=1)[labels] ** self.p  # N_j / N_i
        scores = logits.softmax(dim=1)
        own = scores.gather(1, labels[:, None]).clamp(min=self.EPSILON)
        compensation = (scores / own).clamp(min=1) ** self.q
        return (mitigation * compensation).scatter(1, labels[:, None], 1.0)


class NormalisedLinear(nn.Linear):
    """Logits that tell directions apart, not lengths: z = t cos(w, x) + b (Wang et al. 2021, section 3.3).

    Weights of frequent classes grow longer than those of rare ones and win by that alone; here every class's has
    length 1. Computed in float32 whatever the precision of the rest. A feature of length 0 has the bias for its logits.

    Args:
        in_features: Width C.
        out_features: Logits L.
        temperature: t; the paper's is 20.
    """

    def __init__(self, in_features: int, out_features: int, temperature: float = TEMPERATURE) -> None:
        super().__init__(in_features, out_features)
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """(R, C) -> (R, L) float32."""
        with torch.autocast(x.device.type, enabled=False):
            directions = F.normalize(self.weight.float(), dim=1)  # (L, C)
            return F.linear(self.temperature * F.normalize(x.float(), dim=1), directions, self.bias)


def make_classifier(kind: ClassifierKind, in_features: int, num_logits: int) -> nn.Linear:
    """The layer that makes the logits, undecided at first.

    Args:
        kind: `linear`, or `normalised` (`NormalisedLinear`).
        in_features: Width C.
        num_logits: L, as the class loss says.
    """
    layer = (NormalisedLinear if kind == "normalised" else nn.Linear)(in_features, num_logits)
    init_conv(layer, std=0.01)
    return layer


def count_labels(model: nn.Module, *, wanted: bool) -> None:
    """Say whether what a model is given from now on are new labels: not so in a batch repeated as padding."""
    for module in model.modules():
        if isinstance(module, SeesawLoss):
            module.counts_labels = wanted


def make_class_loss(kind: ClassLossKind, num_classes: int, spare_logits: int = 0) -> ClassLoss:
    """The class loss of this kind for K classes.

    Args:
        kind: Its name in a configuration.
        num_classes: Foreground classes K.
        spare_logits: See `SoftmaxLoss`.

    Raises:
        ConfigError: Spare logits for another kind than softmax.
    """
    if kind == "softmax":
        return SoftmaxLoss(num_classes, spare_logits)
    if spare_logits:
        raise ConfigError(
            f"model.spare_logits: {kind} has none, found {spare_logits}", hint="Use class_loss: softmax."
        )
    return SeesawLoss(num_classes)
