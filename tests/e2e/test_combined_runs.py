"""From parts in DelftBikes' format to a cleaned ensemble in one command; what an ablation and folds leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scantling.audit.file import suspects_json
from scantling.audit.suspects import AuditConfig, find_suspects
from scantling.combine.ensemble import ensemble_detections
from scantling.combine.tuned import read_tuned
from scantling.data.coco import read_results
from scantling.data.detections import detections_of
from scantling.data.formats.locations import read_location
from scantling.errors import ConfigError, UsageError
from scantling.models.suppression import SuppressConfig
from scantling.recipe.recipe import parse_recipe
from scantling.run.ablation import methods, with_variants
from scantling.run.pipeline import prepared_run, run_recipe
from scantling.run.stage import hash_of
from scantling.run.stages.refining import audit_stage, gate_stage, refiner_stage
from scantling.synth.synth import SynthConfig, write_synth
from scantling.train.checkpoint import load_checkpoint

MEMBER = """
    model: {{name: {name}, backbone: test_resnet, init: {init}, fpn_channels: 16, fc_channels: 16,
            num_train_proposals: 50, num_test_proposals: 30, num_rois: 16}}
    augment: {{short_side: 48, long_side: 64}}
    train: {{epochs: 1, batch_size: 4, workers: 0, warmup_steps: 2}}
    predict: {{scales: {scales}, long_side: 72, batch_size: 4,
              suppress: {{method: soft_linear, score_threshold: 0.0, max_per_image: 20}}}}
"""
RECIPE = (
    "about: The whole way with tiny detectors.\npretrain: {epochs: 1, side: 32}\nmembers:\n"
    + "  cascade:"
    + MEMBER.format(name="cascade_rcnn_r18_small", init="pretrain", scales="[40, 48, 56]")
    + "  double_head:"
    + MEMBER.format(name="double_head_rcnn_r18_small", init="random", scales="48")
    + "combine: {tune: {}, ensemble: {}, eliminate: {}}\nevaluate: {bootstrap: 20}\n"
)


def read(path: Path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "parts"
    config = SynthConfig(size_hw=(96, 128), absent_rate=0.3)
    write_synth(root, config, splits={"train": 12, "val": 4}, seed=0, layout="delftbikes")
    return root


@pytest.fixture(scope="module")
def whole_way(command, parts, tmp_path_factory) -> Path:
    """The folder of a finished ablation, which holds the whole run as well."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.yaml").write_text(RECIPE)
    done = command("ablate", parts, "--recipe", folder / "tiny.yaml", "--out", folder / "run")
    assert done.exit_code == 0, done.output
    return folder / "run"


def test_every_stage_of_the_published_solution_is_done(whole_way):
    members = ("cascade", "double_head", "cascade-from-random")
    expected = ["pretrain"]
    expected += [f"members/{name}/{step}" for name in members for step in ("train", "predict")]
    expected += [stage for name in members for stage in (f"tune/{name}", f"members/{name}/detect")]
    expected += ["tune/ensemble", "ensemble", "eliminate", "evaluate", "report", "ablate"]
    status = read(whole_way / "status.json")
    assert status["stages"] == dict.fromkeys(expected, "done")
    metrics = read(whole_way / "metrics.json")
    assert metrics["stage"] == "eliminate"
    assert set(metrics["members"]) == {*members, "ensemble", "eliminate"}


