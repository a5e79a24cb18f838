"""Boxes of one object become one box: weighted boxes fusion, non-maximum weighted, and pooled hard NMS.

N: boxes; K: categories; M: members; Q: clusters.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from scantling.combine.clusters import TINY, Floats, Ints, cluster_boxes
from scantling.combine.pool import Pool
from scantling.ops.overlaps import paired_overlaps
from scantling.structures.detections import Detections

FusedScore: TypeAlias = Literal["mean", "max", "box_and_model_mean", "absent_model_aware_mean"]


def suppress_pooled(pool: Pool, limits: Floats, weights: Floats) -> Detections:
    """Hard NMS as if one detector had found all boxes.

    Args:
        pool: Boxes of all members; may be empty.
        limits: (K,) IoU with a better box beyond which a box is dropped.
        weights: (M, K) of each member in each category.
    """
    return pool.scaled(weights)[_not_covered(pool.rows, pool.groups, limits)]


def without_own_duplicates(pool: Pool, limits: Floats) -> Pool:
    """What hard NMS leaves of each member's boxes.

    Args:
        pool: Boxes of all members; may be empty.
        limits: (K,) IoU with a better box of the same member beyond which a box is dropped.
    """
    groups = pool.groups * (pool.members.max(initial=0) + 1) + pool.members
    order = np.argsort(groups, kind="stable")
    return pool[np.sort(order[_not_covered(pool.rows[order], groups[order], limits)])]


def _not_covered(rows: Detections, groups: Ints, limits: Floats) -> Ints:
    """Rows, ascending, that none of these rows before them in their group overlaps beyond the limit.

    Among clusters that stay where their first box is, those first boxes are what suppression leaves. `ops.nms` finds
    the same by one call for every group, which takes five times as long for hundreds of thousands of small groups.
    """
    alike = np.ones(len(rows))
    return _first_of(cluster_boxes(rows.boxes, alike, groups, limits[rows.labels], moving=False))


def fuse_weighted(pool: Pool, limits: Floats, weights: Floats, score: FusedScore) -> Detections:
    """Weighted boxes fusion: a cluster is where the mean of its boxes, weighted by score, is at the time.

    Args:
        pool: Boxes of all members; may be empty.
        limits: (K,) IoU that a box must exceed to join a cluster.
        weights: (M, K) of each member in each category.
        score: How the scores of a cluster's boxes become its own; the formulas stand at `EnsembleConfig`.

    Returns:
        One box of each cluster, by image and category, in the order the clusters were started.

    Source:
        Solovyev et al. 2021, section 3.
    """
    rows = pool.rows
    cluster = cluster_boxes(rows.boxes, pool.scores, pool.groups, limits[rows.labels], moving=True)
    return merged(rows, cluster, pool.scores, cluster_scores(pool, cluster, weights, score))


def fuse_non_maximum(pool: Pool, limits: Floats, weights: Floats) -> Detections:
    """Non-maximum weighted: the best box draws the others and keeps its score; only its place becomes a mean.

    Args:
        pool: Boxes of all members; may be empty.
        limits: (K,) IoU with the best box that a box must exceed to join it.
        weights: (M, K) of each member in each category.

    Returns:
        As `fuse_weighted`; a box's weight in the mean is its score times its overlap with the best one.

    Source:
        Zhou et al. 2017 (CAD), as `ensemble-boxes` reads it: a box joins the best box that it overlaps most.
    """
    rows = pool.scaled(weights)
    cluster = cluster_boxes(rows.boxes, rows.scores, pool.groups, limits[rows.labels], moving=False)
    best = _first_of(cluster)
    mean_weights = rows.scores * paired_overlaps(rows.boxes, rows.boxes[best[cluster]]).iou
    return merged(rows, cluster, mean_weights, rows.scores[best])


def cluster_scores(pool: Pool, cluster: Ints, weights: Floats, score: FusedScore) -> Floats:
    """(Q,) score of each cluster; the formulas stand at `EnsembleConfig`.

    Args:
        pool: N boxes or masks, the best of each cluster first.
        cluster: (N,) cluster of each, 0..Q-1.
        weights: (M, K) of each member in each category.
        score: Which formula.
    """
    best = _first_of(cluster)
    of_label = weights[:, pool.rows.labels[best]]  # (M, Q): the members' weights in the cluster's category
    everyone = of_label.sum(axis=0)
    total = _sums(cluster, pool.scores)
    if score == "max":
        scores = pool.scores[best] / of_label.max(axis=0)
    elif score == "mean":
        count, voices = np.bincount(cluster), (of_label > 0).sum(axis=0)
        scores = total / count * np.minimum(count, voices) / everyone
    else:
        seen = np.zeros(of_label.shape, dtype=bool)
        seen[pool.members, cluster] = True
        present, own = (of_label * seen).sum(axis=0), _sums(cluster, pool.weights)
        hybrid = score == "box_and_model_mean"
        scores = total / own * present / everyone if hybrid else total / (own + everyone - present)
    limited: Floats = np.minimum(scores, 1.0)
    return limited


def merged(rows: Detections, cluster: Ints, mean_weights: Floats, scores: Floats) -> Detections:
    """One box of each cluster, the weighted mean; a single box stays as it is, to the last bit.

    A mask cannot be averaged with its box: the fused object keeps that of its best box. Further keys name or describe
    one prediction, so a mean of several has none.

    Args:
        rows: N boxes, the best of each cluster first.
        cluster: (N,) cluster of each, 0..Q-1.
        mean_weights: (N,) of the boxes in the mean.
        scores: (Q,) of the clusters.
    """
    first = _first_of(cluster)
    total = np.maximum(_sums(cluster, mean_weights), TINY)
    means = np.stack([_sums(cluster, mean_weights * edge) / total for edge in rows.boxes.T], axis=1)
    alone = np.bincount(cluster) == 1
    best = rows[first]
    if best.extra is not None:
        best.extra[~alone] = None
    return best.replace(scores=scores, boxes=np.where(alone[:, None], best.boxes, means))


def _sums(cluster: Ints, values: Floats) -> Floats:
    """(Q,) sum of the values of each cluster."""
    return np.bincount(cluster, values).astype(np.float64, copy=False)


def _first_of(cluster: Ints) -> Ints:
    """(Q,) index of the first, best box of each cluster."""
    first = np.zeros(int(cluster.max(initial=-1)) + 1, dtype=np.int64)
    first[cluster[::-1]] = np.arange(len(cluster))[::-1]
    return first
