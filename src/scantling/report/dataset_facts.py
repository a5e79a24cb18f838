"""Facts about a data set for its page in the report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import chain

from scantling.data.coco import CocoDataset
from scantling.data.coco.records import told_apart
from scantling.report.content import DatasetFacts, GalleryItem, SizeHistogram, SplitFacts

_BINS_PER_OCTAVE = 4


def describe_dataset(
    splits: Mapping[str, CocoDataset], *, samples: tuple[GalleryItem, ...] = ()
) -> DatasetFacts:
    """Counts, box sizes and findings of all splits; categories are matched by name.

    Args:
        splits: Data sets by split name (`train`, `val`), at least one.
        samples: Pictures to show.
    """
    class_names = tuple(dict.fromkeys(chain(*(dataset.class_names for dataset in splits.values()))))
    sizes = [size for dataset in splits.values() for size in _sizes(dataset)]
    return DatasetFacts(
        class_names=class_names,
        splits=tuple(_split_facts(name, dataset, class_names) for name, dataset in splits.items()),
        sizes=histogram(sizes),
        findings=tuple(finding for dataset in splits.values() for finding in dataset.findings),
        samples=samples,
    )


def histogram(sizes: list[float]) -> SizeHistogram:
    """Count sizes in quarter-octave bins that cover them; no sizes give one empty bin."""
    positive = [math.log2(size) for size in sizes if size > 0]
    low = math.floor(min(positive, default=0.0))
    high = max(math.floor(max(positive, default=0.0)) + 1, low + 1)
    num_bins = (high - low) * _BINS_PER_OCTAVE
    counts = Counter(math.floor((value - low) * _BINS_PER_OCTAVE) for value in positive)
    return SizeHistogram(
        edges=tuple(2.0 ** (low + index / _BINS_PER_OCTAVE) for index in range(num_bins + 1)),
        counts=tuple(counts[index] for index in range(num_bins)),
    )


def _sizes(dataset: CocoDataset) -> list[float]:
    return [math.sqrt(a.box_xywh[2] * a.box_xywh[3]) for a in chain(*dataset.annotations) if a.is_object]


def _split_facts(name: str, dataset: CocoDataset, class_names: tuple[str, ...]) -> SplitFacts:
    objects = [[a for a in annotations if a.is_object] for annotations in dataset.annotations]
    names = told_apart(dataset.class_names)
    counts = Counter(names[annotation.label] for annotation in chain(*objects))
    num_objects = counts.total()
    return SplitFacts(
        name=name,
        num_images=len(dataset.images),
        num_objects=num_objects,
        num_crowd=dataset.num_annotations - num_objects,
        num_empty_images=sum(not found for found in objects),
        per_category=tuple(counts[class_name] for class_name in told_apart(class_names)),
    )
