from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch

from scantling.structures.instances import Instances
from scantling.structures.masks import ImageMasks, RoiMasks

SIZE = (40, 60)
BOXES = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 5.0, 50.0, 30.0], [1.0, 2.0, 3.0, 4.0]])
LABELS = torch.tensor([2, 0, 1])


def masks():
    dense = torch.zeros(3, *SIZE, dtype=torch.bool)
    for row, (x1, y1, x2, y2) in enumerate(BOXES.int().tolist()):
        dense[row, y1:y2, x1:x2] = True
    return ImageMasks.from_dense(dense)


def truth():
    """Ground truth with every field it can have."""
    crowd, ids = torch.tensor([False, True, False]), torch.tensor([101, 7, 2**40])
    return Instances(size_hw=SIZE, boxes=BOXES, labels=LABELS, masks=masks(), is_crowd=crowd, ids=ids)


def detections():
    soft = RoiMasks(probabilities=torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(0)))
    return Instances(
        size_hw=SIZE, boxes=BOXES, labels=LABELS, scores=torch.tensor([0.9, 0.5, 0.1]), masks=soft
    )


class TestConstruction:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"boxes": torch.zeros(3, 5)}, r"boxes: expected float32 \(3, 4\), found float32 \(3, 5\)"),
            ({"boxes": torch.zeros(3, 4, dtype=torch.float64)}, r"found float64 \(3, 4\)"),
            ({"boxes": torch.zeros(4)}, r"expected float32 \(4, 4\), found float32 \(4,\)"),
            (
                {"labels": torch.zeros(2, dtype=torch.int64)},
                r"labels: expected int64 \(3,\), found int64 \(2,\)",
            ),
            ({"labels": torch.zeros(3)}, r"labels: expected int64 \(3,\), found float32 \(3,\)"),
            ({"scores": torch.zeros(3, 1)}, r"scores: expected float32 \(3,\), found float32 \(3, 1\)"),
            ({"is_crowd": torch.zeros(3, dtype=torch.uint8)}, r"is_crowd: expected bool \(3,\), found uint8"),
            ({"ids": torch.zeros(3)}, r"ids: expected int64 \(3,\), found float32"),
            ({"masks": ImageMasks.empty(SIZE)}, r"masks: expected 3 masks \(one per box\), found 0"),
            ({"size_hw": (60, 40)}, r"masks: expected size_hw \(60, 40\), found \(40, 60\)"),
            ({"size_hw": (40, 60.0)}, r"two positive integers, found \(40, 60.0\)"),
            ({"size_hw": (0, 60)}, r"two positive integers, found \(0, 60\)"),
        ],
    )
    def test_a_wrong_field_is_refused_with_expected_and_found(self, changes, message):
        with pytest.raises(ValueError, match=message):
            truth().replace(**changes)

    def test_an_unknown_field_is_refused(self):
        with pytest.raises(TypeError, match="keypoints"):
            truth().replace(keypoints=BOXES)

    def test_nothing_can_be_changed_afterwards(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            truth().labels = LABELS
        with pytest.raises((AttributeError, TypeError)):
            truth().keypoints = BOXES

    def test_survives_a_worker_process(self):
        copy = pickle.loads(pickle.dumps(truth()))
        assert copy.masks.to_rles() == truth().masks.to_rles()
        assert copy.ids.tolist() == truth().ids.tolist()


class TestIndexing:
    @pytest.mark.parametrize(
        ("index", "rows"),
        [
            (torch.tensor([2, 0]), [2, 0]),
            (torch.tensor([1, 1, 1]), [1, 1, 1]),
            (torch.tensor([True, False, True]), [0, 2]),
            (torch.zeros(3, dtype=torch.bool), []),
            (torch.zeros(0, dtype=torch.int64), []),
            (slice(1, None), [1, 2]),
            (slice(None, None, 2), [0, 2]),
        ],
    )
    @pytest.mark.parametrize("whole", [truth(), detections()])
    def test_every_field_goes_along(self, whole, index, rows):
        part = whole[index]
        assert len(part) == len(rows)
        for name in ("boxes", "labels", "scores", "is_crowd", "ids"):
            value, original = getattr(part, name), getattr(whole, name)
            assert (value is None) == (original is None)
            assert value is None or value.tolist() == original[rows].tolist()
        if isinstance(whole.masks, ImageMasks):
            assert torch.equal(part.masks.to_dense(), whole.masks.to_dense()[rows])
        else:
            assert torch.equal(part.masks.probabilities, whole.masks.probabilities[rows])


class TestCat:
    @pytest.mark.parametrize("whole", [truth(), detections()])
    def test_joins_what_was_cut(self, whole):
        joined = Instances.cat([whole[:1], whole[1:1], whole[1:]])
        assert torch.equal(joined.boxes, whole.boxes)
        assert torch.equal(joined.labels, whole.labels)
        assert (joined.scores is None) == (whole.scores is None)
        assert (joined.ids is None) == (whole.ids is None)
        assert type(joined.masks) is type(whole.masks)
        if isinstance(whole.masks, ImageMasks):
            assert joined.masks.to_rles() == whole.masks.to_rles()

    def test_sets_without_objects_do_not_decide_the_kind_of_mask(self):
        none = Instances.empty(SIZE, scored=True, with_masks=True)
        assert isinstance(none.masks, ImageMasks)
        assert isinstance(Instances.cat([none, detections()]).masks, RoiMasks)
        assert isinstance(Instances.cat([none, none]).masks, ImageMasks)

    def test_what_does_not_belong_together_is_refused(self):
        with pytest.raises(ValueError, match=r"\[\(40, 60\), \(60, 40\)\]"):
            Instances.cat([Instances.empty(SIZE, scored=True), Instances.empty((60, 40), scored=True)])
        with pytest.raises(ValueError, match="scores in all 2 sets or in none, missing in 1"):
            Instances.cat([detections(), detections().replace(scores=None)])
        with pytest.raises(ValueError, match="masks of one kind"):
            Instances.cat([detections(), detections().replace(masks=masks())])
        with pytest.raises(ValueError, match="expected one frame"):
            Instances.cat([])


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("with_masks", [True, False])
def test_empty(scored, with_masks):
    none = Instances.empty(SIZE, scored=scored, with_masks=with_masks)
    assert (len(none), none.boxes.shape, none.labels.dtype) == (0, (0, 4), torch.int64)
    assert (none.scores is not None, none.masks is not None) == (scored, with_masks)
    assert len(none[torch.zeros(0, dtype=torch.bool)]) == 0


def test_to_moves_every_tensor():
    moved = detections().to("meta")
    devices = {moved.boxes.device.type, moved.labels.device.type, moved.scores.device.type}
    assert devices | {moved.masks.probabilities.device.type} == {"meta"}
    assert truth().to("meta").masks.to_rles() == masks().to_rles()  # image masks stay in main memory
