"""The verb ensemble: results files of any tools become one, and what is wrong with them is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from scantling.cli.app import app
from scantling.combine.members import member_names
from scantling.data.coco.records import to_rle

A, B, C = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [30.0, 5.0, 10.0, 10.0]


def found(image, category, score, box, **more):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score, **more}


FIRST = [found("x", 90, 0.8, A), found("x", 3, 0.5, C), found(17, 3, 0.3, B)]
SECOND = [found("x", 90, 0.4, B), found("x", 3, 0.7, A), found(17, 3, 0.9, A)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set with unlike ids, and two results files."""
    monkeypatch.chdir(tmp_path)
    sizes = {"width": 40, "height": 30}
    images = [{"id": i, "file_name": f"{i}.png", **sizes} for i in ("x", 17)]
    categories = [{"id": 90, "name": "bolt"}, {"id": 3, "name": "nut"}]
    truth = {"images": images, "annotations": [], "categories": categories}
    for name, content in {"data": truth, "yolo": FIRST, "other": SECOND}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def ensemble(*arguments, out="fused.json"):
    options = [*map(str, arguments), "--data", "data.json", "--out", out]
    return CliRunner().invoke(app, ["ensemble", *options])


def fused(*arguments):
    done = ensemble("yolo.json", "other.json", *arguments)
    assert done.exit_code == 0, done.output
    return json.loads(Path("fused.json").read_text())


def bolt(*arguments):
    """Score of the one bolt."""
    (score,) = [result["score"] for result in fused(*arguments) if result["category_id"] == 90]
    return score


def refused(*arguments):
    """What is said of a user's mistake; nothing is written."""
    done = ensemble(*arguments)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert not Path("fused.json").exists()
    return done.stderr


def test_boxes_are_fused_and_written_in_the_data_sets_own_ids(folder):
    results = fused()
    together = [r for r in results if r["category_id"] == 90]
    assert [(r["image_id"], r["score"]) for r in together] == [("x", pytest.approx(0.6))]
    assert together[0]["bbox"] == pytest.approx([0, 0, 10, (0.8 * 10 + 0.4 * 8) / 1.2])
    assert [(r["image_id"], r["category_id"], r["score"]) for r in results] == [
        (17, 3, pytest.approx(0.6)),
        ("x", 90, pytest.approx(0.6)),
        ("x", 3, pytest.approx(0.35)),
        ("x", 3, pytest.approx(0.25)),
    ]


@pytest.mark.parametrize("weights", ["3,1", "yolo=3", "other=1, yolo=3"])
def test_weights_by_position_or_name(folder, weights):
    assert bolt("--weights", weights) == pytest.approx((3 * 0.8 + 0.4) / 4)


def test_method_overlap_and_any_other_setting(folder):
    boxes = [r["bbox"] for r in fused("--method", "nms", "--iou", "0.7", "--set", "max_per_image=1")]
    assert boxes == [A, A]
    assert len(fused("--iou", "0.9")) == 6
    assert bolt("--set", "score=max") == pytest.approx(0.8)
    assert len(fused("--set", "iou_threshold.bolt=0.9", "--set", "iou_threshold.default=0.5")) == 5


def test_tuned_settings_which_options_replace(folder):
    (folder / "tuned.yaml").write_text(
        "suppress: {method: hard}\nensemble:\n  method: wbf\n  weights: {yolo: {bolt: 3, nut: 0}, other: 1}\n"
    )
    results = fused("--tuned", "tuned.yaml")
    assert [(r["image_id"], r["category_id"], r["score"]) for r in results] == [
        (17, 3, pytest.approx(0.9)),
        ("x", 90, pytest.approx(0.7)),
        ("x", 3, pytest.approx(0.7)),
    ]
    assert bolt("--tuned", "tuned.yaml", "--weights", "yolo=1") == pytest.approx(0.6)
    assert len(fused("--tuned", "tuned.yaml", "--method", "nms")) == 3


def test_the_summary_for_people_and_programs(folder):
    done = ensemble("yolo.json", "other.json", "--weights", "2,1")
    assert done.stdout.splitlines()[1].split() == ["yolo", "3", "2", "2"]
    assert done.stdout.splitlines()[3].split() == ["wbf", "4", "2", "in", "fused.json"]
    told = json.loads(ensemble("yolo.json", "other.json", "--json").stdout)
    assert (told["num_boxes"], [member["name"] for member in told["members"]]) == (4, ["yolo", "other"])
    assert told["findings"] == []