def test_detectors_whose_statistics_are_pooled_over_processes_start_from_own_crops(command, parts, tmp_path):
    """SyncBN, the report's alternative to GroupNorm, in both detectors."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    changes = ["combine=null", "evaluate.bootstrap=0"]
    changes += [f"members.{name}.model.norm=sync_bn" for name in ("cascade", "double_head")]
    changes += ["members.double_head.model.init=pretrain", "members.cascade.predict.scales=48"]
    settings = [argument for change in changes for argument in ("--set", change)]
    done = command(
        "run", tmp_path / "tiny.yaml", "--data", parts, "--out", tmp_path / "run", "--quiet", *settings
    )
    assert done.exit_code == 0, done.output
    pretrained = load_checkpoint(tmp_path / "run/pretrain/moco/backbone.safetensors").tensors
    for name in ("cascade", "double_head"):
        trained = load_checkpoint(tmp_path / f"run/members/{name}/best.safetensors").tensors
        inside = {key for key in trained if key.startswith("model.backbone.body.")}
        assert pretrained.keys() <= inside
        assert any(key.endswith("running_var") for key in inside)


def test_absent_parts_are_no_targets(whole_way, parts):
    states = [
        part["object_state"]
        for image in read(parts / "train_annotations.json").values()
        for part in image["parts"].values()
    ]
    data = read(whole_way / "data.json")["train"]
    assert states.count("absent") > 20
    assert data["num_annotations"] == len(states) - states.count("absent")


def test_each_step_stands_in_the_table_with_the_one_it_is_compared_with(whole_way):
    rows = {row["name"]: row for row in read(whole_way / "evaluate/ingredients.json")["rows"]}
    assert list(rows)[:2] == ["cascade, one size, NMS", "cascade, 3 sizes, NMS"]
    assert rows["cascade, 3 sizes, NMS"]["base"] == "cascade, one size, NMS"
    assert rows["eliminate"]["base"] == "ensemble"
    titles = [f"{name}, tuned" for name in ("cascade", "double_head", "cascade-from-random")]
    assert rows["ensemble"]["base"] in titles
    assert rows.keys() >= set(titles)
    assert "What each step gave" in (whole_way / "report.html").read_text()


def test_the_ablation_has_the_papers_tables_and_shares_what_it_can(whole_way, parts, command):
    table = read(whole_way / "ablation.json")["rows"]
    groups = {
        group: [r["name"] for r in table if r["group"] == group] for group in {r["group"] for r in table}
    }
    assert groups["Pretraining"] == ["from random weights", "pretrained on own crops"]
    assert groups["Test sizes"] == ["1 of 3 test sizes", "3 of 3 test sizes"]
    assert groups["Suppression"][:1] + groups["Suppression"][-1:] == ["NMS", "per category, tuned"]
    assert groups["Ensemble and elimination"][-2:] == ["ensemble", "ensemble, elimination"]
    steps = [row for row in table if row["group"].startswith("Step by step")]
    assert [row["base"] for row in steps] == [None, *(row["name"] for row in steps[:-1])]
    before = (whole_way / "ablation.md").read_text()
    assert "These are the same images" in before
    recipe = whole_way.parent / "tiny.yaml"
    again = command("ablate", parts, "--recipe", recipe, "--out", whole_way)
    assert set(read(whole_way / "status.json")["stages"].values()) == {"kept"}
    assert before.strip() in again.stdout


def test_new_images_go_the_whole_way(whole_way, parts, command, tmp_path):
    done = command("predict", f"{parts}:val", "--run", whole_way, "--out", tmp_path / "found.json")
    assert done.exit_code == 0, done.output
    found, expected = read(tmp_path / "found.json"), read(whole_way / "eliminate/predictions.json")
    key = ("image_id", "category_id")
    assert [[r[k] for k in key] for r in found] == [[r[k] for k in key] for r in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)


def test_the_verb_fuses_a_runs_own_files_as_the_run_does(whole_way, parts, command, tmp_path):
    members = [whole_way / "members" / name / "predictions.json" for name in ("cascade", "double_head")]
    given = ["--data", f"{parts}:val", "--tuned", whole_way / "tune/ensemble.yaml"]
    done = command("ensemble", *members, *given, "--out", tmp_path / "fused.json")
    assert done.exit_code == 0, done.stderr
    assert read(tmp_path / "fused.json") == read(whole_way / "ensemble/predictions.json")
    repeated = tmp_path / "cascade.json"
    rows = read(members[0])
    repeated.write_text(json.dumps(rows + [row | {"score": row["score"] / 2} for row in rows]))
    members = [repeated, tmp_path / "double_head.json"]
    members[1].write_text((whole_way / "members/double_head/predictions.json").read_text())
    for choice, same in (("drop", True), ("keep", False)):
        done = command(
            "ensemble",
            *members,
            *given,
            "--set",
            f"own_duplicates={choice}",
            "--out",
            tmp_path / f"{choice}.json",
        )
        assert done.exit_code == 0, done.stderr
        assert (read(tmp_path / f"{choice}.json") == read(tmp_path / "fused.json")) == same


def test_folds_leave_a_prediction_of_every_training_image_by_a_detector_that_has_not_seen_it(parts, tmp_path):
    overrides = ["data.folds=3", "pretrain=null", "members.cascade.model.init=random", "audit={min_score: 0}"]
    recipe = parse_recipe(RECIPE, file="r.yaml", overrides=overrides).on(data=parts)
    summary = run_recipe(recipe, tmp_path / "run")
    stages = read(summary.out / "status.json")["stages"]
    assert {f"members/cascade/fold-{n}/train" for n in range(3)} <= stages.keys()
    train = read(parts / "train_annotations.json")
    for name in ("cascade", "double_head"):
        seen = {result["image_id"] for result in read(summary.out / f"members/{name}/out-of-fold.json")}
        assert len(seen) == len(train)
    assert summary.metrics["stage"] == "eliminate"
    labels = read_location(f"{parts}:train")
    members = {
        name: detections_of(read_results(summary.out / f"members/{name}/out-of-fold.json", labels), labels)
        for name in ("cascade", "double_head")
    }
    weights = read_tuned(summary.out / "tune/ensemble.yaml").ensemble
    together = ensemble_detections(members, weights, labels.class_names)
    audit = find_suspects(labels, None, together, AuditConfig(min_score=0))
    suspects = read(summary.out / "audit/suspects.json")
    assert len(audit.suspects) > 0
    assert suspects == json.loads(json.dumps(suspects_json(audit, labels)))
    again = run_recipe(recipe, tmp_path / "run")
    assert again.metrics == summary.metrics


def test_a_results_file_of_another_tool_is_a_member(whole_way, parts, tmp_path):
    results = whole_way / "members/cascade/predictions.json"
    text = f"members:\n  yolo: {{predictions: {results}}}\n  other: {{predictions: {{val: {results}}}}}\n"
    text += "combine: {tune: {}, ensemble: {}}\nevaluate: {bootstrap: 0}\n"
    recipe = parse_recipe(text, file="r.yaml").on(data=parts)
    summary = run_recipe(recipe, tmp_path / "run")
    stages = read(summary.out / "status.json")["stages"]
    assert list(stages) == [
        "members/yolo/import", "members/other/import", "tune/ensemble", "ensemble", "evaluate", "report",
    ]  # fmt: skip
    assert read(summary.out / "members/yolo/predictions.json") == read(results)
    missing = parse_recipe(text.replace("val:", "test:"), file="r.yaml").on(data=parts)
    with pytest.raises(ConfigError, match=r"members\.other: no predictions for val"):
        run_recipe(missing, tmp_path / "no")
    assert not (tmp_path / "no").exists()


REFINING = (
    "members:\n  only:"
    + MEMBER.format(name="cascade_rcnn_r18_small", init="random", scales="48")
    + "refine: {model: {backbone: test_resnet, side: 32}, train: {epochs: 1, repeats: 1}}\naudit: {}\n"
    + "evaluate: {bootstrap: 0}\n"
)


def test_a_run_refines_what_comes_out_and_audits_its_labels(parts, command, tmp_path):
    """Without a gate, as nothing is found yet where refining would surely help."""
    recipe = parse_recipe(REFINING, file="r.yaml", overrides=["refine.gate=null", "audit.min_score=0"]).on(
        data=parts
    )
    out = run_recipe(recipe, tmp_path / "run").out
    page = (out / "report.html").read_text()
    assert "There is no gate" in page
    assert '<a href="audit/audit.html">' in page
    assert list(read(out / "status.json")["stages"])[-5:] == [
        "refine/refiner/train", "refine", "audit", "evaluate", "report",
    ]  # fmt: skip
    before, after = (
        read(out / file) for file in ("members/only/predictions.json", "refine/predictions.json")
    )
    assert [r["score"] for r in before] == [r["score"] for r in after]
    assert sum(one["bbox"] != other["bbox"] for one, other in zip(before, after, strict=True)) > 0
    assert read(out / "metrics.json")["stage"] == "refine"
    assert read(out / "audit/suspects.json")["suspects"]
    done = command("predict", f"{parts}:val", "--run", out, "--out", tmp_path / "found.json")
    assert done.exit_code == 0, done.output
    for one, other in zip(read(tmp_path / "found.json"), after, strict=True):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.05)


def test_a_gate_is_measured_on_val_and_closed_where_nothing_was_shown(parts, tmp_path):
    changes = ["refine.gate={min_matches: 2, min_images: 2}", "audit=null", "evaluate.split=train"]
    recipe = parse_recipe(REFINING, file="r.yaml", overrides=changes).on(data=parts)
    out = run_recipe(recipe, tmp_path / "run").out
    assert (out / "members/only/predictions-val.json").is_file()
    gate, counts = (out / "refine/gate.yaml").read_text(), read(out / "refine/counts.json")
    assert counts["gated"] > 0
    assert (counts["refined"] > 0) == ("open: true" in gate)


def stage_inputs(parts: Path, folder: Path, *changes: str) -> dict[str, str]:
    """What the stages that refine and audit go by, in a run of two members with folds that has done all before them."""
    settings = [
        "data.folds=2",
        "pretrain=null",
        "members.cascade.model.init=random",
        "combine.tune=null",
        "audit={}",
    ]
    settings.append("refine={model: {backbone: test_resnet, side: 32}, train: {epochs: 1, repeats: 1}}")
    recipe = parse_recipe(RECIPE, file="r.yaml", overrides=[*settings, *changes]).on(data=parts)
    files = ["refine/refiner/best.safetensors", "refine/gate.yaml"]
    for name in ("cascade", "double_head"):
        files += [f"members/{name}/out-of-fold.json", f"members/{name}/predictions.json"]
        files += [f"members/{name}/predictions-val.json"]
    with prepared_run(recipe, folder, device="cpu", overwrite=True) as (context, _):
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text("[]")
        stages = {
            "refiner": refiner_stage(context),
            "gate": gate_stage(context),
            "audit": audit_stage(context),
        }
    return {name: hash_of(stage.inputs()) for name, stage in stages.items()}


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ("refine.apply.iterations=2", {"refiner", "gate", "audit"}),
        ("refine.apply.flip=true", {"refiner", "gate", "audit"}),
        ("refine.gate.bootstrap=200", {"gate"}),
        ("combine.ensemble.iou_threshold=0.7", {"gate", "audit"}),
        ("combine.ensemble.weights={cascade: 2}", {"gate", "audit"}),
        ("audit.iterations=3", {"audit"}),
        ("members.cascade.predict.batch_size=1", set()),
    ],
)
def test_what_a_changed_setting_decides_is_done_again_and_nothing_else(parts, tmp_path, change, redone):
    before = stage_inputs(parts, tmp_path / "run")
    after = stage_inputs(parts, tmp_path / "run", change)
    assert {name for name in before if before[name] != after[name]} == redone


def test_the_audit_has_no_favourite_among_members(parts, tmp_path):
    with pytest.raises(ConfigError, match="audit: there are several members and no ensemble"):
        stage_inputs(
            parts, tmp_path / "run", "combine.ensemble=null", "combine.eliminate=null", "refine=null"
        )


def test_files_of_other_tools_are_no_out_of_fold_predictions(parts, tmp_path):
    (tmp_path / "theirs.json").write_text("[]")
    recipe = (
        f"members: {{theirs: {{predictions: {tmp_path / 'theirs.json'}}}}}\naudit: {{}}\ndata: {{folds: 2}}\n"
    )
    with pytest.raises(ConfigError, match="audit: neither refined boxes nor out-of-fold predictions"):
        run_recipe(parse_recipe(recipe, file="r.yaml").on(data=parts), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pretrain=null", "model.init is 'pretrain', but nothing is"),
        (
            "pretrain.backbone=resnet18",
            "pretrain and members.cascade differ: backbone 'resnet18' and 'test_resnet'",
        ),
        ("members.cascade.model.init=random", "pretrain: no member starts from it"),
        ("combine.members=[cascade, casacde]", "combine.members: unknown casacde"),
        ("combine.ensemble=null", "there are several members and no ensemble"),
        ("combine.ensemble.weights={yolo: 2}", "weights: there is no member 'yolo'"),
        ("audit={}", "audit: neither refined boxes nor out-of-fold predictions"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_written(parts, tmp_path, change, message):
    recipe = parse_recipe(RECIPE, file="r.yaml", overrides=[change]).on(data=parts)
    with pytest.raises(ConfigError) as caught:
        run_recipe(recipe, tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_ablation_switches_everything_on():
    plain = parse_recipe("members: {a: {model: {name: faster_rcnn_r50, init: x.pth}}}", file="r.yaml")
    widened = with_variants(plain, Path("/w/b.safetensors"))
    assert {name: member.detector.init for name, member in widened.members.items()} == {
        "a": "x.pth",
        "a-from-random": "random",
        "a-from-file": "/w/b.safetensors",
    }
    assert widened.combining.members == ("a",)
    assert widened.combining.ensemble is None
    assert widened.combining.eliminate is not None
    with pytest.raises(UsageError, match=r"members\.a is no detector"):
        with_variants(parse_recipe("members: {a: {predictions: x.json}}", file="r.yaml"))


def test_the_compared_methods_differ_in_nothing_else():
    own = SuppressConfig(method="soft_linear", iou_threshold={"default": 0.3}, score_threshold=1e-7)
    found = methods(own)
    assert [config.method for config in found.values()] == ["hard", "soft_gaussian", "soft_linear"]
    assert {(config.iou_threshold, config.score_threshold) for config in found.values()} == {(0.5, 1e-7)}
