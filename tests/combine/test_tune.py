"""Tuning finds what was planted, keeps its hands off noise, and says the official numbers."""

from __future__ import annotations

import numpy as np
import pytest

from combine.planted import dataset_of, detections_from, planted
from scantling.combine.ensemble import EnsembleConfig, ensemble_detections
from scantling.combine.tune import TuneConfig, rows_to_tune, tune_suppression
from scantling.combine.tune_weights import tune_weights
from scantling.combine.tuned import read_tuned, write_tuned
from scantling.data.coco import ReadOptions, parse_coco
from scantling.data.detections import results_of
from scantling.errors import ConfigError, DataError, UsageError
from scantling.evaluate.coco_eval import evaluate_results
from scantling.models.suppression import SuppressConfig, suppress_detections
from scantling.ops.rle import rle_encode
from scantling.predict.predictor import PredictConfig
from scantling.settings.draft import Draft
from scantling.structures.detections import Detections, object_column

BASE = SuppressConfig(score_threshold=0.0)
HARD = TuneConfig(methods=("hard",), bootstrap=100)


def official(dataset, detections: Detections):
    """Mean AP and AP by category name."""
    evaluation = evaluate_results(dataset, results_of(detections, dataset))
    return evaluation.metrics["AP"], {each.name: each.AP for each in evaluation.per_category}


def suppressed(candidates: Detections, config: SuppressConfig, names) -> Detections:
    rows, scores = suppress_detections(candidates, config, names)
    kept = candidates[rows]
    return Detections(images=kept.images, labels=kept.labels, scores=scores, boxes=kept.boxes)


@pytest.fixture(scope="module")
def case():
    return planted()


@pytest.fixture(scope="module")
def tuned(case):
    dataset, candidates = case
    return tune_suppression(candidates, dataset, BASE, HARD)


def test_parts_that_touch_get_a_high_threshold_and_scattered_ones_a_low_one(tuned):
    common, tooth, disc, dirt = tuned.rows
    assert (common.kept, tooth.kept, disc.kept, dirt.kept) == (True, True, False, False)
    assert tuned.config.iou_threshold == {"default": 0.4, "tooth": 0.7}
    assert (tuned.config.method, tuned.config.sigma) == ("hard", BASE.sigma)
    assert tooth.interval[0] > 0.3
    assert (tooth.after, disc.after) == (1.0, 1.0)


def test_masks_decide_where_mask_ap_is_asked_for():
    """The better box of two has a mask of a corner only: by boxes the other is a duplicate, by masks the right one."""
    box, shifted = np.array([100.0, 100, 200, 200]), np.array([124.0, 100, 224, 200])  # IoU 0.61
    bare = dataset_of([(image, 0, box) for image in range(30)], num_images=30, names=("disc",))
    content = bare.to_coco()
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[100, 100, 200, 100, 200, 200, 100, 200]]
    dataset = parse_coco(content, bare.file, bare.image_root, ReadOptions())
    scores = np.random.default_rng(0).uniform(0.4, 1, 30)
    rows = [
        (image, 0, scores[image] * share, b)
        for image in range(30)
        for share, b in ((1, box), (0.97, shifted))
    ]
    whole, corner = np.zeros((2, 400, 400), dtype=bool)
    whole[100:200, 100:200] = corner[100:120, 100:120] = True
    candidates = detections_from(rows).replace(
        masks=object_column([rle_encode(corner), rle_encode(whole)] * 30)
    )
    chosen = {
        kind: tune_suppression(candidates, dataset, BASE, HARD, iou_type=kind) for kind in ("bbox", "segm")
    }
    assert chosen["bbox"].config.iou_threshold <= 0.6 < chosen["segm"].config.iou_threshold
    for kind, found in chosen.items():
        kept_rows, kept_scores = suppress_detections(candidates, found.config, ("disc",))
        kept = candidates[kept_rows].replace(scores=kept_scores)
        results = results_of(kept, dataset)
        assert found.after == pytest.approx(
            evaluate_results(dataset, results, iou_type=kind).metrics["AP"], abs=1e-6
        )
        assert found.after > found.before or kind == "bbox"


