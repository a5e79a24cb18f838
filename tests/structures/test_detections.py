"""Detections: columns and COCO results are two forms of the same rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scantling.data.coco import ReadOptions, parse_coco
from scantling.data.coco.records import to_rle
from scantling.data.detections import (
    compare_detections,
    detections_of,
    load_detections,
    results_of,
    save_detections,
)
from scantling.errors import DataError, Severity
from scantling.ops.rle import rle_decode
from scantling.structures.detections import Detections, object_column
from scantling.structures.instances import Instances
from scantling.structures.masks import RoiMasks


@pytest.fixture
def dataset(tmp_path):
    images = [
        {"id": name, "file_name": f"{name}.png", "width": 40, "height": 30} for name in ("first", "second")
    ]
    categories = [{"id": 90, "name": "bolt"}, {"id": 3, "name": "nut"}]
    content = {"images": images, "annotations": [], "categories": categories}
    return parse_coco(content, tmp_path / "set.json", tmp_path, ReadOptions())


RESULTS = [
    {"image_id": "second", "category_id": 3, "bbox": [1.5, 2.0, 4.0, 5.0], "score": 0.25},
    {"image_id": "first", "category_id": 90, "bbox": [0.0, 1.0, 10.0, 2.0], "score": 0.75},
]


def test_a_row_is_a_result_by_position_and_label(dataset):
    found = detections_of(RESULTS, dataset)
    assert found.images.tolist() == [1, 0]
    assert [dataset.class_names[label] for label in found.labels] == ["nut", "bolt"]
    assert found.boxes.tolist() == [[1.5, 2.0, 5.5, 7.0], [0.0, 1.0, 10.0, 3.0]]
    assert found.scores.tolist() == [0.25, 0.75]


def test_results_come_back_unchanged(dataset):
    assert results_of(detections_of(RESULTS, dataset), dataset) == RESULTS
    assert results_of(Detections.empty(), dataset) == []


def test_a_result_without_a_box_has_that_of_its_mask(dataset):
    mask = {"size": [30, 40], "counts": [31 * 2, 5, 30 * 40 - 31 * 2 - 5]}  # column 2, rows 2..6
    result = {"image_id": "first", "category_id": 3, "segmentation": to_rle(mask, (30, 40)), "score": 1.0}
    assert detections_of([result], dataset).boxes.tolist() == [[2.0, 2.0, 3.0, 7.0]]


def test_saved_rows_load_in_single_precision(dataset, tmp_path):
    found = detections_of(RESULTS, dataset)
    save_detections(found, tmp_path / "candidates.safetensors", views=np.array([3, 1]))
    loaded, extra = load_detections(tmp_path / "candidates.safetensors")
    assert results_of(loaded, dataset) == RESULTS  # these numbers are exact in single precision
    assert {name: column.tolist() for name, column in extra.items()} == {"views": [3, 1]}
    (tmp_path / "text.safetensors").write_text("not a file of detections")
    for name in ("text.safetensors", "missing.safetensors"):
        with pytest.raises(DataError, match=name):
            load_detections(tmp_path / name)


def test_rows_are_joined_selected_and_ordered(dataset):
    found = detections_of(RESULTS, dataset)
    both = Detections.cat([found, found[np.array([True, False])]])
    assert both.images.tolist() == [1, 0, 1]
    assert both.by_score().scores.tolist() == [0.75, 0.25, 0.25]
    assert len(Detections.cat([])) == 0
    with pytest.raises(ValueError, match=r"\(N, 4\)"):
        Detections(images=found.images, labels=found.labels, scores=found.scores, boxes=found.boxes[:, :2])


def test_row_65_files_that_belong_together_or_not(dataset):
    both = detections_of(RESULTS, dataset)
    first, second = both[:1], both[1:]

    def told(*files):
        findings = compare_detections(files, dataset.class_names)
        assert all(finding.severity is Severity.WARNING for finding in findings)
        return [(finding.file, finding.code, finding.message) for finding in findings]

    assert told(("a", both), ("b", Detections.empty())) == told(("a", both)) == []
    assert told(("a", first), ("b", both)) == [
        ("a", "results-categories-differ", "has no prediction of 'bolt', which other files have")
    ]
    assert [row[:2] for row in told(("a", first), ("b", second))] == [
        ("b", "results-disjoint"),
        ("a", "results-categories-differ"),
        ("b", "results-categories-differ"),
    ]
    reversed_rows = both[::-1]
    assert told(("a", both), ("b", reversed_rows)) == [
        ("b", "results-same-twice", "holds the same predictions as a")
    ]
    assert told(("a", both), ("b", both.replace(scores=both.scores / 2))) == []


def rle(column, rows, size_hw=(30, 40)):
    """A mask of one column."""
    before = column * size_hw[0] + rows[0]
    counts = [before, len(rows), size_hw[0] * size_hw[1] - before - len(rows)]
    return to_rle({"size": list(size_hw), "counts": counts}, size_hw)


def foreign(dataset):
    """Results with everything: a mask on one of them, keys that only another tool knows on the other."""
    first, second = RESULTS
    return [
        first | {"segmentation": rle(2, range(2, 7))},
        second | {"track": 7, "attributes": {"worn": [True]}},
    ]


def test_masks_and_keys_of_other_tools_are_carried(dataset):
    results = foreign(dataset)
    found = detections_of(results, dataset)
    assert results_of(found, dataset) == results
    assert results_of(found[::-1].by_score(), dataset) == [results[1], results[0]]
    assert results_of(found.replace(scores=found.scores / 2), dataset)[1]["track"] == 7
    bare = detections_of(RESULTS, dataset)
    joined = Detections.cat([bare, Detections.empty(), found])
    assert results_of(joined, dataset) == [*RESULTS, *results]


def test_further_keys_keep_their_order(dataset):
    """Else the bytes of a file, and so its hash, would change from process to process."""
    names = [f"key{number}" for number in range(12)]
    (result,) = results_of(detections_of([RESULTS[0] | dict.fromkeys(names, 1)], dataset), dataset)
    assert list(result)[-len(names) :] == names


def test_soft_masks_are_pasted_when_results_are_written(dataset):
    half = np.zeros((2, 4, 4), dtype=np.uint8)
    half[0, :, :2] = 255  # the left half of the box
    found = detections_of(RESULTS, dataset).replace(
        boxes=np.array([[4.0, 4.0, 12.0, 8.0], [0.0, 0.0, 8.0, 8.0]]), soft_masks=half
    )
    masks = [rle_decode(result["segmentation"]) for result in results_of(found, dataset)]
    expected = np.zeros((30, 40), dtype=bool)
    expected[4:8, 4:8] = True
    assert (masks[0] == expected).all()
    assert not masks[1].any()


def test_soft_masks_beside_none_are_refused(dataset):
    found = detections_of(RESULTS, dataset)
    with pytest.raises(ValueError, match="soft masks of one side"):
        Detections.cat([found, found.replace(soft_masks=np.zeros((2, 4, 4), dtype=np.uint8))])
    with pytest.raises(ValueError, match="soft_masks: expected uint8"):
        found.replace(soft_masks=np.zeros((1, 4, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"masks: expected \(2,\)"):
        found.replace(masks=np.zeros(3, dtype=object))


def test_rows_and_instances_are_two_forms_of_the_same(dataset):
    found = detections_of(foreign(dataset), dataset)
    row = found[found.images == 1]
    instances = Instances.from_detections(row, (30, 40))
    assert instances.masks.to_rles() == row.masks.tolist()
    again = instances.to_detections(1)
    assert results_of(again, dataset) == results_of(row, dataset)
    soft = instances.replace(masks=RoiMasks(probabilities=torch.full((1, 4, 4), 0.2)))
    assert soft.to_detections(1).soft_masks.tolist() == np.full((1, 4, 4), 51).tolist()
    assert torch.allclose(
        Instances.from_detections(soft.to_detections(1), (30, 40)).masks.probabilities, torch.tensor(0.2)
    )


@pytest.mark.parametrize("kind", ["soft", "image"])
def test_saved_rows_keep_their_masks(dataset, tmp_path, kind):
    found = detections_of(RESULTS, dataset)
    rng = np.random.default_rng(0)
    if kind == "soft":
        soft = rng.integers(0, 256, (2, 4, 4)).astype(np.uint8)
        found = found.replace(soft_masks=soft, mask_ious=np.array([0.25, 0.5]))
    else:
        found = found.replace(masks=object_column([rle(2, range(2, 7)), rle(30, range(0, 29))]))
    for rows in (slice(None), slice(0)):
        save_detections(found[rows], tmp_path / "masks.safetensors", rows=np.arange(len(found[rows])))
        loaded, extra = load_detections(tmp_path / "masks.safetensors")
        assert extra["rows"].tolist() == list(range(len(found[rows])))
        assert results_of(loaded, dataset) == results_of(found[rows], dataset)
        assert (loaded.soft_masks is not None) == (kind == "soft") == (loaded.mask_ious is not None)
        assert kind != "soft" or loaded.mask_ious.tolist() == [0.25, 0.5][rows]
    if kind == "soft":
        with pytest.raises(ValueError, match="IoUs of masks in all sets or in none"):
            Detections.cat([found, found.replace(mask_ious=None)])
    mixed = found.replace(soft_masks=None, masks=object_column([rle(2, range(2, 7)), None]))
    with pytest.raises(ValueError, match="in every row or in none"):
        save_detections(mixed, tmp_path / "masks.safetensors")