def test_row_65_one_file_an_empty_file_and_the_same_file_twice(folder):
    (folder / "empty.json").write_text("[]")
    alone = ensemble("yolo.json")
    assert alone.exit_code == 0
    assert len(json.loads((folder / "fused.json").read_text())) == 3
    with_empty = ensemble("yolo.json", "empty.json")
    assert with_empty.exit_code == 0
    assert "results-empty" in with_empty.stderr
    assert ensemble("empty.json").exit_code == 0
    assert json.loads((folder / "fused.json").read_text()) == []
    twice = ensemble("yolo.json", "yolo.json", "--weights", "2,1")
    assert twice.exit_code == 0
    assert "warning: [results-same-twice]" in twice.stderr


def test_row_65_other_images_and_categories_are_warned_of(folder):
    (folder / "left.json").write_text(json.dumps(FIRST[:1]))
    (folder / "right.json").write_text(json.dumps(FIRST[2:]))
    done = ensemble("left.json", "right.json")
    assert done.exit_code == 0
    for told in (
        "results-disjoint",
        "results-uncovered",
        "left.json: has no prediction of 'nut', which other",
    ):
        assert told in done.stderr


def test_masks_are_counted_as_left_out(folder):
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[2:7, 3:9] = 1
    column_runs = np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=0))
    runs = np.diff(column_runs, prepend=0, append=mask.size).tolist()
    rle = to_rle({"size": [30, 40], "counts": runs}, (30, 40))
    masked = [{**found(i, 3, 0.5, A), "segmentation": rle} for i in ("x", 17)]
    del masked[1]["bbox"]
    (folder / "masked.json").write_text(json.dumps(masked))
    (folder / "empty.json").write_text("[]")
    done = ensemble("masked.json", "empty.json", "--weights", "1,0", "--json")
    assert "masked.json: the masks of 2 predictions are not fused, only the boxes" in done.stderr
    assert json.loads(done.stdout)["members"][0]["num_masks"] == 2
    results = json.loads((folder / "fused.json").read_text())
    assert [r["bbox"] for r in results] == [[3, 2, 6, 5], A]
    assert [r["segmentation"] for r in results] == [rle, rle]


class TestMistakes:
    def test_files_of_another_data_set_name_what_is_unknown(self, folder):
        (folder / "images.json").write_text(json.dumps([found("y", 3, 0.5, A)]))
        (folder / "categories.json").write_text(json.dumps([found("x", 4, 0.5, A)]))
        told = refused("yolo.json", "images.json", "categories.json")
        assert "2 of 3 files cannot be used" in told
        assert "images.json: 1 of 1 predictions are for 1 images not in" in told
        assert "categories.json: 1 of 1 predictions are for 1 categories not in" in told
        assert "'y' (" in told

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (
                ("yolo.json", "othr.json"),
                "othr.json: there is no such results file; did you mean 'other.json'",
            ),
            (("yolo.json", "data.json"), "[results-is-coco]"),
            (("yolo.json", "--weights", "1,2"), "--weights 1,2: expected 1 numbers"),
            (("yolo.json", "--weights", "yolo=1,yolo=2"), "yolo is given twice, as 1.0 and as 2.0"),
            (("yolo.json", "--weights", "yolo=heavy"), "--weights yolo=heavy: expected"),
            (("yolo.json", "--weights", "yol=2"), "no member 'yol'; did you mean 'yolo'"),
            (("yolo.json", "--weights", "-1"), "--weights: weights.yolo: found -1.0"),
            (("yolo.json", "--weights", "nan"), "weights.yolo: not a finite number"),
            (("yolo.json", "--weights", "0"), "every member has weight 0"),
            (("yolo.json", "--set", "score=meen"), 'score: found "meen"'),
            (("yolo.json", "--set", "iou=0.5"), "iou: unknown key; did you mean 'iou_threshold'"),
            (("yolo.json", "--set", "iou_threshold.bolt=0.5"), "categories without a value ['nut']"),
            (("yolo.json", "--tuned", "tuned.yaml"), "tuned.yaml: there is no such file of tuned settings"),
            (("yolo.json", "--tuned", "plain.yaml"), "plain.yaml: expected a section 'ensemble'"),
            (("yolo.json", "--tuned", "wrong.yaml"), "wrong.yaml: line 2: sigma: found 0"),
            (("yolo.json", "percent.json"), "percent: the scores lie in 0..80"),
        ],
    )
    def test_what_to_do_is_said(self, folder, arguments, told):
        (folder / "plain.yaml").write_text("suppress: {method: hard}\n")
        (folder / "wrong.yaml").write_text("ensemble:\n  sigma: 0\n")
        (folder / "percent.json").write_text(
            json.dumps([{**r, "score": 100 * r["score"]} for r in FIRST[:1]])
        )
        assert told in refused(*arguments)

    def test_no_member_is_replaced_by_the_ensemble(self, folder):
        before = (folder / "yolo.json").read_text()
        done = ensemble("yolo.json", "other.json", out=str(folder / "yolo.json"))
        assert done.exit_code == 2
        assert "this is read, and never written over" in done.stderr
        assert (folder / "yolo.json").read_text() == before


