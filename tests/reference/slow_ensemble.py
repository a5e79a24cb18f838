"""Fusion of boxes written as it is told: one box at a time, nothing vectorised. float64 throughout."""

from __future__ import annotations

from typing import NamedTuple


class Box(NamedTuple):
    """A weighted box of one image and category."""

    score: float  # times the weight
    weight: float
    member: int
    xyxy: tuple[float, float, float, float]


def iou(a, b):
    """Overlap of two boxes (x1, y1, x2, y2)."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    inter = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def in_order(boxes):
    """Best first; at equal scores by place and then by member."""
    return sorted(boxes, key=lambda box: (-box.score, box.xyxy, box.member))


def mean(boxes, weights):
    """Weighted mean of some boxes."""
    if len(boxes) == 1:
        return boxes[0].xyxy
    pairs = list(zip(boxes, weights, strict=True))
    return tuple(sum(w * box.xyxy[i] for box, w in pairs) / sum(weights) for i in range(4))


def clusters(boxes, limit, *, moving):
    """Lists of boxes that belong together, in the order they were started."""
    found = []
    for box in in_order(boxes):
        places = [mean(c, [b.score for b in c]) if moving else c[0].xyxy for c in found]
        overlaps = [iou(place, box.xyxy) for place in places]
        best = max(overlaps, default=0.0)
        if best > limit:
            found[overlaps.index(best)].append(box)
        else:
            found.append([box])
    return found


def weighted_boxes_fusion(boxes, limit, weights, score):
    """(score, box) of each cluster; `weights` are those of all members in this category."""
    members = [w for w in weights if w > 0]
    result = []
    for cluster in clusters(boxes, limit, moving=True):
        total, own, n = sum(b.score for b in cluster), sum(b.weight for b in cluster), len(cluster)
        present = sum(weights[m] for m in {b.member for b in cluster})
        value = {
            "mean": total / n * min(n, len(members)) / sum(members),
            "max": max(b.score for b in cluster) / max(members),
            "box_and_model_mean": total / own * present / sum(members),
            "absent_model_aware_mean": total / (own + sum(members) - present),
        }[score]
        result.append((min(value, 1.0), mean(cluster, [b.score for b in cluster])))
    return result


def non_maximum_weighted(boxes, limit):
    """(score, box) of each cluster."""
    result = []
    for cluster in clusters(boxes, limit, moving=False):
        weights = [b.score * iou(b.xyxy, cluster[0].xyxy) for b in cluster]
        result.append((cluster[0].score, mean(cluster, weights)))
    return result
