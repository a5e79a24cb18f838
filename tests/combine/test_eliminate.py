"""What never occurs in training data is learned, and only what clearly contradicts it goes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from combine.planted import dataset_of, detections_from
from scantling.combine.eliminate import EliminateConfig, Reason, eliminate, learn_relations
from scantling.data.detections import results_of
from scantling.errors import DataError
from scantling.evaluate.coco_eval import evaluate_results
from scantling.structures.detections import Detections

NAMES = ("wheel", "hub", "saddle")
WHEEL, HUB, SADDLE = (0.0, 0.0, 100.0, 100.0), (45.0, 45.0, 55.0, 55.0), (200.0, 0.0, 260.0, 30.0)
CONFIG = EliminateConfig(min_support=10)


@pytest.fixture(scope="module")
def relations():
    """Twenty bikes: the hub inside the wheel, the saddle beside both; one to two wheels."""
    truths = []
    for image in range(20):
        truths += [(image, 0, WHEEL), (image, 1, HUB), (image, 2, SADDLE)]
        if image == 0:
            truths.append((image, 0, (300.0, 0.0, 400.0, 100.0)))
    return learn_relations(dataset_of(truths, num_images=21, names=NAMES), CONFIG)


def reasons_of(relations, *rows, config=CONFIG, **changes):
    """{row: (by, reason)} of detections (label, score, box) in one image."""
    found = eliminate(
        detections_from([(0, *row) for row in rows]), relations, config.model_copy(update=changes)
    )
    assert found.keep.tolist() == [
        row not in {each.row for each in found.removed} for row in range(len(rows))
    ]
    return {each.row: (each.by, each.reason) for each in found.removed}


def test_relations_by_hand(relations):
    assert relations.iou[0, 1] == relations.iou[1, 0] == pytest.approx(100 / 10_000)
    assert (relations.inside[1, 0], relations.inside[0, 1]) == (1.0, pytest.approx(0.01))
    assert relations.iou[0, 2] == relations.inside[2, 0] == 0
    assert relations.support.tolist() == [[0, 20, 20], [20, 0, 20], [20, 20, 0]]
    assert (relations.most.tolist(), relations.seen.tolist()) == ([2, 1, 1], [20, 20, 20])


def test_a_quantile_leaves_out_what_one_label_says():
    truths = [(image, label, box) for image in range(100) for label, box in ((0, WHEEL), (2, SADDLE))]
    truths.append((100, 0, WHEEL))
    truths.append((100, 2, WHEEL))  # a wheel labelled as a saddle too
    dataset = dataset_of(truths, num_images=101, names=NAMES)
    assert learn_relations(dataset, EliminateConfig()).iou[0, 2] == 1
    assert learn_relations(dataset, EliminateConfig(quantile=0.98)).iou[0, 2] == 0


def test_the_weaker_of_two_that_never_lie_so_goes(relations):
    found = reasons_of(relations, (0, 0.9, WHEEL), (2, 0.3, WHEEL))
    assert found == {1: (0, Reason.OVERLAP)}
    assert reasons_of(relations, (2, 0.3, WHEEL), (0, 0.9, WHEEL)) == {0: (1, Reason.OVERLAP)}
    inside = reasons_of(relations, (0, 0.9, WHEEL), (2, 0.3, HUB))
    assert inside == {1: (0, Reason.INSIDE)}
    around = reasons_of(relations, (2, 0.9, HUB), (0, 0.3, WHEEL))
    assert around == {1: (0, Reason.AROUND)}


def test_what_occurs_stays(relations):
    assert reasons_of(relations, (0, 0.9, WHEEL), (1, 0.1, HUB), (2, 0.1, SADDLE)) == {}
    assert reasons_of(relations, (1, 0.9, HUB), (0, 0.1, WHEEL)) == {}
    near = (20.0, 0.0, 120.0, 100.0)  # IoU 2/3 with the wheel
    assert reasons_of(relations, (0, 0.9, WHEEL), (2, 0.1, near), min_iou=0.7) == {}
    assert reasons_of(relations, (0, 0.9, WHEEL), (2, 0.1, near)) == {1: (0, Reason.OVERLAP)}
    assert reasons_of(relations, (0, 0.9, WHEEL), (2, 0.1, near), iou_margin=0.7) == {}


def test_only_a_good_and_clearly_stronger_box_removes(relations):
    assert reasons_of(relations, (0, 0.9, WHEEL), (2, 0.46, WHEEL)) == {}
    assert reasons_of(relations, (0, 0.29, WHEEL), (2, 0.1, WHEEL)) == {}
    assert reasons_of(relations, (0, 0.9, WHEEL), (2, 0.9, WHEEL), min_ratio=1.0) == {}


def test_a_removed_box_removes_nothing(relations):
    """The wheel removes the saddle upon it, which would have removed the hub inside the saddle."""
    rows = [(0, 1.0, WHEEL), (2, 0.5, (5.0, 5.0, 100.0, 100.0)), (1, 0.2, HUB)]
    assert reasons_of(relations, *rows) == {1: (0, Reason.OVERLAP)}
    assert reasons_of(relations, *rows[1:]) == {1: (0, Reason.INSIDE)}


def test_a_contradicted_box_removes_nothing_even_where_it_stays(relations):
    """The saddle upon the wheel may be the wrong one of the two: it does not remove the hub."""
    rows = [(0, 0.9, WHEEL), (2, 0.8, (5.0, 5.0, 100.0, 100.0)), (1, 0.2, HUB)]
    assert reasons_of(relations, *rows) == {}
    assert reasons_of(relations, *rows[1:]) == {1: (0, Reason.INSIDE)}


def test_images_do_not_mix_and_too_little_is_not_judged(relations):
    apart = detections_from([(0, 0, 0.9, WHEEL), (1, 2, 0.3, WHEEL)])
    assert eliminate(apart, relations, CONFIG).keep.all()
    assert reasons_of(relations, (0, 0.9, WHEEL), (2, 0.3, WHEEL), min_support=21) == {}


def test_surplus_beyond_what_occurs_and_the_margin(relations):
    def wheels(*scores):
        return [
            (0, score, (100.0 * place, 0.0, 100.0 * place + 90, 90.0)) for place, score in enumerate(scores)
        ]

    assert reasons_of(relations, *wheels(0.9, 0.8, 0.7, 0.2, 0.1)) == {
        3: (2, Reason.SURPLUS),
        4: (2, Reason.SURPLUS),
    }
    assert reasons_of(relations, *wheels(0.1, 0.7, 0.9)) == {}
    assert reasons_of(relations, *wheels(0.9, 0.8, 0.7, 0.4)) == {}  # not clearly less than the third
    assert reasons_of(relations, *wheels(0.9, 0.8, 0.2, 0.1)) == {}  # the third is no good itself
    assert reasons_of(relations, *wheels(0.9, 0.8, 0.7, 0.2), counts=False) == {}
    assert reasons_of(relations, *wheels(0.9, 0.8, 0.2), count_margin=0) == {2: (1, Reason.SURPLUS)}


def test_objects_of_a_crowd_are_not_counted():
    truths = [(image, 0, WHEEL) for image in range(30)]
    dataset = dataset_of(truths, num_images=30, names=NAMES, crowds=frozenset({7}))
    assert learn_relations(dataset, CONFIG).seen[0] == 0


def test_rounds_are_the_same_as_one_after_the_other():
    """Against the obvious loop, on boxes that overlap a lot."""
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 60, (300, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(20, 80, (300, 2))], axis=1)
    detections = Detections(
        images=generator.integers(0, 6, 300),
        labels=generator.integers(0, 3, 300),
        scores=generator.integers(1, 40, 300) / 40,
        boxes=boxes,
    )
    truths = [(image, label, box) for image in range(10) for label, box in enumerate((WHEEL, HUB, SADDLE))]
    learned = learn_relations(dataset_of(truths, num_images=10, names=NAMES), CONFIG)
    config = CONFIG.model_copy(update={"counts": False, "min_ratio": 1.2})
    found = eliminate(detections, learned, config)
    assert len(found.removed) > 30
    assert found.keep.tolist() == _one_after_the_other(detections, learned, config)


def _one_after_the_other(detections, relations, config) -> list[bool]:
    keep, silent = [True] * len(detections), set()
    order = np.lexsort((-detections.scores, detections.images))
    for place, strong in enumerate(order):
        for weak in order[place + 1 :]:
            pair = detections[np.array([strong, weak])]
            a, b = pair.labels
            low, high = pair.scores[1], pair.scores[0]
            acts = keep[strong] and strong not in silent and low < high and high >= config.min_score
            if not (acts and keep[weak] and a != b and pair.images[0] == pair.images[1]):
                continue
            (x1, y1, x2, y2), (u1, v1, u2, v2) = pair.boxes
            common = max(0.0, min(x2, u2) - max(x1, u1)) * max(0.0, min(y2, v2) - max(y1, v1))
            first, second = (x2 - x1) * (y2 - y1), (u2 - u1) * (v2 - v1)
            never = (
                common / (first + second - common)
                > max(config.min_iou, relations.iou[a, b] + config.iou_margin),
                common / second > max(config.min_inside, relations.inside[b, a] + config.inside_margin),
                common / first > max(config.min_inside, relations.inside[a, b] + config.inside_margin),
            )
            if any(never):
                silent.add(weak)
                keep[weak] = low * config.min_ratio > high
    return keep


def test_every_removal_is_counted_by_pair(relations):
    rows = [(image, 0, 0.9, WHEEL) for image in range(3)] + [(image, 2, 0.3, WHEEL) for image in range(2)]
    found = eliminate(detections_from(rows), relations, CONFIG)
    assert found.counts == {("saddle", "wheel", Reason.OVERLAP): 2}
    assert found.to_text().splitlines() == [
        "      2  saddle overlaps a stronger wheel",
        "2 of 5 predictions contradict",
    ]
    assert found.to_dict()["pairs"] == [
        {"weaker": "saddle", "stronger": "wheel", "reason": "overlap", "count": 2}
    ]
    assert found.to_dict()["removed"][0] == {"row": 3, "by": 0, "reason": "overlap"}


def test_people_are_shown_the_most_frequent_pairs(relations):
    names = tuple(f"part{label}" for label in range(25))
    many = dataclasses.replace(
        relations,
        class_names=names,
        iou=np.zeros((25, 25)),
        inside=np.zeros((25, 25)),
        support=np.full((25, 25), 99),
        most=np.ones(25, dtype=np.int64),
        seen=np.full(25, 99),
    )
    rows = [
        (0, 0, 1.0, WHEEL),
        *((0, label, 0.3, WHEEL) for label in range(1, 25)),
        (1, 0, 1.0, WHEEL),
        (1, 1, 0.3, WHEEL),
    ]
    lines = eliminate(detections_from(rows), many, CONFIG).to_text().splitlines()
    assert lines[0].split(maxsplit=1) == ["2", "part1 overlaps a stronger part0"]
    assert lines[-2:] == ["      4  of 4 more kinds", "25 of 27 predictions contradict"]


def test_nothing_to_remove_and_nothing_learned(relations):
    none = eliminate(Detections.empty(), relations, CONFIG)
    assert (len(none.keep), none.removed) == (0, ())
    empty = learn_relations(dataset_of([], num_images=1, names=NAMES), CONFIG)
    assert reasons_of(empty, (0, 0.9, WHEEL), (2, 0.3, WHEEL)) == {}


def test_categories_are_matched_by_name(relations):
    turned = relations.ordered(("saddle", "wheel"))
    assert (turned.support.tolist(), turned.most.tolist()) == ([[0, 20], [20, 0]], [1, 2])
    assert reasons_of(turned, (1, 0.9, WHEEL), (0, 0.3, WHEEL)) == {1: (0, Reason.OVERLAP)}
    with pytest.raises(DataError, match="bell"):
        relations.ordered(("wheel", "bell"))


def test_it_does_no_harm():
    """Parts of a machine that each lie where they should, and a detector that is often wrong about what they are."""
    changes, removed, right = zip(*(_changed(seed) for seed in range(6)), strict=True)
    assert np.mean(changes) > 0
    assert min(changes) > -0.002
    assert sum(removed) > 200
    assert sum(right) <= 0.03 * sum(removed)


def _changed(seed: int) -> tuple[float, int, int]:
    """Change of AP, how many predictions were removed, and how many of these were the best of an object."""
    generator = np.random.default_rng(seed)
    names = ("cover", "hub", "plate", "hose")
    places = np.array(
        [[10, 10, 110, 110], [40, 40, 80, 80], [130, 10, 230, 60], [150, 30, 330, 120]], dtype=np.float64
    )

    def truths(num_images):
        return [
            (image, label, box + generator.normal(0, 6, 2)[[0, 1, 0, 1]])
            for image in range(num_images)
            for label, box in enumerate(places)
            if generator.random() < 0.9
        ]

    learned = learn_relations(dataset_of(truths(60), num_images=60, names=names), EliminateConfig())
    objects, rows, is_right = truths(80), [], []
    for image, label, box in objects:
        score, spread = generator.beta(5, 2), (box[2:] - box[:2]).min() * 0.08
        other = int(generator.integers(4))
        rows.append((image, label, score, box + generator.normal(0, spread, 4)))
        rows.append((image, other, score * generator.uniform(0.1, 1), box + generator.normal(0, spread, 4)))
        is_right += [True, False]
    dataset, detections = dataset_of(objects, num_images=80, names=names), detections_from(rows)
    found = eliminate(detections, learned, EliminateConfig())
    before, after = (
        evaluate_results(dataset, results_of(each, dataset)).metrics["AP"]
        for each in (detections, detections[found.keep])
    )
    return after - before, len(found.removed), sum(is_right[each.row] for each in found.removed)