def test_members_are_named_by_what_tells_the_files_apart(tmp_path):
    def names(*paths):
        return member_names([tmp_path / path for path in paths])

    assert names("a/yolo.json", "b/cascade.json") == ["yolo", "cascade"]
    assert names("m/cascade/predictions.json", "m/double_head/predictions.json") == ["cascade", "double_head"]
    assert names("one/m/p.json", "two/m/p.json") == ["one", "two"]
    assert names("a.json", "a.json", "b.json") == [
        f"{tmp_path}/a.json (1)",
        f"{tmp_path}/a.json (2)",
        f"{tmp_path}/b.json",
    ]


class TestNamesInTheCall:
    """Every tool calls its file alike, and weights that were tuned on one folder apply to another."""

    TUNED = "ensemble:\n  weights: {strong: 3, weak: 1}\n"

    def test_weights_follow_the_names_whatever_the_order(self, folder):
        (folder / "tuned.yaml").write_text(self.TUNED)
        expected = pytest.approx((3 * 0.8 + 0.4) / 4)
        for members in (
            ("strong=yolo.json", "weak=other.json"),
            ("weak=other.json", f"strong={folder}/yolo.json"),
        ):
            for weights in (("--tuned", "tuned.yaml"), ("--weights", "strong=3")):
                assert ensemble(*members, *weights).exit_code == 0
                found = json.loads((folder / "fused.json").read_text())
                assert [r["score"] for r in found if r["category_id"] == 90] == [expected]

    def test_only_some_may_be_named(self, folder):
        told = json.loads(ensemble("strong=yolo.json", "other.json", "--json").stdout)
        assert [(m["name"], m["file"]) for m in told["members"]] == [
            ("strong", "yolo.json"),
            ("other", "other.json"),
        ]

    def test_weights_of_other_names_are_refused_with_the_call_in_their_order(self, folder):
        (folder / "tuned.yaml").write_text(self.TUNED)
        told = refused("yolo.json", "other.json", "--tuned", "tuned.yaml")
        assert "there is no member 'strong'" in told
        assert "strong=yolo.json weak=other.json" in told
        assert "strong=yolo.json weak=other.json" in refused(
            "strong=yolo.json", "other.json", "--tuned", "tuned.yaml"
        )
        assert ensemble("strong=yolo.json", "weak=other.json", "--tuned", "tuned.yaml").exit_code == 0

    @pytest.mark.parametrize(
        ("members", "told"),
        [
            (("a=yolo.json", "a=other.json"), "two members are called 'a'"),
            (("other=yolo.json", "other.json"), "two members are called 'other'"),
            (("a,b=yolo.json",), "'a,b' cannot be the name of a member"),
            (("a=othr.json",), "othr.json: there is no such results file; did you mean 'other.json'"),
        ],
    )
    def test_names_that_cannot_be(self, folder, members, told):
        assert told in refused(*members)

    def test_a_file_whose_name_holds_the_sign_is_a_file(self, folder):
        (folder / "lr=0.1.json").write_text(json.dumps(FIRST))
        told = json.loads(ensemble("lr=0.1.json", "--json").stdout)
        assert told["members"][0]["name"] == "lr=0.1"

    def test_tuned_weights_carry_the_names_of_the_call(self, folder):
        truths = [
            {"id": n, "image_id": r["image_id"], "category_id": r["category_id"], "bbox": r["bbox"]}
            for n, r in enumerate(FIRST, start=1)
        ]
        data = {**json.loads((folder / "data.json").read_text()), "annotations": truths}
        (folder / "data.json").write_text(json.dumps(data))
        arguments = ["tune", "a=yolo.json", "b=other.json", "--data", "data.json", "--out", "tuned.yaml"]
        done = CliRunner().invoke(app, [*arguments, "--set", "search.bootstrap=20"])
        assert done.exit_code == 0, done.output
        assert ensemble("b=other.json", "a=yolo.json", "--tuned", "tuned.yaml").exit_code == 0
        assert "a=yolo.json b=other.json" in refused_after(folder, "yolo.json", "other.json")


