"""Ensembles by masks: derived by hand, against dense masks, and tuned by mask AP."""

from __future__ import annotations

import numpy as np
import pytest

from combine.planted import dataset_of, detections_from
from reference import slow_masks
from scantling.combine import ensemble
from scantling.combine.ensemble import EnsembleConfig, ensemble_detections
from scantling.combine.tune import TuneConfig
from scantling.combine.tune_weights import tune_weights
from scantling.data.coco import ReadOptions, parse_coco
from scantling.data.detections import results_of
from scantling.errors import ConfigError, DataError
from scantling.evaluate.coco_eval import evaluate_results
from scantling.ops.rle import rle_decode, rle_encode
from scantling.structures.detections import Detections, object_column

METHODS = ("mask_nms", "mask_soft_linear", "mask_soft_gaussian", "mask_vote")
SIZE_HW = (12, 20)
NAMES = ("dent",)


def strip(x1, x2, y1=0, y2=2):
    """A mask of a rectangle."""
    mask = np.zeros(SIZE_HW, dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def found(*instances, image=0) -> Detections:
    """Instances (score, mask, or with its label) of an image; boxes are tight."""
    rows, masks = [], []
    for score, mask, *label in instances:
        y, x = np.nonzero(mask) if mask.any() else (np.zeros(1), np.zeros(1))
        box = [x.min(), y.min(), x.max() + mask.any(), y.max() + mask.any()]
        rows.append((image, label[0] if label else 0, score, box))
        masks.append(rle_encode(mask))
    return detections_from(rows).replace(masks=object_column(masks))


def dense(rows: Detections):
    return [rle_decode(mask) for mask in rows.masks]


def combined(members, names=NAMES, **settings) -> Detections:
    return ensemble_detections(members, EnsembleConfig(**settings), names)


LONG, SHIFTED, APART = strip(0, 10), strip(2, 12), strip(14, 18)  # LONG and SHIFTED: IoU 16 / 24
CROSS = strip(0, 2, 0, 10)


class TestTheBetterOneCounts:
    def test_by_masks_not_by_boxes(self):
        diagonal, other = np.eye(12, 20, dtype=bool), np.eye(12, 20, k=1, dtype=bool)
        members = {
            "a": found((0.9, diagonal)),
            "b": found((0.8, other)),
        }  # boxes overlap by 0.85, masks not at all
        assert len(combined(members, method="mask_nms")) == 2
        assert len(combined(members, method="nms")) == 1

    def test_a_weight_scales_scores_by_its_share_of_the_largest(self):
        members = {"a": found((0.6, LONG), (0.3, APART)), "b": found((0.9, SHIFTED))}
        alike = combined(members, method="mask_nms")
        assert alike.scores.tolist() == [0.9, 0.3]
        trusted = combined(members, method="mask_nms", weights={"a": 0.4, "b": 0.2})
        assert trusted.scores.tolist() == [0.6, 0.3]  # b enters with 0.45
        assert (dense(trusted)[0] == LONG).all()
        kept = combined(members, method="mask_nms", iou_threshold=0.7)
        assert sorted(kept.scores.tolist()) == [0.3, 0.6, 0.9]

    def test_soft_scores_fall_by_the_overlap_of_masks(self):
        members = {"a": found((0.9, LONG)), "b": found((0.6, SHIFTED))}
        overlap = 16 / 24
        linear = combined(members, method="mask_soft_linear")
        assert linear.scores.tolist() == pytest.approx([0.9, 0.6 * (1 - overlap)])
        gaussian = combined(members, method="mask_soft_gaussian", sigma=0.3)
        assert gaussian.scores.tolist() == pytest.approx([0.9, 0.6 * np.exp(-(overlap**2) / 0.3)])
        assert len(combined(members, method="mask_soft_linear", min_score=0.3)) == 1

    def test_categories_and_images_do_not_meet(self):
        both = Detections.cat([found((0.9, LONG), (0.8, LONG, 1)), found((0.7, LONG), image=1)])
        assert len(combined({"a": both}, names=("dent", "spot"), method="mask_nms")) == 3

    def test_settings_by_category(self):
        members = {"a": found((0.9, LONG), (0.9, LONG, 1)), "b": found((0.6, SHIFTED), (0.6, SHIFTED, 1))}
        limits = {"dent": 0.7, "spot": 0.5}
        kept = combined(members, names=("dent", "spot"), method="mask_nms", iou_threshold=limits)
        assert np.bincount(kept.labels).tolist() == [2, 1]


class TestVoting:
    def test_pixels_of_a_weighted_majority(self):
        middle = strip(1, 11)
        members = {"a": found((0.9, LONG)), "b": found((0.6, SHIFTED)), "c": found((0.3, middle))}
        voted = combined(members, method="mask_vote")  # 1.8 in all: 0.9 is a half
        assert (dense(voted)[0] == strip(0, 11) & (LONG | (SHIFTED & middle))).all()
        doubted = combined(members, method="mask_vote", weights={"a": 0.5})  # 0.45, 0.6 and 0.3 of 1.35
        assert (dense(doubted)[0] == strip(1, 11)).all()
        everyone = combined(members, method="mask_vote", pixel_share=1.0)
        assert (dense(everyone)[0] == strip(2, 10)).all()

    def test_score_and_box_are_those_of_a_cluster(self):
        members = {"a": found((0.9, LONG)), "b": found((0.6, SHIFTED))}
        voted = combined(members, method="mask_vote")
        assert voted.scores.tolist() == pytest.approx([0.75])  # the mean, as wbf has it
        assert voted.boxes[0].tolist() == pytest.approx([0.6 * 2 / 1.5, 0, (0.9 * 10 + 0.6 * 12) / 1.5, 2])
        assert combined(members, method="mask_vote", score="max").scores.tolist() == [0.9]
        alone = combined({**members, "c": found((0.5, APART))}, method="mask_vote")
        assert alone.scores.tolist() == pytest.approx([1.5 / 3, 0.5 / 3])

    def test_an_instance_joins_the_one_it_overlaps_most(self):
        best, second, between = (
            strip(0, 10),
            strip(8, 18),
            strip(7, 17),
        )  # 3 / 17 with best, 9 / 11 with second
        members = {"a": found((0.9, best), (0.8, second)), "b": found((0.7, between))}
        voted = combined(members, method="mask_vote", iou_threshold=0.1, own_duplicates="keep", score="max")
        assert len(voted) == 1  # best and second overlap too: 2 / 18
        apart = combined(members, method="mask_vote", iou_threshold=0.12, score="max")
        assert apart.scores.tolist() == [0.9, 0.8]
        assert (dense(apart)[0] == best).all()
        assert (dense(apart)[1] == second).all()  # 0.8 against 0.7: the heavier of two

    def test_of_a_members_duplicates_the_best_votes(self):
        inner = strip(1, 9)
        members = {"a": found((0.5, LONG)), "b": found((0.4, inner), (0.39, inner), (0.38, inner))}
        assert (dense(combined(members, method="mask_vote"))[0] == LONG).all()
        assert (dense(combined(members, method="mask_vote", own_duplicates="keep"))[0] == inner).all()

    def test_keys_stay_where_an_object_is_one_prediction(self):
        own = found((0.9, LONG), (0.4, APART)).replace(extra=object_column([{"k": 1}, {"k": 2}]))
        voted = combined({"a": own, "b": found((0.6, SHIFTED))}, method="mask_vote")
        assert voted.extra.tolist() == [None, {"k": 2}]
        assert (dense(voted)[1] == APART).all()


def scene(seed, count=40, images=3):
    """Random rectangles with ragged edges of three members, some of them of the same objects."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(3):
        own = []
        for image in range(images):
            instances = []
            for _ in range(count // images):
                x, y = rng.integers(0, 4) * 4, rng.integers(0, 2) * 5
                mask = strip(x, x + rng.integers(3, 7), y, y + rng.integers(3, 6)) & (
                    rng.random(SIZE_HW) < 0.8
                )
                instances.append((rng.uniform(0.1, 1), mask, int(rng.integers(2))))
            own.append(found(*instances, image=image))
        parts.append(Detections.cat(own))
    return dict(zip("abc", parts, strict=True))


@pytest.mark.parametrize("keep", ["drop", "keep"])
def test_votes_are_those_of_dense_masks(keep):
    members, weights, names = scene(0), {"a": 1.0, "b": 0.5, "c": 0.8}, ("dent", "spot")
    voted = combined(
        members,
        names=names,
        method="mask_vote",
        iou_threshold=0.3,
        own_duplicates=keep,
        score="max",
        weights=weights,
    )
    num_shared = 0
    for image in range(3):
        for label in range(2):
            instances = [
                (score * weights[name], name, mask)
                for name, member in members.items()
                for score, mask in zip(member.scores, dense(member), strict=True)
            ]
            where = np.concatenate([np.stack([m.images, m.labels]) for m in members.values()], axis=1)
            own = [one for one, at in zip(instances, where.T, strict=True) if at.tolist() == [image, label]]
            expected = slow_masks.vote(own, 0.3, 0.5, keeps_duplicates=keep == "keep")
            rows = voted[(voted.images == image) & (voted.labels == label)]
            assert rows.scores.tolist() == pytest.approx([cluster[0][0] for cluster, _ in expected])
            for mask, (cluster, wanted) in zip(dense(rows), expected, strict=True):
                num_shared += len(cluster) > 1
                assert (mask == wanted).all()
    assert num_shared > 10


class TestWhatHoldsAlways:
    @pytest.mark.parametrize("method", METHODS)
    def test_portions_and_the_order_of_rows_do_not_show(self, method, monkeypatch):
        members = scene(1)
        whole = combined(members, names=("dent", "spot"), method=method)
        monkeypatch.setattr(ensemble, "MASK_PORTION", 20)
        shuffled = {
            name: rows[np.random.default_rng(2).permutation(len(rows))] for name, rows in members.items()
        }
        again = combined(shuffled, names=("dent", "spot"), method=method)
        assert whole.scores.tolist() == again.scores.tolist()
        assert whole.boxes.tolist() == again.boxes.tolist()
        assert whole.masks.tolist() == again.masks.tolist()

    @pytest.mark.parametrize("method", METHODS)
    def test_nothing_and_masks_without_pixels(self, method):
        none, empty = Detections.empty(), np.zeros(SIZE_HW, dtype=bool)
        assert len(combined({}, method=method)) == 0
        assert len(combined({"a": none, "b": none}, method=method)) == 0
        members = {"a": found((0.9, empty)), "b": found((0.8, empty)), "c": none}
        assert len(combined(members, method=method)) == 2
        assert len(combined({"a": found((0.9, LONG)), "b": none}, method=method, weights={"b": 0})) == 1

    def test_what_has_no_mask_is_told(self, caplog):
        own, bare = found((0.9, LONG), (0.8, APART)), detections_from([(0, 0, 0.9, (0, 0, 4, 4))])
        with pytest.raises(DataError, match="b: no prediction has a mask") as caught:
            combined({"a": own, "b": bare}, method="mask_nms")
        assert "wbf" in caught.value.hint
        mixed = Detections.cat([own, bare])
        assert len(combined({"a": mixed}, method="mask_nms")) == 2
        assert "a: 1 predictions have no mask and are left out" in caplog.text

    def test_methods_of_boxes_as_those_of_masks(self):
        assert EnsembleConfig().matching_masks().method == "mask_nms"
        assert EnsembleConfig(method="soft_linear").matching_masks().method == "mask_soft_linear"
        assert EnsembleConfig(method="mask_vote").matching_masks().method == "mask_vote"
        with pytest.raises(ConfigError, match="wbf makes means of boxes"):
            EnsembleConfig(method="wbf").matching_masks()


@pytest.fixture(scope="module")
def case():
    """Two members find every object: one draws it well and is unsure, one draws half of it and is sure."""
    box = [100, 100, 200, 200]
    bare = dataset_of([(image, 0, box) for image in range(30)], num_images=30, names=NAMES)
    content = bare.to_coco()
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[100, 100, 200, 100, 200, 200, 100, 200]]
    dataset = parse_coco(content, bare.file, bare.image_root, ReadOptions())
    scores, members = np.random.default_rng(0).uniform(0.5, 0.6, 30), {}
    for name, right, factor in (("good", 198, 1.0), ("bad", 162, 1.5)):
        mask = np.zeros((400, 400), dtype=bool)
        mask[100:200, 100:right] = True
        rows = [(image, 0, score * factor, box) for image, score in enumerate(scores)]
        members[name] = detections_from(rows).replace(masks=object_column([rle_encode(mask)] * 30))
    return dataset, members


class TestWeights:
    def test_the_better_masks_get_the_weight(self, case):
        dataset, members = case
        base = EnsembleConfig(method="mask_nms")
        tuned = tune_weights(members, dataset, base, TuneConfig(bootstrap=100), iou_type="segm")
        assert (tuned.before, tuned.after) == (pytest.approx(0.3), pytest.approx(1.0))
        assert tuned.config.weights["good"] > 1.5 * tuned.config.weights["bad"]
        fused = ensemble_detections(members, tuned.config, NAMES)
        official = evaluate_results(dataset, results_of(fused, dataset), iou_type="segm")
        assert official.metrics["AP"] == pytest.approx(tuned.after)
        by_boxes = tune_weights(members, dataset, base, TuneConfig(bootstrap=100))
        assert by_boxes.before == by_boxes.after == pytest.approx(1.0)  # all boxes are right

    @pytest.mark.parametrize("rule", ["ap", "category_ap"])
    def test_weights_that_are_each_ones_ap(self, case, rule):
        dataset, members = case
        config = TuneConfig(bootstrap=100, weight_rule=rule)
        tuned = tune_weights(members, dataset, EnsembleConfig(method="mask_nms"), config, iou_type="segm")
        assert tuned.config.weights == {"good": 1.0, "bad": 0.3}
        assert tuned.after == pytest.approx(1.0)
        assert "weights are AP, as asked for" in tuned.to_text()

    def test_categories_that_nobody_finds_have_the_mean(self, case):
        dataset, members = case
        content = dataset.to_coco()
        content["categories"].append({"id": 99, "name": "spot"})
        wider = parse_coco(content, dataset.file, dataset.image_root, ReadOptions())
        config = TuneConfig(bootstrap=100, weight_rule="category_ap")
        found_weights = tune_weights(
            members, wider, EnsembleConfig(method="mask_vote"), config, iou_type="segm"
        )
        assert found_weights.config.weights == {"good": 1.0, "bad": 0.3}
