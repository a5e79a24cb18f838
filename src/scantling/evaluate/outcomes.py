"""What became of every detection, at every IoU threshold and object size, in arrays.

Whatever is computed again and again from one matching, such as resampled averages, starts here; and so does what
needs many matchings of the same boxes, such as a search over thresholds (`PairedInputs`).

Dims: D detections, G truths, A area ranges, T IoU thresholds, I images, K categories, N candidates, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from scantling.data.truths import Truths
from scantling.evaluate.backends import IOU_THRESHOLDS
from scantling.evaluate.inputs import EvalInputs
from scantling.evaluate.pairs import NONE, best_first, by_preference, match_pairs
from scantling.ops.overlaps import Flags, Floats, Ints, Pairs, find_pairs

AREA_RANGES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatchedDetections:
    """Matched detections, and the truths to be found.

    Attributes:
        num_images: I.
        num_classes: K.
        labels: (D,) category of each detection, ascending.
        images: (D,) position of its image.
        scores: (D,) descending within a category; of equal scores the earlier image first.
        is_hit: (D, A, T) whether it finds a truth of that size.
        is_counted: (D, A, T) whether it counts at all: not on what is ignored, nor beyond that size.
        truth_labels: (G,) category of each truth.
        truth_images: (G,) position of its image.
        truth_counts: (G, A) whether it is to be found: an object that counts, of that size.
    """

    num_images: int
    num_classes: int
    labels: Ints
    images: Ints
    scores: Floats
    is_hit: Flags
    is_counted: Flags
    truth_labels: Ints
    truth_images: Ints
    truth_counts: Flags


def match_outcomes(inputs: EvalInputs, *, max_detections: int = 100) -> MatchedDetections:
    """Match every detection at all ten IoU thresholds and four area ranges.

    Args:
        inputs: Truth and detections; none of either gives empty arrays.
        max_detections: Detections kept per image and category, best first.
    """
    kept = inputs[best_first(inputs.keys, inputs.detections.scores, max_detections)]
    everything = np.arange(len(kept.detections))
    return PairedInputs.of(kept).matched(everything, kept.detections.scores, AREA_RANGES)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairedInputs:
    """Detections of which many selections and scores are to be matched; overlaps with the truths are computed once.

    Attributes:
        inputs: N candidates in the order given, and truths.
        areas: (N,) size of each candidate.
        truths: G truths by image and category, those of one in the data set's order.
        pairs: Candidates and truths that overlap enough to match, by preference.
    """

    inputs: EvalInputs
    areas: Floats
    truths: Truths
    pairs: Pairs

    @classmethod
    def of(cls, inputs: EvalInputs) -> Self:
        """Find what overlaps, boxes or masks; none of either is fine."""
        order = np.argsort(inputs.truth_keys, kind="stable")
        truths = inputs.truths[order]
        pairs = find_pairs(
            inputs.keys,
            inputs.shapes,
            inputs.truth_keys[order],
            inputs.truth_shapes[order],
            is_crowd=truths.is_crowd,
            at_least=float(IOU_THRESHOLDS[0]),
        )
        return cls(inputs=inputs, areas=inputs.areas, truths=truths, pairs=by_preference(pairs))

    def outcomes(self, rows: Ints, scores: Floats, *, max_detections: int = 100) -> MatchedDetections:
        """Match a selection at all ten IoU thresholds, of objects of any size (A = 1).

        Args:
            rows: (D,) which candidates; may be empty. Of equal scores the earlier row ranks first.
            scores: (D,) of each.
            max_detections: Detections kept per image and category, best first.
        """
        order = best_first(self.inputs.keys[rows], scores, max_detections)
        return self.matched(rows[order], scores[order], AREA_RANGES[:1])

    def matched(self, rows: Ints, scores: Floats, area_ranges: Floats) -> MatchedDetections:
        """Match some candidates with these scores.

        Args:
            rows: (D,) which candidates, by image and category and falling score.
            scores: (D,) of each.
            area_ranges: (A, 2) smallest and largest size of objects that count.
        """
        truths, found = self.truths, self.inputs.detections
        images, labels = found.images[rows], found.labels[rows]
        truth_ignored = ~truths.is_object[:, None] | _outside(truths.areas, area_ranges)  # (G, A)
        chosen = match_pairs(
            self._pairs_of(rows), self.inputs.keys[rows], truth_ignored, ~truths.is_object, IOU_THRESHOLDS
        )  # (D, A, T)
        is_matched, on_ignored = chosen != NONE, np.zeros(chosen.shape, dtype=bool)
        row, area, threshold = np.nonzero(is_matched)
        on_ignored[row, area, threshold] = truth_ignored[chosen[row, area, threshold], area]
        is_ignored = on_ignored | (~is_matched & _outside(self.areas[rows], area_ranges)[:, :, None])
        ranking = np.lexsort((images, -scores, labels))
        return MatchedDetections(
            num_images=self.inputs.num_images,
            num_classes=self.inputs.num_classes,
            labels=labels[ranking],
            images=images[ranking],
            scores=scores[ranking],
            is_hit=(is_matched & ~on_ignored)[ranking],
            is_counted=~is_ignored[ranking],
            truth_labels=truths.labels,
            truth_images=truths.images,
            truth_counts=~truth_ignored,
        )

    def _pairs_of(self, rows: Ints) -> Pairs:
        """The pairs of some candidates, which are numbered anew."""
        first = np.searchsorted(self.pairs.first, rows, side="left")
        counts = np.searchsorted(self.pairs.first, rows, side="right") - first
        detections = np.repeat(np.arange(len(rows)), counts)
        starts = np.cumsum(counts) - counts
        index = np.repeat(first - starts, counts) + np.arange(len(detections))
        return Pairs(detections, self.pairs.second[index], self.pairs.iou[index])


def _outside(areas: Floats, area_ranges: Floats) -> Flags:
    """(N, A) whether an object is beyond each size."""
    return (areas[:, None] < area_ranges[:, 0]) | (areas[:, None] > area_ranges[:, 1])
