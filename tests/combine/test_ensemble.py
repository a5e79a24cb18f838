"""Fusion of several detectors' boxes: by hand, against a plain reference with ties, and against ensemble-boxes."""

from __future__ import annotations

import ensemble_boxes
import numpy as np
import pytest
from ensemble_boxes import ensemble_boxes_nms, ensemble_boxes_nmw, ensemble_boxes_wbf
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import slow_ensemble, slow_nms
from scantling.combine import clusters, ensemble
from scantling.combine.ensemble import EnsembleConfig, ensemble_detections
from scantling.errors import ConfigError, DataError
from scantling.structures.detections import Detections

NAMES = ("bolt", "nut", "washer")
SCORES = ("mean", "max", "box_and_model_mean", "absent_model_aware_mean")
METHODS = ("wbf", "nmw", "nms", "soft_linear", "soft_gaussian")
SIDE = 1024.0
WEIGHTS = {
    "b": 2.5,
    "c": {"bolt": 0.5, "default": 1.5},
    "d": {"nut": 0.0},
}
TABLE = [[1, 1, 1], [2.5, 2.5, 2.5], [0.5, 1.5, 1.5], [1, 0, 1]]


def detections(*rows):
    """From (image, label, score, box) each."""
    images, labels, scores, boxes = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Detections(
        images=np.array(images, dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        scores=np.array(scores, dtype=np.float64),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
    )


def scene(seed, *, grid=False, tied=False, members=4, images=5, count=60):
    """Crowded boxes of some members in some images; one member sees nothing in image 0.

    With `tied`, scores are multiples of 1/8 and some boxes are copies; with `grid`, corners are multiples of 16 too.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for index, name in enumerate("abcdef"[:members]):
        low = rng.uniform(0, SIDE / 2, (count, 2))
        boxes = np.concatenate([low, low + rng.uniform(SIDE / 8, SIDE / 2, (count, 2))], axis=1)
        scores = rng.uniform(0.01, 1, count)
        if grid:
            boxes = np.round(boxes / 64) * 64
        if tied:
            scores = np.maximum(np.round(scores * 8), 1) / 8
            boxes[: count // 4] = boxes[-(count // 4) :]
        found[name] = Detections(
            images=rng.integers(int(index == 1), images, count),
            labels=rng.integers(0, len(NAMES), count),
            scores=scores,
            boxes=boxes,
        )
    return found


def groups_of(members, table):
    """Image, label and weighted boxes of every image and category."""
    for image in range(10):
        for label in range(len(NAMES)):
            boxes = [
                slow_ensemble.Box(score * table[m][label], table[m][label], m, tuple(box.tolist()))
                for m, found in enumerate(members.values())
                for i, k, score, box in zip(*columns(found), strict=True)
                if (i, k) == (image, label) and table[m][label] > 0
            ]
            yield image, label, boxes


def best_of_each_member(boxes, limit):
    """Without boxes that a better one of the same member overlaps beyond the limit."""
    kept = []
    for member in {box.member for box in boxes}:
        own = slow_ensemble.in_order([box for box in boxes if box.member == member])
        rows = slow_nms.hard_nms([b.xyxy for b in own], [b.score for b in own], [0] * len(own), [limit])
        kept += [own[row] for row in rows]
    return kept


def columns(found):
    return found.images, found.labels, found.scores.tolist(), found.boxes


def assert_same(found, expected, tolerance):
    """Detections equal (image, label, score, box) rows; the order among equal scores does not count."""

    def key(row):
        image, label, score, box = row
        return image, -round(score, 6), label, [round(edge, 3) for edge in box]

    ours = sorted(zip(found.images, found.labels, found.scores, found.boxes, strict=True), key=key)
    expected = sorted(expected, key=key)
    assert [row[:2] for row in ours] == [row[:2] for row in expected]
    if expected:
        np.testing.assert_allclose([r[2] for r in ours], [r[2] for r in expected], atol=tolerance, rtol=0)
        np.testing.assert_allclose(
            np.stack([r[3] for r in ours]) / SIDE,
            np.stack([r[3] for r in expected]) / SIDE,
            atol=tolerance,
            rtol=0,
        )


class TestByHand:
    """A and B overlap by 0.8; C is alone."""

    A, B, C = (0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 8.0), (50.0, 0.0, 60.0, 10.0)
    MEMBERS = {"one": detections((0, 0, 0.8, A), (0, 0, 0.5, C)), "two": detections((0, 0, 0.4, B))}

    def fused(self, **options):
        found = ensemble_detections(self.MEMBERS, EnsembleConfig(**options), ["bolt"])
        return found.scores.tolist(), found.boxes.tolist()

    @pytest.mark.parametrize(
        ("score", "together", "alone"),
        [
            ("mean", (0.8 + 0.4) / 2, 0.5 / 2),
            ("max", 0.8, 0.5),
            ("box_and_model_mean", (0.8 + 0.4) / 2, 0.5 / 2),
            ("absent_model_aware_mean", (0.8 + 0.4) / 2, 0.5 / 2),
        ],
    )
    def test_weighted_boxes_fusion(self, score, together, alone):
        scores, boxes = self.fused(score=score)
        assert scores == pytest.approx([together, alone])
        assert boxes[0] == pytest.approx([0, 0, 10, (0.8 * 10 + 0.4 * 8) / 1.2])
        assert boxes[1] == list(self.C)

    @pytest.mark.parametrize(
        ("score", "together", "alone"),
        [
            ("mean", (3 * 0.8 + 0.4) / 2 * 2 / 4, 3 * 0.5 / 4),
            ("max", 0.8, 0.5),
            ("box_and_model_mean", (3 * 0.8 + 0.4) / 4, 3 * 0.5 / 4),
            ("absent_model_aware_mean", (3 * 0.8 + 0.4) / 4, 3 * 0.5 / (3 + 1)),
        ],
    )
    def test_a_weight_draws_the_box_and_the_score(self, score, together, alone):
        scores, boxes = self.fused(score=score, weights={"one": 3.0})
        assert scores == pytest.approx([together, alone])
        assert boxes[0][3] == pytest.approx((2.4 * 10 + 0.4 * 8) / 2.8)

    def test_non_maximum_weighted_keeps_the_best_score(self):
        scores, boxes = self.fused(method="nmw")
        assert scores == pytest.approx([0.8, 0.5])
        assert boxes[0][3] == pytest.approx((0.8 * 10 + 0.4 * 0.8 * 8) / (0.8 + 0.4 * 0.8))

    def test_pooled_suppression(self):
        assert self.fused(method="nms") == ([0.8, 0.5], [list(self.A), list(self.C)])
        scores, boxes = self.fused(method="soft_linear")
        assert (scores, boxes) == (
            pytest.approx([0.8, 0.5, 0.4 * 0.2]),
            [list(self.A), list(self.C), list(self.B)],
        )
        scores, _ = self.fused(method="soft_gaussian", sigma=0.5)
        assert scores == pytest.approx([0.8, 0.5, 0.4 * np.exp(-0.64 / 0.5)])

    def test_weights_let_the_other_member_win(self):
        scores, boxes = self.fused(method="nms", weights={"two": 4.0})
        assert (scores, boxes) == (pytest.approx([0.4, 0.5 / 4]), [list(self.B), list(self.C)])

    def test_an_overlap_equal_to_the_threshold_is_another_object(self):
        for method in METHODS[:3]:
            assert len(self.fused(method=method, iou_threshold=0.8)[0]) == 3
            assert len(self.fused(method=method, iou_threshold=0.79)[0]) == 2

    def test_boxes_at_the_score_threshold_are_not_considered(self):
        assert len(self.fused(method="nms", iou_threshold=0.9, score_threshold=0.4)[0]) == 2

    def test_the_best_of_each_image(self):
        member = detections(
            *[(image, 0, 0.1 + 0.2 * k, (20.0 * k, 0, 20.0 * k + 9, 9)) for k in range(3) for image in (4, 2)]
        )
        found = ensemble_detections({"m": member}, EnsembleConfig(max_per_image=2), ["bolt"])
        assert found.images.tolist() == [2, 2, 4, 4]
        assert found.scores.tolist() == pytest.approx([0.5, 0.3] * 2)


class TestAgainstTheReference:
    """Ties of every kind: equal scores, equal boxes, overlaps equal to the threshold or to each other."""

    @settings(max_examples=50)
    @given(
        st.integers(0, 10_000),
        st.sampled_from(SCORES),
        st.sampled_from([0.25, 0.5, 0.6]),
        st.booleans(),
        st.sampled_from(["drop", "keep"]),
    )
    def test_weighted_boxes_fusion(self, seed, score, limit, weighted, own_duplicates):
        members = scene(seed, grid=True, tied=True, count=40)
        table = TABLE if weighted else np.ones((4, 3)).tolist()
        config = EnsembleConfig(
            iou_threshold=limit,
            score=score,
            weights=WEIGHTS if weighted else {},
            own_duplicates=own_duplicates,
        )
        heard = best_of_each_member if own_duplicates == "drop" else lambda boxes, _: boxes
        expected = [
            (image, label, *row)
            for image, label, boxes in groups_of(members, table)
            for row in slow_ensemble.weighted_boxes_fusion(
                heard(boxes, limit), limit, [w[label] for w in table], score
            )
        ]
        assert_same(ensemble_detections(members, config, NAMES), expected, 1e-12)

    @settings(max_examples=25)
    @given(st.integers(0, 10_000), st.booleans())
    def test_non_maximum_weighted_with_a_threshold_for_each_category(self, seed, weighted):
        members = scene(seed, grid=True, tied=True, count=40)
        table = TABLE if weighted else np.ones((4, 3)).tolist()
        limits = {"nut": 0.25, "bolt": 0.75, "default": 0.5}
        config = EnsembleConfig(method="nmw", iou_threshold=limits, weights=WEIGHTS if weighted else {})
        expected = [
            (image, label, score / max(row[label] for row in table), box)
            for image, label, boxes in groups_of(members, table)
            for score, box in slow_ensemble.non_maximum_weighted(boxes, limits.get(NAMES[label], 0.5))
        ]
        assert_same(ensemble_detections(members, config, NAMES), expected, 1e-12)

    @pytest.mark.parametrize("seed", range(5))
    def test_pooled_hard_suppression_with_weights_by_category(self, seed):
        members = scene(seed, grid=True, tied=True)
        expected = []
        for image, label, pooled in groups_of(members, TABLE):
            boxes = slow_ensemble.in_order(pooled)
            keep = slow_nms.hard_nms(
                [b.xyxy for b in boxes] or np.zeros((0, 4)), [b.score for b in boxes], [0] * len(boxes), [0.5]
            )
            most = max(row[label] for row in TABLE)
            expected += [(image, label, boxes[i].score / most, boxes[i].xyxy) for i in keep]
        config = EnsembleConfig(method="nms", iou_threshold=0.5, weights=WEIGHTS)
        assert_same(ensemble_detections(members, config, NAMES), expected, 1e-12)


class TestAgainstEnsembleBoxes:
    @pytest.fixture(autouse=True)
    def comparable(self, monkeypatch):
        """Its functions not compiled (which takes longer than they run), and ties in our order, where it has none."""
        monkeypatch.setattr(
            ensemble_boxes_nmw,
            "bb_intersection_over_union",
            ensemble_boxes_nmw.bb_intersection_over_union.py_func,
        )
        monkeypatch.setattr(ensemble_boxes_nms, "nms_float_fast", ensemble_boxes_nms.nms_float_fast.py_func)
        for module, edges in ((ensemble_boxes_wbf, slice(4, 8)), (ensemble_boxes_nmw, slice(2, 6))):
            monkeypatch.setattr(module, "prefilter_boxes", ordered(module.prefilter_boxes, edges))

    @pytest.mark.parametrize("tied", [False, True])
    @pytest.mark.parametrize("score", SCORES)
    @pytest.mark.parametrize("weights", [(1, 1, 1, 1), (2, 1, 0.5, 1.25)])
    def test_weighted_boxes_fusion(self, tied, score, weights):
        for seed in range(4):
            members = scene(seed, tied=tied)
            config = EnsembleConfig(
                score=score, weights=dict(zip(members, weights, strict=True)), own_duplicates="keep"
            )
            theirs = {"mean": "avg"}.get(score, score.replace("mean", "avg"))
            expected = per_image(
                members, ensemble_boxes.weighted_boxes_fusion, weights=weights, iou_thr=0.55, conf_type=theirs
            )
            expected = [(image, label, min(value, 1), box) for image, label, value, box in expected]
            assert_same(ensemble_detections(members, config, NAMES), expected, 1e-6)

    @pytest.mark.parametrize("tied", [False, True])
    @pytest.mark.parametrize("weights", [(1, 1, 1, 1), (2, 1, 0.5, 1.25)])
    def test_non_maximum_weighted(self, tied, weights):
        for seed in range(4):
            members = scene(seed, tied=tied)
            config = EnsembleConfig(method="nmw", weights=dict(zip(members, weights, strict=True)))
            expected = per_image(members, ensemble_boxes.non_maximum_weighted, weights=weights, iou_thr=0.55)
            assert_same(ensemble_detections(members, config, NAMES), expected, 1e-6)

    @pytest.mark.parametrize("method", METHODS[2:])
    @pytest.mark.parametrize("weights", [(1, 1, 1, 1), (2, 1, 0.5, 1.25)])
    def test_pooled_suppression_but_for_the_scale_of_the_scores(self, method, weights):
        number = {"soft_linear": 1, "soft_gaussian": 2, "nms": 3}[method]
        scale = sum(weights) / max(weights)
        members = scene(3)
        config = EnsembleConfig(
            method=method, weights=dict(zip(members, weights, strict=True)), min_score=0.05, iou_threshold=0.5
        )
        expected = per_image(
            members, ensemble_boxes_nms.nms_method, method=number, weights=weights, thresh=0.05 / scale
        )
        found = ensemble_detections(members, config, NAMES)
        if method == "nms":
            expected = [(image, label, value * scale, box) for image, label, value, box in expected]
            assert_same(found, expected, 1e-6)
        else:  # it gives the boxes that stay with their scores before decay, in an order of its own
            kept = sorted((image, label, *np.round(box, 6)) for image, label, _, box in expected)
            ours = zip(found.images, found.labels, found.boxes, strict=True)
            assert sorted((image, label, *np.round(box, 6)) for image, label, box in ours) == kept


def ordered(prefilter, edges):
    """The boxes as its own filter gives them, ties in order of box and model."""

    def filtered(*arguments):
        by_label = prefilter(*arguments)
        for label, rows in by_label.items():
            member = rows[:, 3] if edges.start == 4 else rows[:, 0]
            by_label[label] = rows[np.lexsort((member, *rows[:, edges].T[::-1], -rows[:, 1]))]
        return by_label

    return filtered


def per_image(members, function, **options):
    """(image, label, score, box) of its result on every image."""
    rows = []
    for image in range(5):
        lists = [member[member.images == image] for member in members.values()]
        boxes, scores, labels = function(
            [found.boxes / SIDE for found in lists],
            [found.scores for found in lists],
            [found.labels for found in lists],
            **options,
        )
        rows += [(image, int(k), s, box * SIDE) for k, s, box in zip(labels, scores, boxes, strict=True)]
    return rows


class TestWhatHoldsAlways:
    @given(st.integers(0, 10_000), st.sampled_from(METHODS), st.sampled_from(SCORES), st.booleans())
    def test_scores_stay_between_0_and_1_and_the_order_of_rows_does_not_matter(
        self, seed, method, score, grid
    ):
        members = scene(seed, grid=grid, tied=grid, count=50)
        config = EnsembleConfig(method=method, score=score, weights=WEIGHTS, iou_threshold=0.4)
        found = ensemble_detections(members, config, NAMES)
        assert (found.scores >= 0).all()
        assert (found.scores <= 1).all()
        rng = np.random.default_rng(seed)
        shuffled = {name: member[rng.permutation(len(member))] for name, member in members.items()}
        again = ensemble_detections(shuffled, config, NAMES)
        for column in ("images", "labels", "scores", "boxes"):
            assert getattr(again, column).tolist() == getattr(found, column).tolist()

    def test_a_heavy_member_with_several_boxes_stops_at_1(self):
        box = (0.0, 0.0, 10.0, 10.0)
        heavy = detections((0, 0, 1.0, box), (0, 0, 1.0, box))
        found = ensemble_detections(
            {"h": heavy, "l": Detections.empty()},
            EnsembleConfig(weights={"h": 2.0}, own_duplicates="keep"),
            ["bolt"],
        )
        assert found.scores.tolist() == [1.0]  # 2 * 2 / 3 by the formula

    @pytest.mark.parametrize("method", METHODS)
    def test_a_weight_of_0_is_as_if_the_member_were_not_given(self, method):
        members = scene(1)
        config = EnsembleConfig(method=method, weights={"b": 0.0})
        without = ensemble_detections(
            {k: v for k, v in members.items() if k != "b"}, EnsembleConfig(method=method), NAMES
        )
        found = ensemble_detections(members, config, NAMES)
        assert found.scores.tolist() == without.scores.tolist()
        assert found.boxes.tolist() == without.boxes.tolist()

    @pytest.mark.parametrize("method", METHODS)
    def test_weights_of_a_category_are_those_of_an_ensemble_of_that_category_alone(self, method):
        members = scene(2)
        found = ensemble_detections(members, EnsembleConfig(method=method, weights=WEIGHTS), NAMES)
        for label, name in enumerate(NAMES):
            own = {m: row[label] for m, row in zip(members, np.array(TABLE).tolist(), strict=True)}
            alone = ensemble_detections(members, EnsembleConfig(method=method, weights=own), NAMES)
            assert (
                found[found.labels == label].scores.tolist() == alone[alone.labels == label].scores.tolist()
            ), name

    @pytest.mark.parametrize("method", METHODS)
    def test_portions_and_packs_do_not_show(self, method, monkeypatch):
        members = scene(5, count=300)
        whole = ensemble_detections(members, EnsembleConfig(method=method), NAMES)
        monkeypatch.setattr(ensemble, "BOX_PORTION", 100)
        monkeypatch.setattr(clusters, "_PACK", 10)
        monkeypatch.setattr(clusters, "_MIN_LANES", 2)
        found = ensemble_detections(members, EnsembleConfig(method=method), NAMES)
        assert len(found) == len(whole) > 0
        assert found.scores.tolist() == whole.scores.tolist()
        assert found.boxes.tolist() == whole.boxes.tolist()

    @pytest.mark.parametrize("method", METHODS)
    def test_nothing_and_next_to_nothing(self, method):
        config, none = EnsembleConfig(method=method), Detections.empty()
        assert len(ensemble_detections({}, config, NAMES)) == 0
        assert len(ensemble_detections({"a": none, "b": none}, config, NAMES)) == 0
        assert len(ensemble_detections({"a": none}, config, ())) == 0
        one = detections((7, 2, 0.5, (1.0, 2.0, 3.0, 4.0)))
        for members in ({"a": one}, {"a": none, "b": one}):
            found = ensemble_detections(members, config, NAMES)
            halved = method == "wbf" and len(members) == 2
            assert (found.images.tolist(), found.labels.tolist(), found.boxes.tolist()) == (
                [7],
                [2],
                [[1, 2, 3, 4]],
            )
            assert found.scores.tolist() == [0.25 if halved else 0.5]

    @pytest.mark.parametrize("method", METHODS)
    def test_boxes_without_area_overlap_nothing_and_stay(self, method):
        flat = [
            (0, 0, 0.5, (5.0, 5.0, 5.0, 9.0)),
            (0, 0, 0.4, (5.0, 5.0, 5.0, 9.0)),
            (0, 0, 0.9, (0.0, 0, 10, 10)),
        ]
        found = ensemble_detections({"a": detections(*flat)}, EnsembleConfig(method=method), ["bolt"])
        assert found.scores.tolist() == pytest.approx([0.9, 0.5, 0.4])
        assert found.boxes.tolist() == [[0, 0, 10, 10], [5, 5, 5, 9], [5, 5, 5, 9]]


class TestSettingsThatCannotBe:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"weights": {"aa": 1.0}}, "no member 'aa'; did you mean 'a'"),
            (
                {"weights": {"a": {"bolts": 1.0}}},
                r"weights\.a: unknown categories \['bolts'\]",
            ),
            ({"weights": {"a": {"nut": 0.0}, "b": 0.0}}, "weight 0 for .*nut"),
            ({"iou_threshold": {"bolt": 0.5, "nut": 0.5}}, r"without a value \['washer'\]"),
            ({"iou_threshold": {"Nut": 0.5, "default": 0.5}}, r"iou_threshold: unknown categories \['Nut'\]"),
        ],
    )
    def test_names_that_do_not_exist(self, options, told):
        with pytest.raises(ConfigError, match=told):
            ensemble_detections(
                {"a": Detections.empty(), "b": Detections.empty()}, EnsembleConfig(**options), NAMES
            )

    def test_scores_that_are_no_probabilities(self):
        percent = detections((0, 0, 87.0, (0.0, 0, 1, 1)))
        with pytest.raises(DataError, match=r"yolo: the scores lie in 0\.\.87"):
            ensemble_detections({"yolo": percent}, EnsembleConfig(), NAMES)
        rounded = detections((0, 0, 1 + 1e-7, (0.0, 0, 1, 1)))
        assert ensemble_detections({"yolo": rounded}, EnsembleConfig(), NAMES).scores.tolist() == [1.0]


def test_a_members_own_duplicates_do_not_enter_weighted_fusion():
    """Alone, a member then passes through the fusion as hard NMS leaves it."""
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [8, 0, 18, 10], [0, 0, 10, 10]], dtype=np.float64)
    member = Detections(
        images=np.zeros(4, dtype=np.int64),
        labels=np.array([0, 0, 0, 1]),
        scores=np.array([0.9, 0.4, 0.8, 0.3]),
        boxes=boxes,
    )
    config = EnsembleConfig(method="wbf", iou_threshold=0.55)
    fused = ensemble_detections({"one": member}, config, ("a", "b")).by_score()
    assert fused.scores.tolist() == pytest.approx([0.9, 0.8, 0.3])
    assert fused.boxes.tolist() == [boxes[0].tolist(), boxes[2].tolist(), boxes[3].tolist()]
    all_heard = ensemble_detections(
        {"one": member}, config.model_copy(update={"own_duplicates": "keep"}), ("a", "b")
    )
    assert all_heard.by_score().scores.tolist() == pytest.approx([0.8, (0.9 + 0.4) / 2, 0.3])
