"""Instances of several models as those of one better model, by how far their masks overlap.

    pooled instances, scores weighted ─► pairs of masks that overlap ─┬─ mask_nms, mask_soft_* ─► the better one counts
                                                                      └─ mask_vote ─► matched instances ─► one mask

The first is what the Aoi-overfitting team did in the VISION challenge of 2023 (section 2.3 of its report): scores
scaled by a weight that grows with the model's mask AP, all instances pooled, NMS by mask IoU. Voting goes beyond it.
Masks are compared and added up as run lengths, only where their boxes meet; nothing is ever as large as the image.
N: instances; K: categories; M: members; Q: clusters.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import numpy as np

from scantling.combine.clusters import Floats, Ints
from scantling.combine.fusion import FusedScore, cluster_scores, merged
from scantling.combine.pool import Pool
from scantling.errors import DataError
from scantling.ops.mask_votes import vote_masks
from scantling.ops.overlaps import Pairs, find_pairs_within
from scantling.ops.pair_suppression import suppress_pairs
from scantling.ops.suppress_options import SuppressMethod
from scantling.structures.detections import Detections, object_column

log = logging.getLogger(__name__)

MaskMethod: TypeAlias = Literal["mask_nms", "mask_soft_linear", "mask_soft_gaussian", "mask_vote"]
MASK_METHODS: tuple[MaskMethod, ...] = get_args(MaskMethod)
MASK_PORTION = 1 << 13
"""Instances pooled at a time: what the pairs of masks and their runs need stays small."""

_SUPPRESSION: dict[MaskMethod, SuppressMethod] = {
    "mask_nms": "hard",
    "mask_soft_linear": "soft_linear",
    "mask_soft_gaussian": "soft_gaussian",
}


def with_masks(members: Mapping[str, Detections]) -> dict[str, Detections]:
    """The instances that have a mask; those that have none are told and left out, as no overlap of masks is theirs.

    Args:
        members: Detections by name, their soft masks pasted into the images; any may be empty.

    Raises:
        DataError: A member has detections, and none of them has a mask.
    """
    found = {}
    for name, member in members.items():
        has_mask = member.has_mask
        if len(member) and not has_mask.any():
            hint = "Give results with a segmentation, or fuse boxes: wbf, nmw, nms, soft_linear or soft_gaussian."
            raise DataError(f"{name}: no prediction has a mask, so it cannot be matched by masks", hint=hint)
        if not has_mask.all():
            log.warning("%s: %d predictions have no mask and are left out", name, (~has_mask).sum())
        found[name] = member[has_mask]
    return found


def suppress_pooled_masks(
    pool: Pool, limits: Floats, weights: Floats, method: MaskMethod, *, sigma: float, min_score: float
) -> Detections:
    """Hard or soft NMS by mask IoU as if one model had found all instances.

    Args:
        pool: Instances of all members, each with a mask; may be empty.
        limits: (K,) mask IoU with a better instance beyond which one is dropped, or lowered (`mask_soft_linear`).
        weights: (M, K) of each member in each category.
        method: Any but `mask_vote`.
        sigma: Width of the gaussian decay.
        min_score: The soft methods drop what falls below.
    """
    rows, of_row = pool.scaled(weights), limits[pool.rows.labels]
    at_least = 0.0 if method == "mask_soft_gaussian" else float(limits.min(initial=1.0))
    keep, scores = suppress_pairs(
        rows.scores,
        pool.groups,
        find_pairs_within(pool.groups, pool.rows.mask_column, at_least=at_least),
        method=_SUPPRESSION[method],
        limits=of_row,
        sigma=sigma,
        min_score=min_score,
    )
    return rows[keep].replace(scores=scores)


def vote_pooled_masks(
    pool: Pool, limits: Floats, weights: Floats, score: FusedScore, *, keeps_duplicates: bool, share: float
) -> Detections:
    """Mask voting: instances of one object become one, whose pixels most of their weighted scores agree on.

    The best instance draws those whose mask overlaps its own beyond the limit; one that several draw goes to the one it
    overlaps most. A pixel belongs to the object where the weighted scores of the masks that have it make up at least
    `share` of the cluster's. The box is the mean of the boxes, weighted alike; a single instance stays as it is.

    Args:
        pool: Instances of all members, each with a mask; may be empty.
        limits: (K,) mask IoU with the best instance that another must exceed to vote with it.
        weights: (M, K) of each member in each category.
        score: How the scores of a cluster become its own; the formulas stand at `EnsembleConfig`.
        keeps_duplicates: Of a member's own instances of one object all vote, not only the best.
        share: Of the votes that a pixel needs, in (0, 1].

    Returns:
        One instance of each cluster, by image and category, in the order of their best instances.
    """
    pairs = find_pairs_within(pool.groups, pool.rows.mask_column, at_least=float(limits.min(initial=1.0)))
    pairs = pairs.take(pairs.iou > limits[pool.rows.labels[pairs.first]])
    if not keeps_duplicates:
        own = pairs.take(pool.members[pairs.first] == pool.members[pairs.second])
        pool, pairs = _among(pool, pairs, _heads(pool, own))
    cluster = _clusters(pool, pairs)
    found = merged(pool.rows, cluster, pool.scores, cluster_scores(pool, cluster, weights, score))
    together = np.bincount(cluster) > 1  # (Q,)
    voters = np.flatnonzero(together[cluster])
    number = np.cumsum(together) - 1  # of each cluster among those of several
    masks = found.mask_column.copy()
    masks[together] = object_column(
        vote_masks(
            pool.rows.mask_column[voters].tolist(), pool.scores[voters], number[cluster[voters]], share
        )
    )
    return found.replace(masks=masks)


def _heads(pool: Pool, pairs: Pairs) -> Ints:
    """Rows, ascending, that no better row of these pairs, all of them beyond the limit, suppresses."""
    everywhere = np.zeros(len(pool.rows))
    return suppress_pairs(pool.scores, pool.groups, pairs, method="hard", limits=everywhere)[0]


def _among(pool: Pool, pairs: Pairs, rows: Ints) -> tuple[Pool, Pairs]:
    """Some rows, ascending, and the pairs of two of them, numbered anew."""
    place = np.full(len(pool.rows), -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    kept = pairs.take((place[pairs.first] >= 0) & (place[pairs.second] >= 0))
    return pool[rows], Pairs(place[kept.first], place[kept.second], kept.iou)


def _clusters(pool: Pool, pairs: Pairs) -> Ints:
    """(N,) cluster of each row, numbered by their best rows; of equally good ones the earlier is joined."""
    heads = _heads(pool, pairs)
    cluster = np.full(len(pool.rows), -1, dtype=np.int64)
    cluster[heads] = np.arange(len(heads))
    drawn = pairs.take((cluster[pairs.first] >= 0) & (cluster[pairs.second] < 0))
    drawn = drawn.take(np.lexsort((-drawn.first, drawn.iou)))
    cluster[drawn.second] = cluster[drawn.first]  # the last assignment counts: the largest overlap
    return cluster