def refused_after(folder, *members):
    """What is said where tuned weights have other names."""
    (folder / "fused.json").unlink()
    return refused(*members, "--tuned", "tuned.yaml")


@pytest.mark.parametrize("method", ["wbf", "nmw", "nms", "soft_linear", "soft_gaussian"])
def test_what_is_left_of_a_single_file_keeps_its_masks_and_keys(folder, method):
    mask = to_rle({"size": [30, 40], "counts": [0, 100, 1100]}, (30, 40))
    given = [{**r, "segmentation": mask, "track": n} for n, r in enumerate(FIRST)]
    (folder / "masked.json").write_text(json.dumps(given))
    done = ensemble("masked.json", "--method", method)
    assert (done.exit_code, "not fused" in done.output) == (0, False)
    found = json.loads((folder / "fused.json").read_text())
    files, classes = {"x": "x.png", 17: "17.png"}, {90: "bolt", 3: "nut"}
    assert sorted(found, key=lambda r: r["track"]) == [
        {**r, "file_name": files[r["image_id"]], "category_name": classes[r["category_id"]]} for r in given
    ]


def test_a_mean_of_several_boxes_has_the_keys_of_none(folder):
    given = [{**found("x", 3, 0.8, A), "track": 1}, {**found("x", 3, 0.4, B), "track": 2}]
    (folder / "two.json").write_text(json.dumps(given))
    assert ensemble("two.json", "--set", "own_duplicates=keep").exit_code == 0
    (mean,) = json.loads((folder / "fused.json").read_text())
    assert mean["bbox"] == pytest.approx([0, 0, 10, (0.8 * 10 + 0.4 * 8) / 1.2])
    assert "track" not in mean


@pytest.mark.parametrize(
    ("members", "arguments", "scores"),
    [
        ([[(100, 1.0)], [(100, 1.0)]], ("--weights", "1,3", "--set", "score=max"), [1]),
        ([[(100, 1.0), (100, 1.0)], [(300, 0.5)]], ("--weights", "2,1"), [2 / 3, 0.5 / 3]),
        ([[(100, 1.0)]] * 5, ("--weights", ".2,.2,.2,.2,.2"), [1]),
    ],
    ids=["weights and max", "a model's own repeats", "weights that sum to 1"],
)
def test_scores_of_weighted_boxes_fusion(tmp_path, monkeypatch, members, arguments, scores):
    """Weighted-Boxes-Fusion #39, #40, #38: not above 1, not lifted by repeats, not lowered by the sum of weights."""
    monkeypatch.chdir(tmp_path)
    image = {"id": 1, "file_name": "a.jpg", "width": 1000, "height": 1000}
    content = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    Path("data.json").write_text(json.dumps(content))
    for n, boxes in enumerate(members):
        results = [found(1, 1, score, [corner, corner, 100.0, 100.0]) for corner, score in boxes]
        Path(f"m{n}.json").write_text(json.dumps(results))
    assert ensemble(*(f"m{n}.json" for n in range(len(members))), *arguments).exit_code == 0
    found_scores = [result["score"] for result in json.loads(Path("fused.json").read_text())]
    assert found_scores == pytest.approx(scores)