@pytest.mark.parametrize("limit", [3, 100])
def test_rows_that_no_option_keeps_decide_nothing(case, limit):
    """Masks need be drawn for some candidates only: with these alone every option scores as with all."""
    dataset, candidates = case
    dataset, candidates = (
        dataset_of([(i, 0, (20.0, 20, 120, 120)) for i in range(40)], num_images=40, names=("tooth",)),
        candidates[candidates.labels == 0],
    )
    faint = candidates.replace(scores=candidates.scores * 0.01)
    crowd = Detections.cat([candidates, faint, faint.replace(boxes=faint.boxes + 3)])
    config = TuneConfig(bootstrap=50, iou_thresholds=(0.3, 0.6), sigmas=(0.1, 0.5))
    base = BASE.model_copy(update={"max_per_image": limit})
    rows = rows_to_tune(crowd, base, config, dataset.class_names)
    assert limit < len(rows) < len(crowd)
    assert rows.tolist() == sorted(set(rows.tolist()))
    whole, some = (tune_suppression(found, dataset, base, config) for found in (crowd, crowd[rows]))
    assert whole == some


def test_what_only_seems_better_is_not_used(tuned):
    dirt = tuned.rows[-1]
    assert dirt.after > dirt.before  # on the images that chose it
    assert dirt.interval[0] <= 0
    assert (dirt.kept, dirt.reason) == (False, "gain does not hold")


def test_each_method_is_found_where_it_is_best(case):
    dataset, candidates = case
    found = tune_suppression(candidates, dataset, BASE, TuneConfig(bootstrap=100)).config
    assert found.method == {"default": "soft_gaussian", "tooth": "hard"}
    assert found.iou_threshold == {"default": BASE.iou_threshold, "tooth": 0.7}
    assert found.sigma == 0.2


def test_the_numbers_are_those_of_the_official_evaluation(case, tuned):
    dataset, candidates = case
    before, _ = official(dataset, suppressed(candidates, BASE, dataset.class_names))
    after, by_name = official(dataset, suppressed(candidates, tuned.config, dataset.class_names))
    assert tuned.before == pytest.approx(before, abs=1e-12)
    assert tuned.after == pytest.approx(after, abs=1e-12)
    for row in tuned.rows[1:]:
        assert (row.after if row.kept else row.before) == pytest.approx(by_name[row.category], abs=1e-12)


def test_every_option_is_scored_as_officially(case):
    dataset, candidates = case
    for option in TuneConfig().options()[1::6]:
        value = "sigma" if option.method == "soft_gaussian" else "iou_threshold"
        config = BASE.model_copy(update={"method": option.method, value: option.value})
        only = TuneConfig(
            methods=(option.method,),
            iou_thresholds=(option.value,),
            sigmas=(option.value or 1,),
            bootstrap=20,
        )
        found = tune_suppression(candidates, dataset, BASE, only)
        mean, by_name = official(dataset, suppressed(candidates, config, dataset.class_names))
        common = found.rows[0]
        assert mean == pytest.approx(common.after if common.reason != "nothing better" else mean, abs=1e-12)
        if common.kept:
            assert [row.before for row in found.rows[1:]] == pytest.approx(list(by_name.values()), abs=1e-12)


def test_the_same_again_and_in_another_order(case, tuned):
    dataset, candidates = case
    assert tune_suppression(candidates, dataset, BASE, HARD) == tuned
    order = np.random.default_rng(1).permutation(len(candidates))
    assert tune_suppression(candidates[order], dataset, BASE, HARD) == tuned


def test_settings_in_use_by_category_stay_where_nothing_is_better(case, tuned):
    dataset, candidates = case
    again = tune_suppression(candidates, dataset, tuned.config, HARD)
    assert (again.config, again.before) == (tuned.config, tuned.after)
    assert not any(row.kept for row in again.rows)
    assert again.rows[0].setting == "as it is"


