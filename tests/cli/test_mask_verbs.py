"""The verbs about masks: ensemble --masks, fuse-semantic, tune-semantic; what they write and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from reference.masked_parts import SIZE_HW, write_masked_parts
from scantling import api
from scantling.cli.app import app
from scantling.ops.polygons import polygons_to_rle
from scantling.ops.rle import rle_area, rle_decode, rle_encode

DATA = "parts/annotations/val.json"


def read(path):
    return json.loads(Path(path).read_text())


def run_lengths(annotation):
    shape = annotation["segmentation"]
    return polygons_to_rle(shape, SIZE_HW) if isinstance(shape, list) else shape


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Painted parts, results with eroded masks and keys of another tool's own, and the exact foreground as PNGs."""
    monkeypatch.chdir(tmp_path)
    write_masked_parts(tmp_path / "parts", {"train": 1, "val": 12})
    labels, results, foreground = read(DATA), [], {}
    for number, annotation in enumerate(labels["annotations"]):
        annotation["segmentation"] = run_lengths(annotation)
        mask = rle_decode(annotation["segmentation"])
        image = annotation["image_id"]
        foreground[image] = foreground.get(image, np.zeros(SIZE_HW, dtype=bool)) | mask
        eroded = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), dtype=np.uint8))
        keys = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        results.append(
            keys | {"score": 0.9 - number / 100, "segmentation": rle_encode(eroded), "track": number}
        )
    (tmp_path / "found.json").write_text(json.dumps(results))
    bare = [{key: value for key, value in result.items() if key != "segmentation"} for result in results]
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    (tmp_path / "maps").mkdir()
    for image, mask in foreground.items():
        cv2.imwrite(f"maps/{image}.png", mask.astype(np.uint8) * 255)
    return tmp_path


def run(verb, *arguments, out):
    return CliRunner().invoke(
        app, [verb, *map(str, arguments), "--data", DATA, "--out", out], prog_name="scantling"
    )


def refused(verb, *arguments, out="out.json"):
    """What is said of a user's mistake; nothing is written."""
    done = run(verb, *arguments, out=out)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert not Path(out).exists()
    return done.stderr


def mask_ap(file):
    return api.evaluate(file, DATA, iou_type="segm").metrics["AP"]


class TestEnsemble:
    def test_matched_by_masks_the_better_counts(self, folder):
        done = run(
            "ensemble", "a=found.json", "b=found.json", "--masks", "--weights", "b=0.5", out="out.json"
        )
        assert done.exit_code == 0, done.output
        assert "not fused" not in done.stderr
        assert done.stdout.splitlines()[-1].split()[:2] == ["mask_nms", "24"]
        given = {result["track"]: result for result in read("found.json")}
        for result in read("out.json"):
            assert {**given[result["track"]], "bbox": pytest.approx(result["bbox"])}.items() <= result.items()

    def test_a_vote_of_several(self, folder):
        for options in (("--masks", "--method", "mask_vote"), ("--set", "method=mask_vote")):
            done = run("ensemble", "a=found.json", "b=found.json", *options, out="out.json")
            assert done.exit_code == 0, done.output
            found = read("out.json")
            assert len(found) == 24
            assert all("track" not in result for result in found)
            given = [result["segmentation"]["counts"] for result in read("found.json")]
            assert sorted(result["segmentation"]["counts"] for result in found) == sorted(given)

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (("--masks", "--method", "wbf"), "wbf makes means of boxes, and masks have none"),
            (("bare.json", "--masks"), "bare: no prediction has a mask, so it cannot be matched by masks"),
            (("--set", "pixel_share=0", "--masks"), "pixel_share: found 0"),
            (("--method", "mask_iou"), "Invalid value for '--method'"),
        ],
    )
    def test_mistakes(self, folder, arguments, told):
        assert told in refused("ensemble", "found.json", *arguments)

    def test_weights_are_tuned_by_masks_where_masks_are_matched(self, folder):
        better = [{**r, "score": r["score"] / 2} for r in read("found.json")]
        for result, annotation in zip(better, read(DATA)["annotations"], strict=True):
            result["segmentation"] = run_lengths(annotation)
        (folder / "better.json").write_text(json.dumps(better))
        quick = ("--set", "search.bootstrap=20", "--set", "search.rounds=1")
        done = run(
            "tune",
            "eroded=found.json",
            "better.json",
            "--set",
            "ensemble.method=mask_vote",
            *quick,
            out="tuned.yaml",
        )
        assert done.exit_code == 0, done.output
        done = run("ensemble", "eroded=found.json", "better.json", "--tuned", "tuned.yaml", out="out.json")
        assert done.exit_code == 0, done.output
        assert mask_ap("out.json") > mask_ap("found.json") + 0.3
        rule = ("--set", "search.weight_rule=ap", "--set", "ensemble.method=mask_nms")
        done = run("tune", "eroded=found.json", "better.json", *quick, *rule, out="rule.yaml")
        assert done.exit_code == 0, done.output
        assert f"eroded: {mask_ap('found.json'):.4f}"[:12] in Path("rule.yaml").read_text()


