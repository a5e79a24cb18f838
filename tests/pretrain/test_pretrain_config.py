"""The rules for `auto`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scantling.errors import ConfigError
from scantling.pretrain.config import CropFacts, PretrainConfig, resolve_auto

DELFTBIKES = CropFacts(num_crops=133_245, usual_side=180.0, device="cuda", cpu_count=16)
FEW = CropFacts(num_crops=300, usual_side=61.0, device="cpu", cpu_count=2)


def test_published_settings_come_out_for_the_published_crops():
    config = resolve_auto(PretrainConfig(), DELFTBIKES).config
    assert (config.epochs, config.batch_size, config.side, config.lr) == (200, 256, 224, 0.03)
    assert (config.momentum, config.temperature, config.embedding) == (0.999, 0.2, 128)
    assert config.queue == 65_536
    assert (config.train_config().schedule, config.train_config().optimizer) == ("cosine", "sgd")


def test_several_processes_share_the_batch():
    facts = CropFacts(num_crops=133_245, usual_side=180.0, device="cuda", cpu_count=16, processes=8)
    config = resolve_auto(PretrainConfig(), facts).config
    assert (config.batch_size, config.lr, config.queue) == (32, 0.03, 65_536)


def test_a_total_batch_is_shared_and_the_learning_rate_keeps_its_meaning():
    for processes, share in ((1, 256), (8, 32)):
        facts = replace(DELFTBIKES, processes=processes)
        assert resolve_auto(PretrainConfig(total_batch=256, lr=0.03), facts).config.batch_size == share
    with pytest.raises(ConfigError, match="total_batch is 256, but 3 processes of batch_size 85"):
        resolve_auto(PretrainConfig(total_batch=256), replace(DELFTBIKES, processes=3))
    with pytest.raises(ConfigError, match="make steps of 2048 crops"):
        resolve_auto(PretrainConfig(total_batch=256, batch_size=256), replace(DELFTBIKES, processes=8))
    told = resolve_auto(PretrainConfig(batch_size=256, lr=0.03), replace(DELFTBIKES, processes=8)).reasons
    assert "pretrain: a step is 2048 crops of 8 processes; lr is 0.03" in told


def test_few_crops_get_small_batches_and_a_short_queue():
    resolved = resolve_auto(PretrainConfig(), FEW)
    config = resolved.config
    assert (config.batch_size, config.side) == (37, 64)
    assert config.queue == 148  # four batches, at most half of the crops
    assert (config.optimizer, config.lr, config.train_config().optimizer) == ("adamw", 1e-3, "adamw")
    assert 0.9 <= config.momentum < 0.999
    assert len(resolved.reasons) == 9
    assert resolve_auto(config, FEW) == (config, ())


def test_sgd_on_a_cpu_takes_the_published_rate_for_its_batch():
    config = resolve_auto(PretrainConfig(optimizer="sgd"), FEW).config
    assert config.lr == pytest.approx(0.03 * 37 / 256, rel=1e-3)


def test_a_given_learning_rate_is_meant_for_the_published_optimiser():
    config = resolve_auto(PretrainConfig(lr=0.0075), FEW).config
    assert (config.optimizer, config.lr) == ("sgd", 0.0075)


@pytest.mark.parametrize("num_crops", [2, 3, 17])
def test_the_queue_is_never_longer_than_the_crops(num_crops):
    facts = CropFacts(num_crops=num_crops, usual_side=61.0, device="cpu", cpu_count=2)
    config = resolve_auto(PretrainConfig(), facts).config
    assert config.batch_size <= config.queue <= num_crops
    with pytest.raises(ConfigError, match=f"only {num_crops} crops"):
        resolve_auto(PretrainConfig(queue=num_crops + 1), facts)
