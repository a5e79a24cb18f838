from __future__ import annotations

import torch

from scantling.models.assign import IGNORED, NEGATIVE, AssignConfig, SampleConfig, assign, sample

RPN = AssignConfig(positive_iou=0.7, negative_iou=0.3, low_quality_iou=0.3)


def boxes(*rows: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def test_thresholds_by_hand() -> None:
    truth = boxes((0, 0, 10, 10))
    references = boxes((0, 0, 10, 10), (0, 0, 10, 7), (0, 0, 10, 5), (0, 0, 10, 2), (50, 50, 60, 60))
    # IoU 1, 0.7, 0.5, 0.2, 0
    found = assign(references, truth, AssignConfig(positive_iou=0.7, negative_iou=0.3))
    assert found.tolist() == [0, 0, IGNORED, NEGATIVE, NEGATIVE]


def test_a_truth_no_anchor_fits_claims_its_best_ones_ties_included() -> None:
    truth = boxes((0, 0, 10, 10))
    references = boxes((0, 0, 10, 4), (0, 6, 10, 10), (0, 0, 10, 3.5), (90, 90, 99, 99))
    assert assign(references, truth, RPN).tolist() == [0, 0, IGNORED, NEGATIVE]


def test_below_the_low_quality_overlap_nothing_is_claimed() -> None:
    assert assign(boxes((0, 0, 10, 2)), boxes((0, 0, 10, 10)), RPN).tolist() == [NEGATIVE]


def test_of_two_truths_with_the_same_best_box_the_later_gets_it() -> None:
    truths = boxes((0, 0, 10, 8), (0, 2, 10, 10))
    assert assign(boxes((0, 0, 10, 10)), truths, RPN).tolist() == [1]


def test_crowds_are_never_matched_and_shield_what_lies_in_them() -> None:
    truths = boxes((0, 0, 100, 100), (10, 10, 20, 20))
    crowd = torch.tensor([True, False])
    references = boxes((0, 0, 100, 100), (10, 10, 20, 20), (90, 90, 105, 105), (95, 95, 125, 125))
    found = assign(references, truths, AssignConfig(), crowd)
    # the crowd itself; the object inside it; 44 % inside... is background; 3 % inside is background
    assert found.tolist() == [IGNORED, 1, NEGATIVE, NEGATIVE]
    assert assign(references[:1], truths[:1], AssignConfig(), crowd[:1]).tolist() == [IGNORED]


def test_without_truth_everything_is_background_and_without_boxes_nothing_is() -> None:
    assert assign(boxes((0, 0, 1, 1)), boxes(), RPN).tolist() == [NEGATIVE]
    assert assign(boxes(), boxes((0, 0, 1, 1)), RPN).shape == (0,)


def test_sample_bounds_positives_and_fills_with_negatives() -> None:
    index = torch.tensor([3] * 50 + [NEGATIVE] * 100 + [IGNORED] * 30)
    chosen = sample(index, SampleConfig(num=40, positive_fraction=0.25))
    assert len(chosen) == len(chosen.unique()) == 40
    assert (index[chosen] >= 0).sum() == 10
    assert (index[chosen[:10]] >= 0).all()
    assert not (index[chosen] == IGNORED).any()


def test_sample_gives_the_room_positives_leave_to_negatives() -> None:
    index = torch.tensor([0, 1] + [NEGATIVE] * 100)
    chosen = sample(index, SampleConfig(num=40, positive_fraction=0.5))
    assert (index[chosen] >= 0).sum() == 2
    assert len(chosen) == 40


def test_sample_of_everything_leaves_out_only_the_ignored() -> None:
    index = torch.tensor([NEGATIVE, 0, IGNORED, NEGATIVE])
    assert sorted(sample(index, SampleConfig(num=None)).tolist()) == [0, 1, 3]
    assert len(sample(index[2:3], SampleConfig(num=8))) == 0


def test_sampling_depends_on_torch_seed_only() -> None:
    index = torch.full((500,), NEGATIVE)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(sample(index, SampleConfig(num=20)).tolist())
    assert draws[0] == draws[1] != draws[2]
