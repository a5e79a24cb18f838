"""A repaired copy: nothing accepted changes nothing, everything restores the truth, and nonsense is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from reference.faulty_labels import CLASS, DUPLICATE, LOOSE, MISSING, SPURIOUS, Faulty, make_faulty
from scantling import api
from scantling.audit.decisions import decide_by_rules, parse_rule, read_decisions
from scantling.audit.file import FORMAT, suspects_json
from scantling.audit.repair import MARK
from scantling.audit.suspects import find_suspects
from scantling.data.coco import read_coco
from scantling.errors import DataError, UsageError
from scantling.ops.overlaps import pairwise_iou


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Faulty:
    return make_faulty(tmp_path_factory.mktemp("faulty") / "data")


@pytest.fixture(scope="module")
def suspects(faulty, tmp_path_factory) -> Path:
    """suspects.json as `audit` writes it, of what is more likely than not."""
    audit = find_suspects(faulty.dataset, faulty.refined, faulty.detections)
    content = suspects_json(audit, faulty.dataset)
    content["suspects"] = [record for record in content["suspects"] if record["score"] > 0.5]
    path = tmp_path_factory.mktemp("audit") / "suspects.json"
    path.write_text(json.dumps(content))
    return path


def decisions_file(suspects: Path, choose) -> Path:
    """decisions.json as the page writes it."""
    content = json.loads(suspects.read_text())
    records = [{"decision": choose(record), **record} for record in content["suspects"]]
    path = suspects.with_name("decisions.json")
    head = {"format": FORMAT, "kind": "decisions", "data": content["data"]}
    path.write_text(json.dumps({**head, "decisions": records}))
    return path


def repaired(faulty, tmp_path, **options):
    out = tmp_path / "repaired.json"
    done = api.repair(faulty.dataset.file, out, **options)
    return json.loads(out.read_text()), done


def test_nothing_accepted_leaves_the_content_equal(faulty, suspects, tmp_path):
    content, done = repaired(faulty, tmp_path, decisions=decisions_file(suspects, lambda _: "reject"))
    assert content == json.loads(faulty.dataset.file.read_text())
    assert (sum(done.done.values()), done.num_rejected) == (0, 5)


def test_everything_accepted_restores_the_truth(faulty, suspects, tmp_path):
    content, done = repaired(faulty, tmp_path, decisions=decisions_file(suspects, lambda _: "accept"))
    assert done.done == {"loose": 1, "missing": 1, "spurious": 1, "class": 1, "duplicate": 1}
    clean = {annotation["id"]: annotation for annotation in faulty.clean["annotations"]}
    given = {annotation["id"]: annotation for annotation in content["annotations"]}
    added = given.keys() - clean.keys()
    assert clean.keys() - given.keys() == {MISSING}
    assert added == {1003}
    pairs = [(clean[LOOSE], given[LOOSE]), (clean[MISSING], given[1003])]
    for true, found in pairs:
        assert found["image_id"] == true["image_id"]
        assert found["category_id"] == true["category_id"]
        assert found["area"] == pytest.approx(found["bbox"][2] * found["bbox"][3], abs=1e-3)
        corners = [np.array([[x, y, x + w, y + h]]) for x, y, w, h in (true["bbox"], found["bbox"])]
        assert pairwise_iou(*corners)[0, 0] > 0.9
    changed = {LOOSE, 1003, CLASS}
    assert {**given[CLASS], MARK: None} == {**clean[CLASS], MARK: None}
    assert {i: given[i] for i in given.keys() - changed} == {
        i: clean[i] for i in clean.keys() - changed - {MISSING}
    }
    assert content["images"] == faulty.clean["images"]
    assert content["categories"] == faulty.clean["categories"]


def test_a_repaired_record_says_so_and_what_it_was(faulty, suspects, tmp_path):
    content, _ = repaired(faulty, tmp_path, suspects=suspects, accept=["loose", "class"])
    given = {annotation["id"]: annotation for annotation in content["annotations"]}
    before = {a["id"]: a for a in json.loads(faulty.dataset.file.read_text())["annotations"]}
    assert given[LOOSE][MARK]["was"] == {"bbox": before[LOOSE]["bbox"], "area": before[LOOSE]["area"]}
    assert given[LOOSE]["worker"] == "anna"
    assert given[CLASS][MARK]["was"] == {"category_id": before[CLASS]["category_id"]}
    assert given[CLASS][MARK]["reason"] == "class"
    assert [i for i, annotation in given.items() if MARK in annotation] == [LOOSE, CLASS]
    read_coco(tmp_path / "repaired.json", faulty.dataset.image_root, strict=False)


def test_rules_accept_by_reason_and_score(faulty, suspects):
    scores = {record["reason"]: record["score"] for record in json.loads(suspects.read_text())["suspects"]}
    exactly = scores["loose"]

    def taken(*rules):
        chosen = decide_by_rules(suspects, faulty.dataset, [parse_rule(rule) for rule in rules])
        return [decision.reason for decision in chosen if decision.accept]

    assert taken(f"loose>{exactly}") == []
    assert taken(f"loose>={exactly}") == taken("loose") == taken("loose > 0.5") == ["loose"]
    assert sorted(taken("spurious>0.5", "missing")) == ["missing", "spurious"]


@pytest.mark.parametrize("rule", ["loose<0.5", "loose>1.5", "loose>0.5.5", "", "loose>", ">0.5"])
def test_a_rule_of_another_form_is_refused(rule):
    with pytest.raises(UsageError, match="write REASON>SCORE"):
        parse_rule(rule)


def test_an_unknown_reason_is_told_with_the_nearest_one():
    with pytest.raises(UsageError, match="did you mean 'spurious'"):
        parse_rule("spurius>0.5")


def test_the_original_is_never_written_over(faulty, suspects, tmp_path):
    before = faulty.dataset.file.read_bytes()
    link = tmp_path / "link.json"
    link.symlink_to(faulty.dataset.file)
    for out in (faulty.dataset.file, link, faulty.dataset.file.parent / ".." / "data" / "labels.json"):
        with pytest.raises(UsageError, match="never written over"):
            api.repair(faulty.dataset.file, out, suspects=suspects, accept=["loose"])
    assert faulty.dataset.file.read_bytes() == before


def test_decisions_about_other_labels_are_refused(faulty, suspects, tmp_path):
    content = json.loads(faulty.dataset.file.read_text())
    content["annotations"][3]["bbox"][0] += 1
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    with pytest.raises(DataError, match="decisions-other-data") as caught:
        api.repair(other, tmp_path / "out.json", suspects=suspects, accept=["loose"])
    assert "other.json" in str(caught.value)
    assert not (tmp_path / "out.json").exists()


def test_two_repairs_of_one_label_are_refused(faulty, suspects, tmp_path):
    content = json.loads(decisions_file(suspects, lambda _: "accept").read_text())
    loose = next(record for record in content["decisions"] if record["reason"] == "loose")
    content["decisions"].append({**loose, "reason": "spurious"})
    path = tmp_path / "both.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"annotations {LOOSE} are accepted"):
        api.repair(faulty.dataset.file, tmp_path / "out.json", decisions=path)


@pytest.mark.parametrize(
    ("reason", "changes", "told"),
    [
        ("missing", {}, "missing labels .* accepted twice"),
        ("loose", {"decision": "reject"}, "both accepted and rejected, or listed twice"),
    ],
)
def test_a_decision_is_made_once(faulty, suspects, tmp_path, reason, changes, told):
    content = json.loads(decisions_file(suspects, lambda _: "accept").read_text())
    record = next(record for record in content["decisions"] if record["reason"] == reason)
    content["decisions"].append({**record, **changes})
    path = tmp_path / "twice.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=told):
        api.repair(faulty.dataset.file, tmp_path / "out.json", decisions=path)


def break_record(of, /, **changes):
    def change(content):
        next(record for record in content["decisions"] if record["reason"] == of).update(changes)

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (break_record("loose", decision="perhaps"), "decision-record"),
        (break_record("loose", suggested_bbox=[1, 2, 3]), "four finite numbers"),
        (break_record("loose", suggested_bbox=[1, 2, 3, -4]), "has no extent"),
        (break_record("loose", suggested_bbox=[300, 2, 100, 20]), "leaves its image"),
        (break_record("loose", suggested_bbox=[1, 2, True, 4]), "four finite numbers"),
        (break_record("loose", annotation_id=77777), "no such annotation"),
        (break_record("loose", annotation_id=[1]), "no such annotation"),
        (break_record("loose", image_id=24), "no such annotation on its image"),
        (break_record("loose", image_id={}), "no such image"),
        (break_record("loose", score="high"), "not a number"),
        (break_record("loose", score=10**400), "not a number"),
        (break_record("class", suggested_category_id=77), "no such category"),
        (break_record("missing", annotation_id=1), "has no id yet"),
        (break_record("spurious", reason="ugly"), "unknown reason"),
        (lambda content: content.update(kind="suspects"), "decisions-file"),
        (lambda content: content.update(format=FORMAT - 1), "decisions-file"),
        (lambda content: content.update(decisions={}), "must be a list"),
        (lambda content: content["decisions"].append(3), "expected an object"),
        (lambda content: content.update(data=None), "decisions-other-data"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(faulty, suspects, tmp_path, change, told):
    content = json.loads(decisions_file(suspects, lambda _: "accept").read_text())
    change(content)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=told) as caught:
        api.repair(faulty.dataset.file, tmp_path / "out.json", decisions=path)
    assert "broken.json" in str(caught.value)
    assert not (tmp_path / "out.json").exists()


def test_what_was_asked_for_must_be_clear(faulty, suspects, tmp_path):
    decisions, out = decisions_file(suspects, lambda _: "accept"), tmp_path / "out.json"
    for options in (
        {},
        {"suspects": suspects},
        {"decisions": decisions, "accept": ["loose"]},
        {"decisions": decisions, "suspects": suspects, "accept": ["loose"]},
    ):
        with pytest.raises(UsageError, match="give either"):
            api.repair(faulty.dataset.file, out, **options)


def with_masks(faulty, tmp_path):
    """The same labels with a polygon each."""
    content = json.loads(faulty.dataset.file.read_text())
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    file = tmp_path / "masks.json"
    file.write_text(json.dumps(content))
    return read_coco(file, faulty.dataset.image_root)


def test_a_mask_keeps_its_box_or_goes_with_it(faulty, tmp_path):
    dataset = with_masks(faulty, tmp_path)
    audit = find_suspects(dataset, faulty.refined, faulty.detections)
    suspects = tmp_path / "masks-suspects.json"
    suspects.write_text(json.dumps(suspects_json(audit, dataset)))
    out, before = tmp_path / "out.json", json.loads(dataset.file.read_text())
    kept = api.repair(dataset.file, out, suspects=suspects, accept=["loose>0.5"])
    assert (kept.kept_for_mask, kept.done["loose"]) == (1, 0)
    assert "1 boxes with masks were not moved" in kept.to_text()
    assert json.loads(out.read_text()) == before
    dropped = api.repair(
        dataset.file, out, suspects=suspects, accept=["loose>0.5"], masks="drop", overwrite=True
    )
    assert (dropped.kept_for_mask, dropped.done["loose"]) == (0, 1)
    record = next(a for a in json.loads(out.read_text())["annotations"] if a["id"] == LOOSE)
    assert "segmentation" not in record
    assert record[MARK]["was"].keys() == {"bbox", "area", "segmentation"}


def test_ids_that_are_texts_get_new_texts(faulty, tmp_path):
    content = json.loads(faulty.dataset.file.read_text())
    for image in content["images"]:
        image["id"] = f"image {image['id']}"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"image {annotation['image_id']}"
    content["annotations"][0]["id"] = (1 << 63) + 5
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(content))
    dataset = read_coco(file, faulty.dataset.image_root)
    found = faulty.detections
    order = {image.id: index for index, image in enumerate(dataset.images)}
    moved = type(found)(
        images=np.array([order[f"image {index + 1}"] for index in found.images]),
        labels=found.labels,
        scores=found.scores,
        boxes=found.boxes,
    )
    suspects = tmp_path / "texts-suspects.json"
    suspects.write_text(json.dumps(suspects_json(find_suspects(dataset, None, moved), dataset)))
    out = tmp_path / "out.json"
    api.repair(file, out, suspects=suspects, accept=["missing>0.5"])
    new = [a for a in json.loads(out.read_text())["annotations"] if MARK in a]
    assert [(a["id"], a["image_id"]) for a in new] == [((1 << 63) + 6, "image 4")]


def test_faulty_records_that_a_run_left_out_are_copied_as_they_are(faulty, tmp_path):
    content = json.loads(faulty.dataset.file.read_text())
    first = content["annotations"][0]
    wrong = {**first, "id": 5000, "bbox": [1, 2, -3, 4]}
    content["annotations"].append(wrong)
    file, suspects = tmp_path / "wrong.json", tmp_path / "wrong-suspects.json"
    file.write_text(json.dumps(content))
    dataset = read_coco(file, faulty.dataset.image_root, skip_invalid=True)
    audit = find_suspects(dataset, faulty.refined, faulty.detections)
    suspects.write_text(json.dumps(suspects_json(audit, dataset)))
    done = api.repair(file, tmp_path / "out.json", suspects=suspects, accept=["missing>0.5", "spurious>0.5"])
    assert (done.done["missing"], done.done["spurious"]) == (1, 1)
    records = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert records[-2] == wrong
    assert records[-1]["id"] == 5001


def test_categories_of_one_name_are_not_exchanged(faulty, tmp_path):
    content = json.loads(faulty.dataset.file.read_text())
    for category in content["categories"]:
        category["name"] = "bolt"
    file = tmp_path / "alike.json"
    file.write_text(json.dumps(content))
    dataset, suspects = read_coco(file, faulty.dataset.image_root), tmp_path / "alike-suspects.json"
    suspects.write_text(json.dumps(suspects_json(find_suspects(dataset, None, faulty.detections), dataset)))
    api.repair(file, tmp_path / "out.json", suspects=suspects, accept=["missing>0.5", "class>0.5"])
    records = {a["id"]: a for a in json.loads((tmp_path / "out.json").read_text())["annotations"]}
    clean = {a["id"]: a for a in faulty.clean["annotations"]}
    assert records[1003]["category_id"] == clean[MISSING]["category_id"]
    assert records[CLASS]["category_id"] == clean[CLASS]["category_id"]
    assert clean[CLASS]["category_id"] == content["categories"][0]["id"] != content["categories"][1]["id"]


def test_a_split_file_and_another_format_are_repaired_as_well(faulty, tmp_path):
    voc = tmp_path / "voc"
    folder = tmp_path / "pixels"
    drawn = make_faulty(folder, pixels=True)
    api.convert(drawn.dataset.file, "voc", voc)
    from scantling.data.formats.locations import read_location

    dataset = read_location(voc)
    suspects = tmp_path / "voc-suspects.json"
    suspects.write_text(json.dumps(suspects_json(find_suspects(dataset), dataset)))
    done = api.repair(voc, tmp_path / "voc.json", suspects=suspects, accept=["duplicate>0.5"])
    assert done.done["duplicate"] == 1
    assert len(json.loads((tmp_path / "voc.json").read_text())["annotations"]) == 144
    api.split(drawn.dataset.file, tmp_path / "splits", folds=2)
    left = []
    for file in sorted((tmp_path / "splits").glob("*train*.json")):
        part = read_location(file)
        suspects.write_text(json.dumps(suspects_json(find_suspects(part), part)))
        done = api.repair(file, tmp_path / f"part-{len(left)}.json", suspects=suspects, accept=["duplicate"])
        left.append(done.num_annotations)
    assert sorted(left) == [144, 145]


def test_decisions_read_back_are_those_that_were_made(faulty, suspects):
    path = decisions_file(suspects, lambda record: "accept" if record["reason"] == "missing" else "reject")
    decisions = read_decisions(path, faulty.dataset)
    accepted = [decision for decision in decisions if decision.accept]
    assert [(d.reason, d.annotation_id) for d in accepted] == [("missing", None)]
    assert {d.annotation_id for d in decisions} == {LOOSE, CLASS, SPURIOUS, 1002, None}
    assert DUPLICATE not in {d.annotation_id for d in decisions}
