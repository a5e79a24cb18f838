"""Every setting is checked when it is given, and written down as it was read."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from scantling.train.config import TrainConfig


def test_json_round_trip():
    config = TrainConfig(epochs=10, milestones=[2, 6, 9], betas=[0.9, 0.99], ema=0.999, clip_norm=None)
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.milestones == (2.0, 6.0, 9.0)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", -1),
        ("epochs", 1.5),
        ("epochs", True),
        ("epochs", "3"),
        ("epochs", None),
        ("batch_size", 0),
        ("workers", -2),
        ("lr", float("nan")),
        ("lr", -0.1),
        ("lr", "1e-4"),
        ("ema", 1.0),
        ("clip_norm", 0.0),
        ("norm_decay", 1),
        ("precision", "fp8"),
        ("milestones", [3, 2]),
        ("milestones", [True]),
        ("learning_rate", 0.1),
    ],
)
def test_refuses(setting, value):
    with pytest.raises(ValidationError, match=setting):
        TrainConfig(**{setting: value})


def test_an_unknown_setting_is_refused_and_the_whole_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().lr = 0.5


def test_decay_epochs_follow_the_published_schedule():
    assert TrainConfig(epochs=24).decay_epochs() == (16.0, 22.0)
    assert TrainConfig(epochs=24, milestones=[3]).decay_epochs() == (3.0,)
    assert TrainConfig().decay_epochs() == ()  # length not known yet


def test_settings_that_cannot_change_the_result():
    base = TrainConfig(epochs=3)
    assert (
        base.model_copy(update={"workers": 7, "checkpoint_every": 9}).result_settings()
        == base.result_settings()
    )
    assert base.model_copy(update={"lr": 0.1}).result_settings() != base.result_settings()
