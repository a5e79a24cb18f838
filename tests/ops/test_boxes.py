from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from scantling.ops.boxes import (
    MAX_LOG_SCALE,
    box_area,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    enlarge_boxes,
    flip_boxes,
    paired_iou,
    pairwise_intersection,
    pairwise_iou,
    transform_boxes,
)

KINDS = ("iou", "giou", "diou", "ciou")
coordinate = st.floats(-500, 500, width=32)
side = st.floats(1, 300, width=32)


@st.composite
def boxes_of(draw, count=None):
    """(N, 4) boxes with sides of at least one pixel."""
    rows = draw(
        st.lists(st.tuples(coordinate, coordinate, side, side), min_size=count or 1, max_size=count or 8)
    )
    boxes_xywh = torch.tensor(rows, dtype=torch.float32)
    return torch.cat([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], dim=1)


def random_boxes(count, seed, size=100.0):
    generator = torch.Generator().manual_seed(seed)
    wh = torch.rand(count, 2, generator=generator) * size * 0.5 + 1
    low = torch.rand(count, 2, generator=generator) * size
    return torch.cat([low, low + wh], dim=1)


class TestArea:
    def test_width_is_x2_minus_x1(self):
        assert box_area(torch.tensor([[1.0, 2.0, 4.0, 6.0], [0.0, 0.0, 1.0, 1.0]])).tolist() == [12.0, 1.0]

    def test_a_box_reversed_in_both_axes_has_none(self):
        assert box_area(torch.tensor([[4.0, 6.0, 1.0, 2.0]])).tolist() == [0.0]


