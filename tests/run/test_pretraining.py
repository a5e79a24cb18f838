"""What members want of the run's own pretraining."""

from __future__ import annotations

import pytest
import torch

from scantling.models.backbone import Backbone
from scantling.pretrain.moco import Encoder
from scantling.recipe.recipe import load_recipe
from scantling.run.stages.pretraining import _backbone_of, _with_backbone


@pytest.mark.parametrize("norm", ["gn", "bn", "sync_bn", "frozen_bn"])
@pytest.mark.parametrize("name", ["delftbikes-cs21", "parts-cpu"])
def test_the_pretrained_backbone_fits_every_member_whatever_its_normalisation(name, norm):
    members = ("cascade", "double_head")
    recipe = load_recipe(name, [f"members.{member}.model.norm={norm}" for member in members])
    config = _with_backbone(recipe, list(members))
    assert config.norm == norm
    with torch.device("meta"):  # shapes only
        pretrained = Encoder(config).backbone
        for member in members:
            wanted = Backbone(_backbone_of(recipe.members[member].detector))
            shapes = [{k: v.shape for k, v in b.body.state_dict().items()} for b in (pretrained, wanted)]
            assert shapes[0] == shapes[1]