def test_few_objects_are_not_enough(case):
    dataset, candidates = case
    config = HARD.model_copy(update={"min_objects": 81})
    found = tune_suppression(candidates, dataset, BASE, config)
    assert found.rows[1].reason == "too few objects (< 81)"
    assert not isinstance(found.config.iou_threshold, dict)


def test_only_one_setting_for_all_where_that_is_wanted(case):
    dataset, candidates = case
    found = tune_suppression(candidates, dataset, BASE, HARD.model_copy(update={"per_category": False}))
    assert (len(found.rows), found.config.iou_threshold) == (1, 0.4)


def test_categories_compete_for_the_places_of_an_image(case):
    """With four places per image the many boxes of a looser threshold push others out: then all stays as it was."""
    dataset, candidates = case
    base = BASE.model_copy(update={"max_per_image": 4, "iou_threshold": 0.5})
    found = tune_suppression(candidates, dataset, base, HARD)
    before, _ = official(dataset, suppressed(candidates, base, dataset.class_names))
    after, _ = official(dataset, suppressed(candidates, found.config, dataset.class_names))
    assert (found.before, found.after) == pytest.approx((before, after), abs=1e-12)
    assert found.after >= found.before


def test_nothing_to_tune_on():
    with pytest.raises(UsageError, match="no objects"):
        tune_suppression(Detections.empty(), dataset_of([], num_images=2, names=("bolt",)), BASE, HARD)


def test_truths_without_candidates_change_nothing(case):
    dataset, _ = case
    found = tune_suppression(Detections.empty(), dataset, BASE, HARD)
    assert (found.config, found.before, found.after) == (BASE, 0.0, 0.0)


# ---------------------------------------------------------------- weights


@pytest.fixture(scope="module")
def members():
    """Two detectors that are good, and one whose boxes are beside the objects with scores as high."""
    generator = np.random.default_rng(0)
    truths, good, other, useless = [], [], [], []
    for image in range(40):
        for label in (0, 1):
            corner = generator.uniform(0, 300, 2)
            box = np.array([*corner, *(corner + 60)])
            truths.append((image, label, box))
            for rows, spread in ((good, 2.0), (other, 3.0), (useless, 14.0)):
                rows.append((image, label, generator.uniform(0.4, 1), box + generator.normal(0, spread, 4)))
    dataset = dataset_of(truths, num_images=40, names=("bolt", "nut"))
    found = {"good": good, "other": other, "useless": useless}
    return dataset, {name: detections_from(rows) for name, rows in found.items()}


def test_a_useless_member_gets_a_low_weight(members):
    dataset, detections = members
    found = tune_weights(detections, dataset, EnsembleConfig(), TuneConfig(bootstrap=100))
    weights = found.config.weight_table(list(detections), dataset.class_names)
    assert (weights[2] <= 0.25 * weights[:2].max(axis=0)).all()
    assert found.rows[0].kept
    assert found.rows[0].interval[0] > 0
    fused = ensemble_detections(detections, found.config, dataset.class_names)
    assert found.after == pytest.approx(official(dataset, fused)[0], abs=1e-12)
    assert found == tune_weights(detections, dataset, EnsembleConfig(), TuneConfig(bootstrap=100))


def test_a_member_that_is_good_for_one_category_only_counts_there(members):
    dataset, detections = members
    good, useless = detections["good"], detections["useless"]
    mixed = {
        "bolts": Detections.cat([good[good.labels == 0], useless[useless.labels == 1]]),
        "nuts": Detections.cat([useless[useless.labels == 0], good[good.labels == 1]]),
    }
    found = tune_weights(mixed, dataset, EnsembleConfig(), TuneConfig(bootstrap=100))
    weights = found.config.weight_table(list(mixed), dataset.class_names)
    assert weights[0, 0] > weights[1, 0]
    assert weights[1, 1] > weights[0, 1]