class TestOverlap:
    # a and b share one pixel of seven; their hull is 3 x 3, their centres lie sqrt(2) apart on a diagonal of sqrt(18)
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    b = torch.tensor([[1.0, 1.0, 3.0, 3.0]])

    @pytest.mark.parametrize(
        ("kind", "value"),
        [("iou", 1 / 7), ("giou", 1 / 7 - 2 / 9), ("diou", 1 / 7 - 2 / 18), ("ciou", 1 / 7 - 2 / 18)],
    )
    def test_hand_derived_squares(self, kind, value):
        assert paired_iou(self.a, self.b, kind).item() == pytest.approx(value, abs=1e-7)

    def test_ciou_hand_derived_for_a_lying_and_a_standing_box(self):
        lying, standing = torch.tensor([[0.0, 0.0, 2.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0, 2.0]])
        v = 4 / math.pi**2 * (math.atan(1 / 2) - math.atan(2 / 1)) ** 2
        alpha = v / (1 - 1 / 3 + v)
        expected = 1 / 3 - 0.5 / 8 - alpha * v
        assert paired_iou(lying, standing, "ciou").item() == pytest.approx(expected, abs=1e-6)

    def test_pairwise_hand_derived(self):
        assert pairwise_intersection(self.a, self.b).item() == 1.0
        assert pairwise_iou(self.a, torch.cat([self.a, self.b])).tolist()[0] == pytest.approx([1.0, 1 / 7])

    def test_boxes_that_touch_do_not_overlap(self):
        assert pairwise_iou(self.a, torch.tensor([[2.0, 0.0, 4.0, 2.0]])).item() == 0.0

    @pytest.mark.parametrize("kind", KINDS)
    def test_agrees_with_torchvision(self, kind):
        a, b = random_boxes(40, 1), random_boxes(40, 2)
        name = {
            "iou": "box_iou",
            "giou": "generalized_box_iou",
            "diou": "distance_box_iou",
            "ciou": "complete_box_iou",
        }
        expected = getattr(torchvision.ops, name[kind])(a, b).diagonal()
        torch.testing.assert_close(paired_iou(a, b, kind), expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
    def test_gradients_agree_with_torchvision(self, kind):
        """CIoU's trade-off weight must be a constant for the gradient."""
        name = {"giou": "generalized", "diou": "distance", "ciou": "complete"}[kind]
        ours, theirs = random_boxes(40, 1).requires_grad_(), random_boxes(40, 1).requires_grad_()
        target = random_boxes(40, 2)
        (1 - paired_iou(ours, target, kind)).sum().backward()
        getattr(torchvision.ops, f"{name}_box_iou_loss")(theirs, target, reduction="sum").backward()
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)

    def test_pairwise_agrees_with_torchvision(self):
        a, b = random_boxes(30, 3), random_boxes(50, 4)
        torch.testing.assert_close(pairwise_iou(a, b), torchvision.ops.box_iou(a, b))

    @given(boxes_of(4), boxes_of(4))
    def test_symmetric_and_within_bounds(self, a, b):
        lowest = {"iou": 0.0, "giou": -1.0, "diou": -1.0, "ciou": -2.0}
        for kind in KINDS:
            value = paired_iou(a, b, kind)
            torch.testing.assert_close(value, paired_iou(b, a, kind), atol=1e-5, rtol=1e-5)
            assert ((value >= lowest[kind] - 1e-5) & (value <= 1 + 1e-5)).all()
        torch.testing.assert_close(pairwise_iou(a, b), pairwise_iou(b, a).T)
        torch.testing.assert_close(pairwise_iou(a, b).diagonal(), paired_iou(a, b))

    @given(boxes_of())
    def test_a_box_agrees_with_itself(self, boxes):
        for kind in KINDS:
            torch.testing.assert_close(
                paired_iou(boxes, boxes, kind), torch.ones(len(boxes)), atol=1e-5, rtol=0
            )

    @pytest.mark.parametrize("kind", KINDS)
    def test_degenerate_boxes_give_finite_values_and_gradients(self, kind):
        a = torch.tensor(
            [[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 4.0], [3.0, 3.0, 1.0, 1.0]], requires_grad=True
        )
        b = torch.tensor([[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 2.0, 2.0]])
        value = paired_iou(a, b, kind)
        value.sum().backward()
        assert value.isfinite().all()
        assert a.grad is not None
        assert a.grad.isfinite().all()

    @pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
    def test_disjoint_boxes_are_pulled_together(self, kind):
        a = torch.tensor([[0.0, 0.0, 2.0, 2.0]], requires_grad=True)
        paired_iou(a, torch.tensor([[10.0, 0.0, 12.0, 2.0]]), kind).sum().backward()
        assert a.grad is not None
        assert a.grad[0, 0] + a.grad[0, 2] > 0

    def test_half_precision_areas_do_not_overflow(self):
        large = torch.tensor([[0.0, 0.0, 400.0, 400.0]]).half()  # 160000 is beyond float16
        assert pairwise_iou(large, large / 2).item() == pytest.approx(0.25)
        assert paired_iou(large, large / 2).item() == pytest.approx(0.25)

    def test_wrong_arguments_say_what_was_found(self):
        with pytest.raises(ValueError, match=r"\(2, 4\), \(3, 4\)"):
            paired_iou(torch.zeros(2, 4), torch.zeros(3, 4))
        with pytest.raises(ValueError, match="found 'iuo'"):
            paired_iou(torch.zeros(2, 4), torch.zeros(2, 4), "iuo")


