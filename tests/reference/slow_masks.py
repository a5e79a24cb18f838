"""Masks of an image matched, voted on and fused with foreground as it is told: dense, one pixel at a time."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt


def iou(one, other):
    """Overlap of two dense masks."""
    union = np.logical_or(one, other).sum()
    return np.logical_and(one, other).sum() / union if union else 0.0


def vote(instances, limit, share, *, keeps_duplicates):
    """Lists of instances (score, member, mask) that vote together, best first, with the mask of each.

    The instances are of one image and category, their scores weighted.
    """
    ordered = sorted(instances, key=lambda one: -one[0])
    if not keeps_duplicates:
        kept = []
        for one in ordered:
            if not any(one[1] == other[1] and iou(one[2], other[2]) > limit for other in kept):
                kept.append(one)
        ordered = kept
    clusters = []
    for one in ordered:
        overlaps = [iou(cluster[0][2], one[2]) for cluster in clusters]
        if max(overlaps, default=0) > limit:
            clusters[int(np.argmax(overlaps))].append(one)
        else:
            clusters.append([one])
    found = []
    for cluster in clusters:
        total = sum(score * mask for score, _, mask in cluster)
        mask = total >= share * sum(score for score, _, _ in cluster) - 1e-12
        found.append((cluster, cluster[0][2] if len(cluster) == 1 else mask))
    return found


def fuse(masks, boxes, scores, foreground, mode, threshold):
    """New masks of the instances of an image whose foreground is the same for all categories."""
    height, width = foreground.shape
    y, x = np.mgrid[:height, :width] + 0.5
    fused = [i for i in range(len(masks)) if scores[i] > threshold]
    claimed, far = {}, {}
    for i in fused:
        x1, y1, x2, y2 = boxes[i]
        claimed[i] = foreground & (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
        far[i] = distance_transform_edt(~masks[i]) if masks[i].any() else np.full((height, width), np.inf)
    won = {i: np.zeros((height, width), dtype=bool) for i in fused}
    for row in range(height):
        for column in range(width):
            claims = [i for i in fused if claimed[i][row, column]]
            if claims:
                best = min(claims, key=lambda i: (round(float(far[i][row, column]), 4), -scores[i], i))
                won[best][row, column] = True
    found = list(masks)
    for i in fused:
        new = {"union": masks[i] | won[i], "replace": won[i], "intersect": masks[i] & claimed[i]}[mode]
        found[i] = new if new.any() else masks[i]
    return found
