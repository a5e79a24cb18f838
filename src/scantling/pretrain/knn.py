"""Whether features mean anything: categories of held-out crops, told by their nearest neighbours.

N: crops, M: held-out crops, C: numbers of a feature, K: categories, k: neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from scantling.data.samples.dataset import draw_key
from scantling.pretrain.crop_store import CropStore
from scantling.pretrain.views import resized

TEMPERATURE = 0.07
_BATCH = 64
_CHUNK = 1024
_MIN_CLASSES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class KnnSplit:
    """Which crops are asked about, and which ones answer; no image has crops on both sides.

    Attributes:
        known: Positions of the crops whose category is known.
        asked: Positions of the held-out crops.
    """

    known: NDArray[np.int64]
    asked: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnnScore:
    """How often the neighbours are right.

    Attributes:
        accuracy: Share of the held-out crops whose category is told.
        balanced: Mean over the categories of that share; a rare category counts as much as a frequent one.
        majority: Accuracy of always saying the most frequent category.
    """

    accuracy: float
    balanced: float
    majority: float


def is_held_out(image: str, share: float, seed: int) -> bool:
    """Whether an image is held out; depends on its name and the seed only."""
    return int.from_bytes(draw_key(seed, 0, image, "held out")[:8], "little") < share * 2**64


def held_out_mask(store: CropStore, share: float, seed: int) -> NDArray[np.bool_]:
    """(N,) whether each crop's image is held out."""
    held_out = {name: is_held_out(name, share, seed) for name in set(store.images)}
    return np.array([held_out[name] for name in store.images], dtype=bool)


def knn_split(store: CropStore, *, share: float, seed: int, most: int) -> KnnSplit | None:
    """Divide the labelled crops by image.

    Args:
        store: Crops, some with a label.
        share: Of the images that are held out.
        seed: Of the choice.
        most: Crops on both sides together; more are thinned out evenly.

    Returns:
        None where there is nothing to tell: no two categories, or all images on one side.
    """
    labelled = np.flatnonzero(store.labels >= 0)
    if len(set(store.labels[labelled].tolist())) < _MIN_CLASSES:
        return None
    if len(labelled) > most:
        labelled = labelled[np.linspace(0, len(labelled) - 1, most).astype(np.int64)]
    held_out = held_out_mask(store, share, seed)[labelled]
    known, asked = labelled[~held_out], labelled[held_out]
    return KnnSplit(known=known, asked=asked) if len(known) and len(asked) else None


def crop_features(
    store: CropStore,
    indices: Sequence[int],
    side: int,
    describe: Callable[[Tensor], Tensor],
    device: torch.device,
) -> Tensor:
    """Features (N, C) of whole crops, each shown once without augmentation.

    Args:
        store: The crops.
        indices: Positions, N of them.
        side: Crops are resized to side x side.
        describe: (B, S, S, 3) uint8 -> (B, C).
        device: Where `describe` computes.
    """
    found = [describe(batch.to(device)).cpu() for batch in _whole_crops(store, indices, side)]
    return torch.cat(found)


def _whole_crops(store: CropStore, indices: Sequence[int], side: int) -> Iterator[Tensor]:
    for start in range(0, len(indices), _BATCH):
        shown = [resized(store.read(int(index)), side) for index in indices[start : start + _BATCH]]
        yield torch.from_numpy(np.stack(shown))


def knn_labels(known: Tensor, labels: Tensor, asked: Tensor, *, neighbours: int, num_classes: int) -> Tensor:
    """Categories (M,) by a vote of the nearest known features, weighted with exp(cosine / 0.07).

    Args:
        known: (N, C) features.
        labels: (N,) their categories.
        asked: (M, C) features.
        neighbours: k; all of them where N is smaller.
        num_classes: K.

    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4.
    """
    bank = functional.normalize(known, dim=1)
    told = []
    for start in range(0, len(asked), _CHUNK):
        part = functional.normalize(asked[start : start + _CHUNK], dim=1)
        similarity, nearest = (part @ bank.T).topk(min(neighbours, len(bank)), dim=1)
        votes = torch.zeros(len(part), num_classes, dtype=similarity.dtype)
        votes.scatter_add_(1, labels[nearest], (similarity / TEMPERATURE).exp())
        told.append(votes.argmax(dim=1))
    return torch.cat(told) if told else torch.zeros(0, dtype=torch.int64)


def judge(told: Tensor, labels: Tensor) -> KnnScore:
    """Compare the told categories (M,) with the true ones; at least one crop."""
    right = (told == labels).double()
    counts = torch.bincount(labels)
    shares = torch.stack([right[labels == label].mean() for label in counts.nonzero().flatten()])
    return KnnScore(
        accuracy=float(right.mean()),
        balanced=float(shares.mean()),
        majority=float(counts.max() / counts.sum()),
    )


def knn_score(
    store: CropStore,
    split: KnnSplit,
    describe: Callable[[Tensor], Tensor],
    *,
    side: int,
    neighbours: int,
    device: torch.device,
) -> KnnScore:
    """How well features tell the categories of held-out crops."""
    known, asked = (
        crop_features(store, indices.tolist(), side, describe, device)
        for indices in (split.known, split.asked)
    )
    labels, truth = (torch.from_numpy(store.labels[indices]) for indices in (split.known, split.asked))
    told = knn_labels(known, labels, asked, neighbours=neighbours, num_classes=max(1, len(store.class_names)))
    return judge(told, truth)