class TestDeltas:
    reference = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    target = torch.tensor(
        [[5.0, 5.0, 25.0, 15.0]]
    )  # centre 10 to the right (one width), twice as wide, half as high

    def test_encode_hand_derived(self):
        expected = [1.0, 0.0, math.log(2), math.log(0.5)]
        assert encode_boxes(self.reference, self.target)[0].tolist() == pytest.approx(expected, abs=1e-6)

    def test_stds_divide(self):
        expected = [10.0, 0.0, math.log(2) / 0.2, math.log(0.5) / 0.2]
        deltas = encode_boxes(self.reference, self.target, (0.1, 0.1, 0.2, 0.2))
        assert deltas[0].tolist() == pytest.approx(expected, abs=1e-5)

    def test_decode_hand_derived(self):
        deltas = torch.tensor([[10.0, 0.0, math.log(2) / 0.2, math.log(0.5) / 0.2]])
        decoded = decode_boxes(self.reference, deltas, (0.1, 0.1, 0.2, 0.2))
        torch.testing.assert_close(decoded, self.target)

    def test_decode_clips_into_the_image(self):
        decoded = decode_boxes(self.reference, torch.tensor([[1.0, 0.0, math.log(2), 0.0]]), size_hw=(18, 22))
        assert decoded[0].tolist() == pytest.approx([5.0, 0.0, 22.0, 18.0])

    def test_wild_deltas_grow_and_shrink_a_side_by_at_most_62_5(self):
        decoded = decode_boxes(self.reference, torch.tensor([[0.0, 0.0, 1000.0, -1000.0]]))[0]
        assert (decoded[2] - decoded[0]).item() == pytest.approx(10 * 62.5, rel=1e-5)
        assert (decoded[3] - decoded[1]).item() == pytest.approx(20 / 62.5, rel=1e-4)

    def test_boxes_without_extent_encode_to_finite_numbers(self):
        flat = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
        assert encode_boxes(flat, self.target).isfinite().all()
        assert encode_boxes(self.reference, flat).isfinite().all()

    def test_one_delta_per_class_broadcasts_over_the_references(self):
        references, deltas = (
            random_boxes(5, 1),
            torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0)),
        )
        together = decode_boxes(references[:, None], deltas)
        assert together.shape == (5, 3, 4)
        torch.testing.assert_close(together[:, 1], decode_boxes(references, deltas[:, 1]))

    @given(boxes_of(6), boxes_of(6), st.floats(0.03, 1))
    def test_decode_undoes_encode(self, references, targets, std):
        ratio = (targets[:, 2:] - targets[:, :2]) / (references[:, 2:] - references[:, :2])
        inside = (ratio.log().abs() < MAX_LOG_SCALE).all(dim=1)
        stds = (std, std, 2 * std, 2 * std)
        back = decode_boxes(references, encode_boxes(references, targets, stds), stds)
        torch.testing.assert_close(back[inside], targets[inside], atol=0.02, rtol=1e-4)


class TestCoordinates:
    def test_clip(self):
        boxes = torch.tensor([[-5.0, -5.0, 50.0, 50.0], [60.0, 60.0, 70.0, 70.0], [1.0, 2.0, 3.0, 4.0]])
        clipped = clip_boxes(boxes, (20, 30))
        assert clipped.tolist() == [[0.0, 0.0, 30.0, 20.0], [30.0, 20.0, 30.0, 20.0], [1.0, 2.0, 3.0, 4.0]]

    def test_enlarge(self):
        grown = enlarge_boxes(torch.tensor([[0.0, 10.0, 10.0, 14.0]]), 1.5)
        assert grown.tolist() == [[-2.5, 9.0, 12.5, 15.0]]

    def test_flip(self):
        assert flip_boxes(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), 10).tolist() == [[6.0, 2.0, 9.0, 8.0]]

    @given(boxes_of(), st.integers(1, 2000))
    def test_flip_is_its_own_inverse(self, boxes, width):
        torch.testing.assert_close(flip_boxes(flip_boxes(boxes, width), width), boxes, atol=1e-3, rtol=0)

    def test_a_quarter_turn_keeps_boxes_tight(self):
        turn = np.array([[0.0, -1.0, 20.0], [1.0, 0.0, 0.0]])  # 20 rows high, clockwise
        assert transform_boxes(torch.tensor([[1.0, 2.0, 5.0, 8.0]]), turn).tolist() == [
            [12.0, 1.0, 18.0, 5.0]
        ]

    def test_half_a_quarter_turn_gives_the_hull(self):
        c = math.sqrt(0.5)
        rotated = transform_boxes(
            torch.tensor([[-1.0, -1.0, 1.0, 1.0]]), np.array([[c, -c, 0.0], [c, c, 0.0]])
        )
        r = math.sqrt(2)
        assert rotated[0].tolist() == pytest.approx([-r, -r, r, r], abs=1e-6)


def test_no_boxes_give_empty_results_that_still_carry_gradients():
    none = torch.zeros(0, 4, requires_grad=True)
    some = torch.rand(3, 4)
    assert pairwise_iou(none, some).shape == (0, 3)
    assert pairwise_iou(some, none).shape == (3, 0)
    matrix = np.eye(2, 3)
    results = [paired_iou(none, none, kind) for kind in KINDS]
    results += [
        encode_boxes(none, none),
        decode_boxes(none, none, size_hw=(5, 5)),
        transform_boxes(none, matrix),
    ]
    results += [
        flip_boxes(none, 5),
        enlarge_boxes(none, 1.3),
        clip_boxes(none, (5, 5)),
        box_area(none),
    ]
    assert [len(result) for result in results] == [0] * len(results)
    sum(result.sum() for result in results).backward()
    assert none.grad is not None
