"""The audit finds planted faults by their reason, before anything else, whatever it is given to look with."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from reference.faulty_labels import CLASS, DUPLICATE, LOOSE, MISSING, SPURIOUS, Faulty, detect, make_faulty
from scantling.audit.association import associate
from scantling.audit.file import suspects_json, table_text
from scantling.audit.likelihood import deviation_log_ratio, posterior, precision_of, robust_z, share_at_most
from scantling.audit.reasons import size_groups
from scantling.audit.suspects import AuditConfig, find_suspects, hash_of
from scantling.data.coco import read_coco
from scantling.data.truths import truths_of
from scantling.errors import UsageError
from scantling.ops.overlaps import pairwise_iou
from scantling.structures.detections import Detections

EVERYTHING = AuditConfig(min_score=0.0)
PLANTED = {("loose", LOOSE), ("class", CLASS), ("spurious", SPURIOUS), ("duplicate", 1002), ("missing", None)}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Faulty:
    return make_faulty(tmp_path_factory.mktemp("faulty") / "data")


@pytest.fixture(scope="module")
def audit(faulty):
    return find_suspects(faulty.dataset, faulty.refined, faulty.detections, EVERYTHING)


def of_reason(audit, reason):
    return next(suspect for suspect in audit.suspects if suspect.reason == reason)


def iou(box, truth_xywh) -> float:
    x, y, width, height = truth_xywh
    return float(pairwise_iou(np.array([box]), np.array([[x, y, x + width, y + height]]))[0, 0])


def test_the_planted_faults_come_first_each_with_its_reason(audit):
    first, rest = audit.suspects[:5], audit.suspects[5:]
    assert {(suspect.reason, suspect.annotation_id) for suspect in first} == PLANTED
    assert min(suspect.score for suspect in first) > 0.5
    assert max(suspect.score for suspect in rest) < 0.3
    assert [s.score for s in audit.suspects] == sorted((s.score for s in audit.suspects), reverse=True)


def test_a_label_is_ranked_once(audit, faulty):
    ids = [suspect.annotation_id for suspect in audit.suspects if suspect.annotation_id is not None]
    assert sorted(ids) == sorted(truths_of(faulty.dataset).ids)


def test_what_is_suggested_is_the_truth(audit, faulty):
    assert iou(of_reason(audit, "loose").suggested_box, faulty.truth[LOOSE]) > 0.93
    missing = of_reason(audit, "missing")
    assert missing.box is None
    assert iou(missing.suggested_box, faulty.truth[MISSING]) > 0.9
    true_name = {3: "bolt", 90: "clip"}[faulty.clean["annotations"][CLASS - 1]["category_id"]]
    assert of_reason(audit, "class").suggested_category == true_name != of_reason(audit, "class").category
    assert f"repeats annotation {DUPLICATE}" in of_reason(audit, "duplicate").note


def test_a_refiner_alone_finds_loose_boxes_and_duplicates(faulty):
    audit = find_suspects(faulty.dataset, faulty.refined)
    assert {(s.reason, s.annotation_id) for s in audit.suspects[:3]} >= {
        ("loose", LOOSE),
        ("duplicate", 1002),
    }
    assert audit.used == ("refiner",)
    assert not {"missing", "spurious", "class"} & {suspect.reason for suspect in audit.suspects}


def test_detections_alone_find_every_reason(faulty):
    audit = find_suspects(faulty.dataset, None, faulty.detections, EVERYTHING)
    assert {(suspect.reason, suspect.annotation_id) for suspect in audit.suspects[:5]} == PLANTED


def test_neither_finds_duplicates_only(faulty):
    audit = find_suspects(faulty.dataset)
    assert [(suspect.reason, suspect.annotation_id) for suspect in audit.suspects] == [("duplicate", 1002)]


def test_a_detection_that_agrees_with_the_refined_box_makes_a_loose_label_likelier(faulty):
    """The same label and refined boxes (here inexact): only what the detector says of this one object differs."""
    labels = truths_of(faulty.dataset)
    row = labels.ids.tolist().index(LOOSE)
    refined = faulty.refined + np.random.default_rng(5).normal(0, 1.5, (len(labels), 4))
    truth = detect(faulty.clean).boxes[LOOSE - 1]
    about = np.flatnonzero((faulty.detections.boxes == truth).all(axis=1))
    scores = []
    for box in (truth, labels.boxes[row]):
        boxes = faulty.detections.boxes.copy()
        boxes[about] = box
        audit = find_suspects(faulty.dataset, refined, replace(faulty.detections, boxes=boxes), EVERYTHING)
        scores.append(next(suspect.score for suspect in audit.suspects if suspect.annotation_id == LOOSE))
    agreeing, contradicting = scores
    assert agreeing > 1.3 * contradicting


def test_where_the_detector_is_blind_to_a_category_its_labels_are_not_spurious(faulty):
    seen = faulty.detections[faulty.detections.labels == 1]
    audit = find_suspects(faulty.dataset, None, seen, EVERYTHING)
    unseen = [s.score for s in audit.suspects if s.reason in ("spurious", "loose") and s.category == "bolt"]
    assert len(unseen) > 60
    assert max(unseen) < 0.1


def test_an_unsure_detector_suggests_less(faulty):
    """Half of its detections are on nothing, at the same scores: an unexplained one means little."""
    real = faulty.detections
    away = real.boxes + np.array([45.0, 40.0, 45.0, 40.0])
    doubtful = Detections.cat([real, replace(real, boxes=away)])
    sure, unsure = (find_suspects(faulty.dataset, None, found, EVERYTHING) for found in (real, doubtful))
    assert of_reason(unsure, "missing").score < of_reason(sure, "missing").score


def test_what_else_an_image_lacks_speaks_for_a_missing_label(faulty):
    """The same object is likelier without a label where other detections of its image are unexplained, too."""
    alone = of_reason(find_suspects(faulty.dataset, faulty.refined, faulty.detections, EVERYTHING), "missing")
    here = faulty.detections.images == alone.image
    unlabelled = faulty.detections[here]
    away = replace(unlabelled, boxes=unlabelled.boxes * 0.3)
    more = find_suspects(
        faulty.dataset, faulty.refined, Detections.cat([faulty.detections, away]), EVERYTHING
    )
    spread = replace(away, images=(away.images + 1 + np.arange(len(away))) % len(faulty.dataset))
    elsewhere = find_suspects(
        faulty.dataset, faulty.refined, Detections.cat([faulty.detections, spread]), EVERYTHING
    )
    box = alone.suggested_box
    together, apart = (
        next(s.score for s in audit.suspects if s.image == alone.image and s.suggested_box == box)
        for audit in (more, elsewhere)
    )
    assert together > apart


def test_labels_that_the_border_cuts_are_compared_with_each_other(tmp_path):
    boxes = [[0, 10, 20, 20], [30, 30, 20, 20], [79, 30, 20, 20], [30, 60, 20, 20], [60, 60, 20, 20]]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "bolt"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": box} for number, box in enumerate(boxes)
        ],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    labels = truths_of(read_coco(tmp_path / "labels.json", tmp_path))
    assert labels.is_cut.tolist() == [True, False, True, True, True]
    groups = size_groups(labels)
    assert len(set(groups[labels.is_cut])) == 1
    assert groups[1] not in groups[labels.is_cut]


def test_labels_of_which_nothing_is_known_are_not_listed(faulty):
    untouched = truths_of(faulty.dataset).boxes
    nothing = find_suspects(faulty.dataset, untouched, None, EVERYTHING)
    assert {suspect.reason for suspect in nothing.suspects} <= {"duplicate"}
    json.dumps(suspects_json(nothing, faulty.dataset), allow_nan=False)


def test_the_order_of_records_changes_nothing(faulty, tmp_path, audit):
    content = json.loads(faulty.dataset.file.read_text())
    content["annotations"].reverse()
    content["images"].reverse()
    (tmp_path / "labels.json").write_text(json.dumps(content))
    again = read_coco(tmp_path / "labels.json", faulty.dataset.image_root)
    turned = faulty.detections[np.arange(len(faulty.detections))[::-1]]
    other = find_suspects(again, faulty.refined, turned, EVERYTHING)
    assert other.suspects == audit.suspects
    assert other.data_hash == audit.data_hash


def test_the_hash_tells_other_labels_apart(faulty, tmp_path):
    content = json.loads(faulty.dataset.file.read_text())
    content["annotations"][0]["bbox"][0] += 1
    (tmp_path / "labels.json").write_text(json.dumps(content))
    assert hash_of(read_coco(tmp_path / "labels.json", tmp_path)) != hash_of(faulty.dataset)


def test_crowds_are_no_suspects_and_explain_what_is_in_them(faulty, tmp_path):
    content = json.loads(faulty.dataset.file.read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(annotation["id"] in (LOOSE, SPURIOUS))
    (x, y, width, height), image_id = (
        faulty.truth[MISSING],
        faulty.clean["annotations"][MISSING - 1]["image_id"],
    )
    region = {
        "id": 2000,
        "image_id": image_id,
        "category_id": 3,
        "iscrowd": 1,
        "bbox": [x - 5, y - 5, width + 9, height + 9],
    }
    content["annotations"].append(region)
    (tmp_path / "labels.json").write_text(json.dumps(content))
    crowded = read_coco(tmp_path / "labels.json", tmp_path)
    audit = find_suspects(crowded, None, faulty.detections)
    assert {suspect.reason for suspect in audit.suspects if suspect.score > 0.5} == {"class", "duplicate"}
    assert not {LOOSE, SPURIOUS, 2000} & {suspect.annotation_id for suspect in audit.suspects}


def test_crowds_change_the_score_of_no_other_label(faulty, tmp_path):
    content = json.loads(faulty.dataset.file.read_text())
    spurious = next(a for a in content["annotations"] if a["id"] == SPURIOUS)
    for image in content["images"]:
        if image["id"] != spurious["image_id"]:
            region = {**spurious, "id": 3000 + image["id"], "image_id": image["id"], "iscrowd": 1}
            content["annotations"].append(region)
    (tmp_path / "labels.json").write_text(json.dumps(content))
    crowded = read_coco(tmp_path / "labels.json", tmp_path)
    assert crowded.num_annotations == faulty.dataset.num_annotations + 23
    with_crowds = find_suspects(crowded, None, faulty.detections, EVERYTHING)
    assert with_crowds.suspects == find_suspects(faulty.dataset, None, faulty.detections, EVERYTHING).suspects
    assert SPURIOUS in {suspect.annotation_id for suspect in with_crowds.suspects}


def test_equal_scores_come_in_an_order_of_their_own(faulty):
    """Three more objects without a label, in one image, detected at one score."""
    found, place = faulty.detections, np.array([[100.0, 65, 130, 85]])
    boxes = np.concatenate([place, place + [70, 0, 70, 0], place + [140, 0, 140, 0]])
    many = Detections(
        images=np.append(found.images, [6, 6, 6]),
        labels=np.append(found.labels, [0, 0, 0]),
        scores=np.append(found.scores, np.full(3, found.scores.max())),
        boxes=np.concatenate([found.boxes, boxes]),
    )
    audits = [
        find_suspects(faulty.dataset, None, many[rows], EVERYTHING).suspects
        for rows in (np.arange(len(many)), np.arange(len(many))[::-1])
    ]
    missing = [suspect for suspect in audits[0] if suspect.reason == "missing" and suspect.image == 6]
    assert len(missing) - len({suspect.score for suspect in missing}) >= 2
    assert audits[0] == audits[1]


def test_nothing_to_look_at_is_no_error(tmp_path):
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "none.json").write_text(json.dumps(content))
    empty = read_coco(tmp_path / "none.json", tmp_path)
    audit = find_suspects(empty, np.zeros((0, 4)), Detections.empty())
    assert audit.suspects == ()
    assert table_text(audit, empty) == "0 suspects among 0 labels (none)"


def test_no_detections_at_all_say_nothing(faulty):
    audit = find_suspects(faulty.dataset, None, Detections.empty())
    assert {suspect.reason for suspect in audit.suspects} == {"duplicate"}


def test_boxes_of_other_labels_are_refused(faulty):
    with pytest.raises(UsageError, match=r"145 annotations, but refined boxes of shape \(3, 4\)"):
        find_suspects(faulty.dataset, np.zeros((3, 4)))


def test_the_file_has_a_stable_format(faulty):
    audit = find_suspects(faulty.dataset, faulty.refined, faulty.detections)
    content = json.loads(json.dumps(suspects_json(audit, faulty.dataset), allow_nan=False))
    assert list(content) == ["format", "kind", "data", "used", "config", "counts", "suspects"]
    assert content["data"] == {"file": "labels.json", "sha256": hash_of(faulty.dataset), "num_labels": 145}
    missing = next(record for record in content["suspects"] if record["reason"] == "missing")
    assert list(missing) == [
        "reason", "score", "image_id", "file_name", "annotation_id", "category", "bbox", "suggested_bbox",
        "suggested_category", "suggested_category_id", "note",
    ]  # fmt: skip
    assert missing["annotation_id"] is missing["bbox"] is None
    assert missing["suggested_bbox"][2:] == pytest.approx(faulty.truth[MISSING][2:], abs=2.1)
    assert sum(content["counts"].values()) == len(content["suspects"])


# ---------------------------------------------------------------- the parts, by hand


def test_a_badly_placed_label_still_belongs_to_its_detection(faulty):
    labels = truths_of(faulty.dataset)
    moved = replace(labels, boxes=labels.boxes + 18.0)
    found = associate(moved, detect(faulty.clean), iou_threshold=0.5, near_iou=0.1)
    assert (found.found_by[labels.ids.tolist().index(1)], found.found[0]) == (0, labels.ids.tolist().index(1))
    assert associate(moved, detect(faulty.clean), iou_threshold=0.5, near_iou=0.4).found_by[0] == -1


def test_likelihood_ratios_multiply():
    """Odds 1 to 9 times 9 are even."""
    assert posterior(0.1, np.log(np.array([9.0])))[0] == pytest.approx(0.5)
    assert deviation_log_ratio(np.array([2.0]))[0] == pytest.approx(2 + 0.02)
    assert deviation_log_ratio(np.array([np.nan, -3.0])).tolist() == [0, 0]


def test_a_deviation_is_measured_in_the_spread_of_its_group():
    """Deviations 1, 0, 1 around the median 2: spread 1.4826; with 20 members borrowed from the same numbers."""
    z = robust_z(np.array([1.0, 2.0, 3.0, np.nan]), np.zeros(4, dtype=np.int64), 0.1)
    assert z[:3].tolist() == pytest.approx([-1 / 1.4826, 0, 1 / 1.4826])
    assert np.isnan(z[3])


def test_what_half_of_the_group_shares_is_usual():
    """Two of four are at most 0.1; the group borrows 20 members of which 2 in 4 are."""
    share = share_at_most(np.array([0.1, 0.0, 0.9, 0.8]), np.zeros(4, dtype=np.int64))
    assert share.tolist() == pytest.approx([0.5, 0.25, 1.0, 0.75])


def test_precision_grows_with_the_score_and_leaves_room_for_missing_labels():
    """Of the surest detections 2 in 10 have no label: half of that is missing labels, if the detector finds all."""
    scores = np.concatenate([np.full(10, 0.9), np.full(10, 0.2)])
    is_right = np.array([True] * 8 + [False] * 2 + [True] * 3 + [False] * 7)
    precision, missing = precision_of(scores, is_right, 0.03, 1.0)
    assert missing == pytest.approx(0.1)
    assert precision[[0, 10]].tolist() == pytest.approx([0.8 / 0.9, 0.3 / 0.9])
    assert precision_of(scores, is_right, 0.03, 0.7)[1] == pytest.approx(0.1 * 0.49)
