"""Stochastic weight averaging: the mean by value, statistics as of a pass, what is kept, and going on after a stop."""

from __future__ import annotations

import signal

import pytest
import torch
from pydantic import ValidationError
from tiny_training import BATCHES, CONFIG, TinyData, TinyModel, outcome, run_info, train, validate
from torch import nn

from scantling.errors import Interrupted
from scantling.train.checkpoint import load_checkpoint, load_weights, weights_in
from scantling.train.config import TrainConfig
from scantling.train.loop import fit
from scantling.train.optim import build_schedule
from scantling.train.state import step_seed
from scantling.train.swa import EpochAverage, estimated_layers, new_statistics

SWA = CONFIG.model_copy(update={"ema": None, "epochs": 4, "swa": 3, "schedule": "constant"})


def test_every_epoch_counts_alike():
    model = nn.BatchNorm1d(1)
    average = EpochAverage(model)
    for number, (weight, mean) in enumerate([(1.0, 5.0), (2.0, 6.0), (6.0, 7.0)], start=1):
        model.weight.data.fill_(weight)
        model.running_mean.fill_(mean)
        average.take_in(model)
        assert average.epochs == number
    assert average.model.weight.item() == pytest.approx(3)
    assert average.model.running_mean.item() == 7  # a buffer is the last epoch's
    assert not average.model.training
    assert model.weight.item() == 6


def test_statistics_are_the_means_over_the_batches_by_hand():
    """Batches (1, 3) and (5, 5, 8): means 2 and 6, variances (unbiased, as in training) 2 and 3."""
    model = nn.Sequential(
        nn.BatchNorm1d(1), nn.BatchNorm1d(1).eval(), nn.BatchNorm1d(1, track_running_stats=False)
    )
    model[0].running_mean.fill_(100)
    model[1].train = lambda mode=True: model[1]  # as a norm that stays as it is
    layers = estimated_layers(model)
    assert layers == [model[0]]
    with torch.no_grad(), new_statistics(model, layers):
        for batch in ([1.0, 3], [5.0, 5, 8]):
            model[0](torch.tensor(batch)[:, None])
    assert model[0].running_mean.item() == pytest.approx(4)
    assert model[0].running_var.item() == pytest.approx(2.5)
    assert (model[0].momentum, model[0].training) == (0.1, False)


def test_what_else_a_pass_leaves_in_buffers_is_put_back():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x):
            self.seen += len(x)
            return self.norm(x)

    model = Counting()
    with torch.no_grad(), new_statistics(model, estimated_layers(model)):
        model(torch.tensor([[1.0], [3.0]]))
    assert model.seen.item() == 0
    assert model.norm.running_mean.item() == 2


def test_the_average_is_that_of_the_last_epochs_and_has_the_statistics_of_a_pass(tmp_path):
    """Of four epochs the last three; what is validated is the average so far, and it is what is kept as best."""
    measured: list[dict[str, torch.Tensor]] = []
    model = TinyModel()
    after: list[dict[str, torch.Tensor]] = []

    def measure(seen: nn.Module):
        measured.append({name: value.clone() for name, value in seen.state_dict().items()})
        after.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"bbox/AP": float(len(measured))}

    result = fit(model, TinyData(), SWA, out=tmp_path, run=run_info(validate=measure))
    assert all(torch.equal(measured[0][name], after[0][name]) for name in after[0])  # not yet averaged
    for number in (2, 3, 4):
        for name, _ in model.named_parameters():
            mean = torch.stack([each[name] for each in after[1:number]]).mean(dim=0)
            torch.testing.assert_close(measured[number - 1][name], mean)
    best, last = load_checkpoint(result.best), load_checkpoint(result.last)
    for weights in (best.tensors, last.tensors):
        assert all(torch.equal(weights_in(weights)[name], value) for name, value in measured[3].items())
    assert torch.equal(last.tensors["model.head.weight"], after[3]["head.weight"])

    averaged = TinyModel()
    load_weights(averaged, measured[3], source="memory")
    averaged.train()
    averaged.norm.reset_running_stats()
    averaged.norm.momentum = None
    with torch.no_grad():
        for number, batch in enumerate(TinyData().epoch(3, 0)):
            torch.manual_seed(step_seed(3, 4 * BATCHES, 0, number))
            averaged(batch)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(averaged.norm, name), measured[3][f"norm.{name}"])
        assert not torch.allclose(after[3][f"norm.{name}"], measured[3][f"norm.{name}"])


def test_without_a_validation_the_average_is_kept(tmp_path):
    result = train(tmp_path, config=SWA, validate=None)
    best, last = load_checkpoint(result.best).tensors, load_checkpoint(result.last).tensors
    assert torch.equal(best["model.head.weight"], last["swa.head.weight"])
    assert not torch.equal(last["swa.head.weight"], last["model.head.weight"])


def test_best_weights_predict_what_was_measured(tmp_path):
    result = train(tmp_path, config=SWA)
    model = TinyModel()
    load_weights(model, weights_in(load_checkpoint(result.best).tensors), source=result.best)
    assert validate(model.eval())["bbox/AP"] == result.metrics["bbox/AP"]


@pytest.mark.parametrize("at", [3, 7, 12, 3 * BATCHES + 8, 4 * BATCHES + 7])
def test_stopped_anywhere_equals_never_stopped(tmp_path, at):
    """Within an epoch, and within the pass for the statistics: after epochs 2, 3 and 4 five batches more are seen."""
    train(tmp_path / "whole", config=SWA)
    seen = 0

    def strike(_, batch):
        nonlocal seen
        seen += 1
        if seen == at:
            signal.raise_signal(signal.SIGTERM)
        return batch

    with pytest.raises(Interrupted):
        train(tmp_path / "stopped", config=SWA, data=TinyData(before=strike))
    train(tmp_path / "stopped", config=SWA, resume=True)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_the_rate_of_the_averaged_epochs():
    config = TrainConfig(epochs=6, swa=2, swa_lr_scale=0.3, warmup_steps=0, milestones=[3], gamma=0.1)
    schedule = build_schedule(config, 10)
    assert [schedule.scale(step) for step in (0, 29, 30, 39, 40, 59)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.3, 0.3]
    )
    own = build_schedule(config.model_copy(update={"swa_lr_scale": None}), 10)
    assert own.scale(59) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ema": 0.9}, "either ema or swa"),
        ({"early_stopping": 2}, "early_stopping may leave out"),
        ({"epochs": 2}, "swa is 3, but there are 2 epochs"),
        ({"swa": None, "swa_lr_scale": 0.5}, "there are none"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, told):
    with pytest.raises(ValidationError, match=told):
        TrainConfig(**{"swa": 3, **settings})


def test_settings_of_runs_without_averages_are_as_they_were():
    assert not {"swa", "swa_lr_scale"} & TrainConfig().result_settings().keys()
    assert TrainConfig(swa=2).result_settings()["swa"] == 2
    assert [TrainConfig(epochs=5, swa=2).averaged_epochs(epoch) for epoch in (3, 4, 5)] == [0, 1, 2]
