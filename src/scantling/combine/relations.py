"""What training annotations say about categories together: how far they overlap, and how many there are.

    annotations ─► per image and ordered pair of categories: largest IoU, largest share of the one inside the other
                └► per image and category: number of objects

For each pair the relations of all images that show both are put together, zeros included, so that "never" has a
number of images behind it. K: categories, N: objects, P: pairs of objects, Q: pairs of categories of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.records import labels_by_name, told_apart
from scantling.data.truths import Truths, truths_of
from scantling.errors import DataError
from scantling.ops.overlaps import paired_overlaps, pairs_of_keys, xywh_to_xyxy

_MAX_PAIRS = 1_000_000  # compared at once

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Relations:
    """What occurs in a data set.

    Attributes:
        class_names: K names.
        iou: (K, K) largest IoU of objects of two categories; 0 where they never meet.
        inside: (K, K) largest share of an object (row) that is inside one object of another category (column).
        support: (K, K) images that show both; 0 on the diagonal, which is suppression's matter.
        most: (K,) most objects of a category in one image.
        seen: (K,) images that show a category; 0 for one with a crowd region, whose objects are not counted.
    """

    class_names: tuple[str, ...]
    iou: Floats
    inside: Floats
    support: Ints
    most: Ints
    seen: Ints

    def ordered(self, class_names: Sequence[str]) -> Relations:
        """The relations of these categories, in this order.

        Raises:
            DataError: One of them is not among the categories learned from; by name, never by number.
        """
        known, names = labels_by_name(self.class_names), told_apart(class_names)
        unknown = [name for name in names if name not in known]
        if unknown:
            raise DataError(
                f"the training annotations have no categories {unknown}",
                hint=f"Theirs are {list(self.class_names)}.",
            )
        order = [known[name] for name in names]
        return Relations(
            class_names=tuple(class_names),
            iou=self.iou[np.ix_(order, order)],
            inside=self.inside[np.ix_(order, order)],
            support=self.support[np.ix_(order, order)],
            most=self.most[order],
            seen=self.seen[order],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file."""
        lists = {key: getattr(self, key).tolist() for key in ("iou", "inside", "support", "most", "seen")}
        return {"class_names": list(self.class_names), **lists}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave.

        Raises:
            DataError: These are no relations.
        """
        try:
            return cls(
                class_names=tuple(values["class_names"]),
                iou=np.array(values["iou"], dtype=np.float64),
                inside=np.array(values["inside"], dtype=np.float64),
                support=np.array(values["support"], dtype=np.int64),
                most=np.array(values["most"], dtype=np.int64),
                seen=np.array(values["seen"], dtype=np.int64),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not the relations of categories ({error})") from error


def relations_of(dataset: CocoDataset, *, quantile: float = 1.0) -> Relations:
    """Look at all objects of a data set; crowd regions are no objects.

    Args:
        dataset: Boxes as in the file; without any, nothing has support.
        quantile: Share of the images below the value that counts as occurring: 1 takes the largest of all images,
            a little less leaves out what a few wrong labels say.
    """
    truths = truths_of(dataset)
    objects = truths[truths.is_object]
    images, labels, boxes = objects.images, objects.labels, xywh_to_xyxy(objects.boxes_xywh)
    num_classes = len(dataset.categories)
    shape = (num_classes, num_classes)
    rows = [
        _largest_per_image(images, labels, boxes, part, num_classes)
        for part in pairs_of_keys(images, images, together=True)
    ]
    pair = np.concatenate([np.zeros(0, dtype=np.int64), *(found[0] for found in rows)])
    values = np.concatenate([np.zeros((0, 2)), *(found[1] for found in rows)])
    support = np.bincount(pair, minlength=num_classes**2).reshape(shape)
    most, seen = _counts(truths, num_classes)
    return Relations(
        class_names=dataset.class_names,
        iou=_quantiles(pair, values[:, 0], quantile, num_classes**2).reshape(shape),
        inside=_quantiles(pair, values[:, 1], quantile, num_classes**2).reshape(shape),
        support=support,
        most=most,
        seen=seen,
    )


def _largest_per_image(
    images: Ints, labels: Ints, boxes: Floats, pair: tuple[Ints, Ints], num_classes: int
) -> tuple[Ints, Floats]:
    """Pair of categories (Q,) and largest IoU and share inside (Q, 2), of each pair that an image shows."""
    one, other = (index[labels[pair[0]] != labels[pair[1]]] for index in pair)
    keys = (images[one] * num_classes + labels[one]) * num_classes + labels[other]
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    iou, inside, _ = paired_overlaps(boxes[one[order]], boxes[other[order]])
    values = np.stack([iou, inside], axis=1)
    largest = np.maximum.reduceat(values, starts) if len(starts) else values
    return keys[starts] % num_classes**2, largest


def _quantiles(groups: Ints, values: Floats, quantile: float, num_groups: int) -> Floats:
    """The value of each group at or below which that share of its values lies; 0 for an empty group."""
    order = np.lexsort((values, groups))
    first = np.searchsorted(groups[order], np.arange(num_groups), side="left")
    counts = np.searchsorted(groups[order], np.arange(num_groups), side="right") - first
    index = first + np.ceil(quantile * np.maximum(counts - 1, 0)).astype(np.int64)
    found = np.zeros(num_groups)
    found[counts > 0] = values[order][index[counts > 0]]
    return found


def _counts(truths: Truths, num_classes: int) -> tuple[Ints, Ints]:
    """Most objects of each category in one image, and the images that show it."""
    objects = truths[truths.is_object]
    keys, counts = np.unique(objects.images * num_classes + objects.labels, return_counts=True)
    most = np.zeros(num_classes, dtype=np.int64)
    np.maximum.at(most, keys % num_classes, counts)
    seen = np.bincount(keys % num_classes, minlength=num_classes)
    seen[truths.labels[~truths.is_object]] = 0
    return most, seen