class TestFuseSemantic:
    def test_masks_gain_what_the_maps_call_foreground(self, folder):
        done = run("fuse-semantic", "found.json", "--maps", "maps", out="out.json")
        assert done.exit_code == 0, done.output
        assert mask_ap("out.json") > mask_ap("found.json") + 0.05
        assert "24 of 24 masks changed, in out.json" in done.stdout
        for before, after in zip(read("found.json"), read("out.json"), strict=True):
            assert {**before, "segmentation": after["segmentation"]}.items() <= after.items()

    def test_the_area_of_another_tool_follows_its_mask(self, folder):
        given = [{**result, "area": 1.0} for result in read("found.json")]
        (folder / "sized.json").write_text(json.dumps(given))
        assert run("fuse-semantic", "sized.json", "--maps", "maps", out="out.json").exit_code == 0
        for after in read("out.json"):
            assert after["area"] == rle_area(after["segmentation"]) > 1

    def test_what_was_counted_for_programs(self, folder):
        done = run(
            "fuse-semantic",
            "found.json",
            "--maps",
            "maps",
            "--set",
            "score_threshold=0.8",
            "--json",
            out="out.json",
        )
        told = json.loads(done.stdout)
        assert (told["num_detections"], told["num_fused"]) == (24, 10)
        assert sum(counts["fused"] for counts in told["categories"].values()) == 10
        changed = [
            one["track"]
            for one, other in zip(read("out.json"), read("found.json"), strict=True)
            if one["segmentation"] != other["segmentation"]
        ]
        assert changed == list(range(10))

    def test_tuned_settings_are_applied(self, folder):
        quick = ("--set", "search.bootstrap=20", "--set", "semantic.score_threshold=1")
        done = run("tune-semantic", "found.json", "--maps", "maps", *quick, out="tuned.yaml")
        assert done.exit_code == 0, done.output
        assert "used" in done.stdout
        done = run("fuse-semantic", "found.json", "--maps", "maps", "--tuned", "tuned.yaml", out="out.json")
        assert done.exit_code == 0, done.output
        assert mask_ap("out.json") > mask_ap("found.json") + 0.05

    def test_what_has_no_mask_or_no_map_stays(self, folder):
        mixed = [*read("found.json")[1:], read("bare.json")[0]]
        (folder / "mixed.json").write_text(json.dumps(mixed))
        Path("maps/3.png").unlink()
        done = run("fuse-semantic", "mixed.json", "--maps", "maps", "--skip-invalid", out="out.json")
        assert done.exit_code == 0, done.output
        assert "1 predictions have no mask and stay as they are" in done.stderr
        assert "1 images with predictions to fuse have no map" in done.stderr
        assert "segmentation" not in next(r for r in read("out.json") if r["track"] == 0)
        assert "1 of 12 images have no map" in refused(
            "fuse-semantic", "mixed.json", "--maps", "maps", out="no.json"
        )

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (
                ("found.json", "--maps", "map"),
                "map: there is no such folder or file of score maps; did you mean 'maps'",
            ),
            (("found.json", "--maps", "parts/images"), "a picture in colours"),
            (("bare.json", "--maps", "maps"), "no prediction has a mask, so there is nothing to fuse"),
            (("found.json", "--maps", "maps", "--set", "mode=add"), 'mode: found "add"'),
            (
                ("found.json", "--maps", "maps", "--set", "mode.dent=union"),
                "categories without a value ['spot']",
            ),
            (("found.json", "--maps", "maps", "--set", "tau=0.5"), "tau: unknown key"),
            (
                ("found.json", "--maps", "maps", "--tuned", "plain.yaml"),
                "plain.yaml: expected a section 'semantic'",
            ),
        ],
    )
    def test_mistakes(self, folder, arguments, told):
        (folder / "plain.yaml").write_text("suppress: {method: hard}\n")
        assert told in refused("fuse-semantic", *arguments)

    def test_what_is_read_is_never_written_over(self, folder):
        before = Path("found.json").read_text()
        done = run("fuse-semantic", "found.json", "--maps", "maps", out="found.json")
        assert done.exit_code == 2
        assert Path("found.json").read_text() == before
        done = run("tune-semantic", "found.json", "--maps", "maps", out="found.json")
        assert (done.exit_code, Path("found.json").read_text()) == (2, before)
