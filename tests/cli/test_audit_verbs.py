"""The verbs audit and repair from the command line: one table, three files, and messages for what goes wrong."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from reference.faulty_labels import MISSING, Faulty, make_faulty
from reference.tiny_refiner import TINY_REFINER
from scantling import api
from scantling.audit.suspects import AuditConfig, find_suspects
from scantling.cli.app import app
from scantling.data.coco import write_results
from scantling.data.detections import results_of
from scantling.data.formats.locations import read_location
from scantling.refine.apply import ApplyConfig, load_refiner, refine_truth
from scantling.synth.synth import SynthConfig, write_synth


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="scantling")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Faulty:
    return make_faulty(tmp_path_factory.mktemp("faulty") / "data", pixels=True)


@pytest.fixture(scope="module")
def results(faulty, tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "out-of-fold.json"
    write_results(results_of(faulty.detections, faulty.dataset), path, faulty.dataset)
    return path


@pytest.fixture(scope="module")
def audited(faulty, results, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit") / "a b"
    done = run("audit", faulty.dataset.file, "--predictions", results, "--out", out)
    assert done.exit_code == 0, done.output
    return out, done


def test_audit_prints_a_table_and_leaves_three_files(audited):
    out, done = audited
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "5 suspects among 145 labels (1 loose, 1 missing, 1 spurious, 1 class, 1 duplicate)"
    )
    assert len(lines) == 2 + 5 + 2
    assert {file.name for file in out.iterdir()} == {"audit.html", "suspects.json", "suspects.jpg"}
    assert json.loads((out / "suspects.json").read_text())["used"] == ["predictions"]


def test_audit_again_is_the_same_byte_for_byte_and_needs_leave(audited, faulty, results):
    out, done = audited
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    arguments = ("audit", faulty.dataset.file, "--predictions", results, "--out", out)
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    again = run(*arguments, "--overwrite", "--json")
    assert json.loads(again.stdout)["num_suspects"] == 5
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_repair_by_rules(audited, faulty, tmp_path):
    out = tmp_path / "repaired.json"
    arguments = ("repair", faulty.dataset.file, "--suspects", audited[0] / "suspects.json", "--out", out)
    done = run(*arguments, "--accept", "missing>0.5", "--accept", "spurious")
    assert done.exit_code == 0, done.output
    assert "145 annotations; repaired: 1 missing, 1 spurious" in done.stdout
    new = json.loads(out.read_text())["annotations"][-1]
    assert new["image_id"] == faulty.clean["annotations"][MISSING - 1]["image_id"]
    counted = json.loads(run(*arguments, "--accept", "missing>=1", "--overwrite", "--json").stdout)
    assert counted["done"]["missing"] == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--accept", "losse>0.5"], "did you mean 'loose'"),
        ([], "give either --decisions FILE, or --suspects FILE with --accept RULE"),
    ],
)
def test_mistakes_of_repair_are_told(audited, faulty, tmp_path, arguments, told):
    suspects = audited[0] / "suspects.json"
    done = run(
        "repair", faulty.dataset.file, "--suspects", suspects, "--out", tmp_path / "x.json", *arguments
    )
    assert (done.exit_code, (tmp_path / "x.json").exists()) == (2, False)
    assert told in done.stderr


def test_mistakes_of_audit_are_told(faulty, tmp_path):
    file, out = faulty.dataset.file, tmp_path / "out"
    for arguments, told in (
        (("audit", file, "--predictions", tmp_path / "none.json", "--out", out), "no such results file"),
        (("audit", file, "--refiner", tmp_path / "none.safetensors", "--out", out), "no such refiner"),
        (("audit", file, "--set", "min_scores=1", "--out", out), "min_score"),
        (("audit", file, "--predictions", file, "--out", out), "results-is-coco"),
        (("audit", tmp_path / "nowhere", "--out", out), "no such data set"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2, done.output
        assert told in done.stderr
    assert not out.exists()


def test_labels_are_refined_as_the_checkpoint_says(tmp_path):
    write_synth(tmp_path / "parts", SynthConfig(size_hw=(96, 128)), splits={"train": 3, "val": 2}, seed=0)
    summary = api.refine_train(
        tmp_path / "parts", tmp_path / "refiner", overrides=[*TINY_REFINER, "apply.flip=true"], device="cpu"
    )
    everything = AuditConfig(min_score=0.0, iterations=3)
    made = api.audit(
        tmp_path / "parts:val", tmp_path / "out", refiner=summary.checkpoint, device="cpu",
        overrides=["min_score=0", "iterations=3"],
    )  # fmt: skip
    labels, refiner = read_location(tmp_path / "parts:val"), load_refiner(summary.checkpoint, "cpu")
    assert made.audit.used == ("refiner",)
    for flip in (True, False):
        refined = refine_truth(labels, refiner, ApplyConfig(iterations=3, flip=flip))
        found = find_suspects(labels, refined, None, everything)
        assert (found.suspects == made.audit.suspects) is flip
