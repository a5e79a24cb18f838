"""A run on the DeepSportRadar layout: two splits trained on, category id 0, occlusion, and what is handed in."""

from __future__ import annotations

import json

import pytest

from reference.deepsport_layout import faults_of_submission, write_deepsport
from scantling import api

TINY = (
    "data.train=[train, val]",
    "evaluate.split=test",
    "evaluate.bootstrap=20",
    "members.scnet.model.backbone=test_resnet",
    "members.scnet.model.fpn_channels=16",
    "members.scnet.model.fc_channels=16",
    "members.scnet.model.mask_channels=16",
    "members.scnet.model.num_train_proposals=30",
    "members.scnet.model.num_rois=16",
    "members.scnet.augment.short_side=48",
    "members.scnet.augment.long_side=64",
    "members.scnet.augment.blur={}",
    "members.scnet.augment.affine={}",
    "members.scnet.augment.cut_out={}",
    "members.scnet.augment.close_epochs=1",
    "members.scnet.augment.closed=[affine, cut_out]",
    "members.scnet.train.epochs=2",
    "members.scnet.predict.scales=48",
    "members.scnet.predict.long_side=64",
    "members.scnet.predict.suppress.score_threshold=0.0",
    "members.scnet.predict.suppress.max_per_image=5",
)


@pytest.mark.slow
@pytest.mark.timeout(600)  # a training, as in the other files here: how long it takes is the machine's affair
def test_the_small_recipe_runs_and_its_predictions_can_be_handed_in(tmp_path):
    basket = write_deepsport(tmp_path / "basket").parent
    run = api.run("deepsport-cpu", data=basket, out=tmp_path / "run", overrides=TINY, device="cpu")
    assert {"segm/AP", "segm/OM", "segm/OIR", "segm/DPR", "segm/OM_interval"} <= run.metrics.keys()
    assert "bbox/OM" not in run.metrics
    assert run.metrics["split"] == "test"
    predictions = tmp_path / "run" / "members" / "scnet" / "predictions.json"
    assert {each["category_id"] for each in json.loads(predictions.read_text())} == {0}

    out = tmp_path / "output.json"
    api.submission(predictions, f"{basket}:test", "deepsport", out)
    images = json.loads((basket / "annotations" / "test.json").read_text())["images"]
    handed = json.loads(out.read_text())
    assert sum(len(entry["masks"]) for entry in handed) == len(json.loads(predictions.read_text())) > 0
    assert faults_of_submission(handed, images) == []
    again = api.evaluate(out, f"{basket}:test", iou_type="segm")
    assert again.metrics["OM"] == run.metrics["segm/OM"]