def test_one_member_has_no_weight_to_tune(members):
    dataset, detections = members
    with pytest.raises(UsageError, match="two or more"):
        tune_weights({"good": detections["good"]}, dataset, EnsembleConfig(), TuneConfig())


# ---------------------------------------------------------------- the file


def test_a_file_says_what_was_found_and_nothing_about_the_detector(tmp_path, tuned):
    path = tmp_path / "tuned.yaml"
    ensemble = EnsembleConfig(weights={"a": 2.0, "b": {"default": 1.0, "tooth": 0.5}})
    write_tuned(path, suppress=tuned.config, ensemble=ensemble, comment=tuned.to_text())
    found = read_tuned(path)
    assert found.ensemble == ensemble
    detector = SuppressConfig(score_threshold=0.01, max_candidates=77, iou_threshold=0.9)
    applied = found.suppression_over(detector)
    assert (applied.score_threshold, applied.max_candidates) == (0.01, 77)
    assert applied.iou_threshold == tuned.config.iou_threshold
    assert path.read_text().splitlines()[0].startswith("# category")
    write_tuned(path, ensemble=ensemble)
    assert read_tuned(path).suppression_over(detector) == detector


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# nothing\n", "sections suppress, ensemble or semantic"),
        ("- hard\n", "sections suppress, ensemble or semantic"),
        (
            "suppress: {iou_treshold: 0.4}\n",
            "line 1: suppress.iou_treshold: unknown key; did you mean 'iou_threshold'?",
        ),
        ("supress: {}\n", "did you mean 'suppress'"),
        (
            "suppress:\n  method: hard\n  iou_threshold: {tooth: 1.5}\n",
            "line 3: suppress.iou_threshold.tooth: found 1.5",
        ),
        ("suppress: {method: softest}\n", "suppress.method: found 'softest'"),
        ("suppress: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_told(tmp_path, text, told):
    path = tmp_path / "tuned.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="tuned.yaml") as caught:
        read_tuned(path)
    assert told in str(caught.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(DataError, match="nowhere.yaml"):
        read_tuned(tmp_path / "nowhere.yaml")


def test_the_overrides_of_a_file_say_the_same_to_prediction(tmp_path, tuned):
    write_tuned(tmp_path / "tuned.yaml", suppress=tuned.config)
    found = read_tuned(tmp_path / "tuned.yaml")
    draft = Draft(
        PredictConfig, {"suppress": {"score_threshold": 0.01, "method": "soft_linear"}}, {}, "checkpoint"
    )
    for override in found.suppression_overrides("tuned.yaml"):
        draft = draft.with_override(override)
    assert draft.check().suppress == found.suppression_over(SuppressConfig(score_threshold=0.01))
    write_tuned(tmp_path / "tuned.yaml", ensemble=EnsembleConfig())
    with pytest.raises(ConfigError, match="section 'suppress'"):
        read_tuned(tmp_path / "tuned.yaml").suppression_overrides("tuned.yaml")


def test_of_many_categories_of_noise_hardly_one_is_taken_for_better():
    """Every category has a best setting on its images; that it holds is chance, 1 of 40 for a 95 % interval."""
    generator = np.random.default_rng(0)
    truths, rows = [], []
    for image in range(30):
        for label in range(30):
            corner = generator.uniform(0, 300, 2)
            truths.append((image, label, [*corner, *(corner + 40)]))
            for _ in range(5):
                corner = corner + generator.normal(0, 8, 2)
                rows.append((image, label, generator.uniform(0, 1), [*corner, *(corner + 40)]))
    dataset = dataset_of(truths, num_images=30, names=[f"dirt{label}" for label in range(30)])
    config = TuneConfig(methods=("hard",), bootstrap=100)
    own = tune_suppression(detections_from(rows), dataset, BASE, config).rows[1:]
    assert sum(row.after > row.before for row in own) >= 8
    assert sum(row.kept for row in own) <= 2
