"""Every setting is checked when it is given, and written down as it was read."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from scantling.errors import ConfigError
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


@pytest.mark.parametrize(
    ("batch_size", "processes", "batches"), [(2, 1, 32), (2, 8, 4), (1, 16, 4), (8, 8, 1), (64, 1, 1)]
)
def test_the_images_of_a_step_are_the_same_on_any_number_of_processes(batch_size, processes, batches):
    config = TrainConfig(batch_size=batch_size, total_batch=64)
    assert config.batches_per_step(processes) == batches
    assert batch_size * processes * batches == 64


def test_without_a_total_every_process_adds_its_own_batches():
    config = TrainConfig(batch_size=2, accumulate=3)
    assert [config.batches_per_step(processes) for processes in (1, 8)] == [3, 3]
    assert "total_batch" not in config.result_settings()
    assert TrainConfig(total_batch=64).result_settings()["total_batch"] == 64


def test_a_total_that_cannot_be_had_is_refused():
    config = TrainConfig(batch_size=2, total_batch=64)
    with pytest.raises(ConfigError, match="total_batch is 64, but 3 processes of 2 images see 6 at a time"):
        config.batches_per_step(3)
    with pytest.raises(ValidationError, match="either accumulate or total_batch"):
        TrainConfig(accumulate=2, total_batch=64)
