"""Suppression written as it is told: one box at a time, nothing vectorised, nothing clever. float32 throughout."""

from __future__ import annotations

import numpy as np

ZERO, ONE = np.float32(0), np.float32(1)


def iou(a, b):
    """Overlap of two boxes (x1, y1, x2, y2)."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), ZERO)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), ZERO)
    inter = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else ZERO


def best_of(indices, scores):
    """Highest score; at equal scores the lowest index."""
    return min(indices, key=lambda i: (-scores[i], i))


def hard_nms(boxes, scores, groups, thresholds):
    """Kept indices in order of falling score; `thresholds[group]` per group."""
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    waiting, kept = set(range(len(boxes))), []
    while waiting:
        best = best_of(waiting, scores)
        kept.append(best)
        limit = thresholds[groups[best]]
        same = {i for i in waiting if groups[i] == groups[best] and iou(boxes[best], boxes[i]) > limit}
        waiting -= {best} | same
    return kept


def soft_nms(boxes, scores, groups, *, method, thresholds, sigma, min_score):
    """Kept indices in order of falling new score, and all scores as they ended."""
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32).copy()
    waiting, kept = set(range(len(boxes))), []
    while True:
        waiting = {i for i in waiting if scores[i] >= np.float32(min_score) and scores[i] > 0}
        if not waiting:
            return kept, scores
        best = best_of(waiting, scores)
        waiting.remove(best)
        kept.append(best)
        for i in waiting:
            if groups[i] == groups[best]:
                overlap = iou(boxes[best], boxes[i])
                if method == "gaussian":
                    scores[i] *= np.exp(-overlap * overlap / np.float32(sigma))
                elif overlap > np.float32(thresholds[groups[best]]):
                    scores[i] *= ONE - overlap


def suppress(boxes, scores, labels, images, settings, max_per_image=None):
    """Algorithm 1 for every image and category: kept indices and scores, image by image, best first.

    `settings[label]` holds method, iou_threshold, sigma and min_score of a category.
    """
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    found = []
    for image in sorted(set(images)):
        kept = []
        for label in sorted(set(labels)):
            rows = [i for i in range(len(boxes)) if images[i] == image and labels[i] == label]
            given = settings[label]
            mine, theirs = boxes[rows], scores[rows]
            alone, final = [0] * len(rows), theirs
            if given["method"] == "none":
                stays = range(len(rows))
            elif given["method"] == "hard":
                stays = hard_nms(mine, theirs, alone, [given["iou_threshold"]])
            else:
                stays, final = soft_nms(
                    mine,
                    theirs,
                    alone,
                    method=given["method"].removeprefix("soft_"),
                    thresholds=[given["iou_threshold"]],
                    sigma=given["sigma"],
                    min_score=given["min_score"],
                )
            kept += [(rows[i], final[i]) for i in stays]
        found += sorted(kept, key=lambda pair: (-pair[1], pair[0]))[:max_per_image]
    return [i for i, _ in found], [float(score) for _, score in found]
