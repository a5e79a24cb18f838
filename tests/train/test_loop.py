"""The loop as a whole: what it learns, keeps, refuses, and that stopping it changes nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console
from tiny_training import (
    BATCHES,
    CONFIG,
    META,
    TinyBatch,
    TinyData,
    TinyModel,
    outcome,
    run_info,
    train,
    validate,
)
from torch import nn

from scantling.errors import CheckpointError, ConfigError, Interrupted, TrainingError, UsageError
from scantling.train.checkpoint import load_checkpoint, load_weights, weights_in
from scantling.train.config import TrainConfig
from scantling.train.loop import fit, resumable


def changed(**settings) -> TrainConfig:
    return CONFIG.model_copy(update=settings)


def asking_to_stop_in(step: int, signum: int = signal.SIGTERM):
    """Data that send this process a signal while it waits for the batch of a step (counted from 0)."""

    def before(number: int, batch: TinyBatch) -> TinyBatch:
        if number == step:
            signal.raise_signal(signum)
        return batch

    return TinyData(before=before)


def scores(*values: float | None):
    """A validation that returns these values one after the other."""
    remaining = list(values)
    return lambda model: {"bbox/AP": remaining.pop(0)}


# ---------------------------------------------------------------- learning and history


def test_the_loss_falls(tmp_path):
    model = TinyModel()
    model.dropout, model.norm = nn.Identity(), nn.Identity()
    config = changed(epochs=8, milestones="auto", checkpoint_every=500)
    history = fit(model, TinyData(batches=10), config, out=tmp_path, run=run_info()).history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    measured = [entry["val/bbox/AP"] for entry in history if "val/bbox/AP" in entry]
    assert sum(losses[-5:]) < 0.05 * sum(losses[:5])
    assert measured[-1] > -0.2 > -4 > measured[0]


def test_equals_a_loop_written_by_hand(tmp_path):
    settings = {"ema": None, "schedule": "constant", "warmup_steps": 0, "clip_norm": None, "bias_decay": True}
    ours, plain = TinyModel(), TinyModel().train()
    for model in (ours, plain):
        model.dropout = nn.Identity()
    fit(ours, TinyData(), changed(**settings, norm_decay=True), out=tmp_path, run=run_info())
    given = {"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4}
    optimizer = torch.optim.SGD(plain.parameters(), **given, fused=True)
    for epoch in range(CONFIG.epochs):
        for batch in TinyData().epoch(epoch, 0):
            optimizer.zero_grad()
            sum(plain(batch).values()).backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
    assert torch.equal(ours.norm.running_var, plain.norm.running_var)


def test_history_averages_the_steps_between_entries(tmp_path):
    every, third = tmp_path / "every", tmp_path / "third"
    single = [e for e in train(every, config=changed(log_every=1)).history if "loss" in e]
    grouped = [e for e in train(third, config=changed(log_every=3)).history if "loss" in e]
    assert [entry["step"] for entry in grouped] == [
        3,
        5,
        6,
        9,
        10,
        12,
        15,
    ]  # every third and each end of an epoch
    assert grouped[0]["loss"] == pytest.approx(sum(entry["loss"] for entry in single[:3]) / 3)
    assert grouped[1]["loss/square"] == pytest.approx(sum(entry["loss/square"] for entry in single[3:5]) / 2)
    assert grouped[0]["loss"] == pytest.approx(grouped[0]["loss/square"] + grouped[0]["loss/absolute"])


def test_history_is_written_as_lines_and_as_a_table(tmp_path):
    history = train(tmp_path).history
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == history
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header == "step,epoch,lr,grad_norm,loss,loss/absolute,loss/square,val/bbox/AP,val/bbox/APs"
    assert len(rows) == len(history)


def test_nobody_else_s_random_numbers_change(tmp_path):
    model = TinyModel()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    fit(model, TinyData(), CONFIG, out=tmp_path, run=run_info())
    assert torch.rand(1) == expected


def test_the_seed_decides_the_result(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, seed=seed)
    a, b, c = (outcome(tmp_path / name) for name in "abc")
    assert a == b
    assert a["last"] != c["last"]  # dropout drew other numbers


# ---------------------------------------------------------------- stopping and going on


def worsening(model: nn.Module) -> dict[str, float | None]:
    """A metric that falls with every step, so that a plateau schedule has something to do."""
    return {"bbox/AP": -float(model.norm.num_batches_tracked)}


@pytest.mark.parametrize(
    ("settings", "measure"),
    [
        ({}, validate),
        ({"ema": None, "optimizer": "adamw", "schedule": "cosine", "accumulate": 2}, validate),
        (
            {"optimizer": "adadelta", "lr": 1.0, "schedule": "plateau", "patience": 1, "log_every": 4},
            worsening,
        ),
    ],
    ids=["sgd", "adamw-accumulating", "adadelta-plateau"],
)
def test_stopped_after_every_step_equals_never_stopped(tmp_path, settings, measure):
    config = changed(**settings)
    whole = train(tmp_path / "whole", config=config, validate=measure)
    if config.schedule == "plateau":
        assert whole.history[-2]["lr"] == pytest.approx(config.lr * config.gamma)
    steps = config.epochs * -(-BATCHES // config.accumulate)
    for number in range(steps):
        first = TinyData(before=lambda _, batch: signal.raise_signal(signal.SIGTERM) or batch)
        with pytest.raises(Interrupted, match=f"SIGTERM after step {number + 1};"):
            train(tmp_path / "stopped", config=config, data=first, resume=number > 0, validate=measure)
    train(tmp_path / "stopped", config=config, resume=True, validate=measure)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_stopped_in_a_validation_equals_never_stopped(tmp_path):
    """The validation is abandoned at once and done again, without a second entry in the history."""
    train(tmp_path / "whole")

    def interrupted(model: nn.Module) -> dict[str, float | None]:
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the validation went on")

    for _ in range(2):
        with pytest.raises(Interrupted, match="SIGTERM after step 5"):
            train(tmp_path / "stopped", validate=interrupted, resume=(tmp_path / "stopped").exists())
    train(tmp_path / "stopped", resume=True)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_a_signal_at_the_very_end_is_not_lost(tmp_path):
    """The run is complete, but what comes after it must not begin."""

    def last_one(model: nn.Module) -> dict[str, float | None]:
        if len(seen) == CONFIG.epochs - 1:
            with contextlib.suppress(BaseException):
                signal.raise_signal(signal.SIGTERM)
        seen.append(1)
        return validate(model)

    seen: list[int] = []
    with pytest.raises(Interrupted, match="SIGTERM after step 15"):
        train(tmp_path / "stopped", validate=last_one)
    train(tmp_path / "stopped", resume=True, validate=lambda _: pytest.fail("it went on"))
    train(tmp_path / "whole")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_going_on_from_an_older_state_forgets_what_came_after(tmp_path):
    """As after SIGKILL: `last` is from step 4, the history already has more, its last line torn."""
    train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "killed", data=asking_to_stop_in(3))
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 5, "epoch": 1.0, "loss": 77.0}\n{"step": 6, "epo')
    train(tmp_path / "killed", resume=True)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_a_finished_run_is_left_alone(tmp_path):
    first = train(tmp_path)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    data = TinyData(before=lambda *_: pytest.fail("it trained on"))
    again = train(tmp_path, data=data, resume=True)
    assert again == first
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()} == before


def test_loader_processes_that_die_of_the_same_signal_do_not_hide_it(tmp_path):
    def before(number: int, batch: TinyBatch) -> TinyBatch:
        if number == 7:
            signal.raise_signal(signal.SIGINT)
            raise RuntimeError("DataLoader worker (pid 1) exited unexpectedly")
        return batch

    with pytest.raises(Interrupted, match="SIGINT"):
        train(tmp_path / "stopped", data=TinyData(before=before))
    train(tmp_path / "stopped", resume=True)
    train(tmp_path / "whole")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": changed(lr=0.01)}, ["train.lr: 0.02 then, 0.01 now"]),
        ({"config": changed(ema=None)}, ["train.ema: 0.9 then, None now"]),
        ({"seed": 4}, ["seed: 3 then, 4 now"]),
        ({"data": TinyData(batches=6)}, ["steps_per_epoch: 5 then, 6 now"]),
        ({"meta": META.model_copy(update={"data_hash": "x"})}, ["images or annotations have changed"]),
        ({"meta": META.model_copy(update={"recipe_hash": "x"})}, ["recipe"]),
        (
            {"meta": META.model_copy(update={"model": {"name": "tiny", "width": 8}})},
            ["model.width: 6 then, 8 now"],
        ),
        (
            {"meta": META.model_copy(update={"class_names": ("scratch", "chip")})},
            ["classes: only in the checkpoint: dent", "classes: not in the checkpoint: chip"],
        ),
        ({"meta": META.model_copy(update={"class_names": ("dent", "scratch")})}, ["another order"]),
        (
            {"meta": META.model_copy(update={"category_ids": (0, 1)})},
            ["category ids: [1, 7] then, [0, 1] now"],
        ),
    ],
)
def test_another_run_cannot_be_resumed(tmp_path, changes, words):
    with pytest.raises(Interrupted):
        train(tmp_path, data=asking_to_stop_in(3))
    kept = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(CheckpointError) as caught:
        train(tmp_path, resume=True, **changes)
    assert [word for word in words if word not in str(caught.value)] == []
    assert (tmp_path / "last.safetensors").read_bytes() == kept


def test_settings_that_cannot_change_the_result_may_change(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path / "stopped", data=asking_to_stop_in(3))
    train(tmp_path / "stopped", config=changed(workers=0, checkpoint_every=100), resume=True)
    train(tmp_path / "whole")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_nothing_to_resume(tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("finished", [False, True])
def test_where_last_is_gone_the_one_before_is_gone_on_from_and_told(tmp_path, caplog, monkeypatch, finished):
    train(tmp_path / "whole")
    if finished:
        train(tmp_path / "stopped")
    else:
        with pytest.raises(Interrupted):
            train(tmp_path / "stopped", data=asking_to_stop_in(8))
    (tmp_path / "stopped" / "last.safetensors").unlink()
    state = load_checkpoint(tmp_path / "stopped" / "last.previous.safetensors").meta
    assert resumable(tmp_path / "stopped")
    monkeypatch.setattr(logging.getLogger("scantling"), "propagate", True)
    steps: list[int] = []
    data = TinyData(before=lambda number, batch: (steps.append(number), batch)[1])
    with caplog.at_level(logging.WARNING, logger="scantling"):
        train(tmp_path / "stopped", data=data, resume=True)
    assert len(steps) == CONFIG.epochs * BATCHES - state.step > 0  # not from the start
    assert "last.safetensors is gone; training goes on from the one before it" in caplog.text
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_a_damaged_last_names_the_one_before(tmp_path):
    train(tmp_path)
    last = tmp_path / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"damaged[\s\S]*last\.previous\.safetensors"):
        train(tmp_path, resume=True)
    assert load_checkpoint(tmp_path / "last.previous.safetensors").meta.step == CONFIG.epochs * BATCHES - 1


# ---------------------------------------------------------------- best weights, schedule, early stopping


def test_best_holds_the_weights_of_the_best_validation(tmp_path):
    seen = []

    def remember(model: nn.Module) -> dict[str, float | None]:
        assert not model.training
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"bbox/AP": (0.2, 0.5, 0.4)[len(seen) - 1]}

    result = train(tmp_path, validate=remember)
    best = load_checkpoint(result.best)
    assert (best.meta.epoch, best.meta.step, best.meta.metrics) == (2, 2 * BATCHES, {"bbox/AP": 0.5})
    assert result.metrics == {"bbox/AP": 0.5}
    weights = weights_in(best.tensors)
    assert all(torch.equal(weights[name], tensor) for name, tensor in seen[1].items())
    assert not torch.equal(weights["head.weight"], seen[2]["head.weight"])


def test_the_average_is_what_is_validated_and_kept(tmp_path):
    def weights_seen(model: nn.Module) -> dict[str, float | None]:
        weights.append(model.head.weight.detach().clone())
        return {"bbox/AP": float(len(weights))}

    weights: list[torch.Tensor] = []
    result = train(tmp_path, validate=weights_seen)
    last = load_checkpoint(result.last).tensors
    assert torch.equal(weights[-1], last["ema.head.weight"])
    assert not torch.equal(last["ema.head.weight"], last["model.head.weight"])
    assert torch.equal(load_checkpoint(result.best).tensors["model.head.weight"], weights[-1])


def test_best_weights_predict_what_was_measured(tmp_path):
    result = train(tmp_path)
    model = TinyModel()
    load_weights(model, weights_in(load_checkpoint(result.best).tensors), source=result.best)
    assert validate(model.eval())["bbox/AP"] == result.metrics["bbox/AP"]


def test_undefined_metrics(tmp_path):
    """Until a value is defined the newest weights are best; an undefined one later is no gain."""
    result = train(tmp_path, config=changed(epochs=4), validate=scores(None, float("nan"), 0.1, None))
    assert load_checkpoint(result.best).meta.epoch == 3
    assert [entry["val/bbox/AP"] for entry in result.history if "val/bbox/AP" in entry] == [
        None,
        None,
        0.1,
        None,
    ]
    never = train(tmp_path / "never", validate=scores(None, None, None), config=changed(early_stopping=1))
    assert (load_checkpoint(never.best).meta.epoch, never.metrics) == (3, {"bbox/AP": None})


def test_early_stopping_counts_epochs_without_a_gain(tmp_path):
    result = train(
        tmp_path,
        config=changed(epochs=9, early_stopping=2),
        validate=scores(0.1, 0.3, 0.3, 0.2, 0.9),
    )
    assert (result.epochs, result.metrics) == (4, {"bbox/AP": 0.3})  # an equal value is no gain
    assert train(tmp_path, config=changed(epochs=9, early_stopping=2), resume=True).epochs == 4


def test_plateau_lowers_the_rate_after_patience_epochs_and_waits_again(tmp_path):
    config = changed(epochs=8, schedule="plateau", patience=2, gamma=0.5, warmup_steps=0, lr=0.08)
    values = scores(0.1, 0.2, 0.2, 0.1, 0.1, 0.1, 0.3, 0.0)
    history = train(tmp_path, config=config, validate=values).history
    rates = {
        entry["epoch"]: entry["lr"] for entry in history if "lr" in entry and entry["epoch"].is_integer()
    }
    assert [rates[epoch] for epoch in range(1, 9)] == [0.08, 0.08, 0.08, 0.08, 0.04, 0.04, 0.02, 0.02]


def test_validation_happens_when_due_and_at_the_end(tmp_path):
    history = train(tmp_path, config=changed(epochs=5, validate_every=2)).history
    assert [entry["epoch"] for entry in history if "val/bbox/AP" in entry] == [2.0, 4.0, 5.0]


def test_without_validation_the_last_weights_are_best(tmp_path):
    result = train(tmp_path, validate=None)
    best, last = load_checkpoint(result.best), load_checkpoint(result.last)
    assert torch.equal(best.tensors["model.head.weight"], last.tensors["ema.head.weight"])
    assert result.metrics == {}


def test_a_total_batch_averages_as_many_batches_as_it_takes(tmp_path):
    """One process of 3 images: 6 a step are two batches."""
    one = train(tmp_path / "a", config=changed(batch_size=3, total_batch=6, log_every=1))
    other = train(tmp_path / "b", config=changed(batch_size=3, accumulate=2, log_every=1))
    assert losses(one) == losses(other)
    assert losses(one) != losses(train(tmp_path / "c", config=changed(batch_size=3, log_every=1)))


def losses(result) -> list[float]:
    """The loss of every step."""
    return [entry["loss"] for entry in result.history if "loss" in entry]


def test_accumulation_makes_fewer_steps_and_a_short_last_one(tmp_path):
    result = train(tmp_path, config=changed(accumulate=2, log_every=1))
    assert load_checkpoint(result.last).meta.step == 3 * 3  # 5 batches an epoch: 2 + 2 + 1
    assert [entry["epoch"] for entry in result.history if "loss" in entry][:3] == [0.333333, 0.666667, 1.0]


# ---------------------------------------------------------------- refusals and faults


def spoil(number: int, batch: TinyBatch) -> TinyBatch:
    return replace(batch, targets=batch.targets * float("nan")) if number == 7 else batch


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(TrainingError) as caught:
        train(tmp_path, data=TinyData(before=spoil))
    message = str(caught.value)
    for part in ("step 8", "learning rate 0.02", "e1b2i0", "e1b2i7", "square nan", "absolute nan"):
        assert part in message
    last = load_checkpoint(tmp_path / "last.safetensors")  # loading refuses weights that are not finite
    assert last.meta.step == 6
    assert load_checkpoint(tmp_path / "best.safetensors").meta.step == 5
    train(tmp_path, resume=True)  # the data are repaired: nothing is lost
    train(tmp_path / "whole")
    assert outcome(tmp_path)["last"] == outcome(tmp_path / "whole")["last"]


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    """The square root has a finite value and an infinite slope at zero."""

    class Root(TinyModel):
        def forward(self, batch: TinyBatch) -> dict[str, torch.Tensor]:
            return {"root": (self.head.bias * 0.0).sum().sqrt()}

    with pytest.raises(TrainingError, match=r"step 1,[\s\S]*e0b0i0[\s\S]*root 0, gradient norm (nan|inf)"):
        fit(Root(), TinyData(), CONFIG, out=tmp_path, run=run_info())


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """A buffer can overflow while every loss stays finite."""

    def overflow(number: int, batch: TinyBatch) -> TinyBatch:
        if number == 5:
            model.norm.running_var.fill_(float("inf"))
        return batch

    model = TinyModel()
    with pytest.raises(TrainingError, match=r"norm\.running_var.*not finite"):
        fit(model, TinyData(before=overflow), CONFIG, out=tmp_path, run=run_info())
    assert load_checkpoint(tmp_path / "last.safetensors").meta.step == 5


@pytest.mark.parametrize(
    ("settings", "run", "words"),
    [
        ({"epochs": "auto"}, {}, "epochs is `auto`"),
        ({"schedule": "plateau"}, {"validate": None}, "plateau cannot work without a validation"),
        ({"early_stopping": 3}, {"validate": None}, "early_stopping cannot work without a validation"),
        ({"monitor": "segm/AP"}, {}, "'segm/AP' is not among the metrics"),
    ],
)
def test_settings_that_cannot_work(tmp_path, settings, run, words):
    with pytest.raises(ConfigError, match=words):
        train(tmp_path, config=changed(**settings), **run)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"'cuda' is not available here\nAvailable:.*cpu"):
        train(tmp_path / "out", device="cuda")
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        train(tmp_path / "out", config=changed(precision="fp16"))
    assert not (tmp_path / "out").exists()


def test_no_data(tmp_path):
    with pytest.raises(UsageError, match="nothing to train on"):
        train(tmp_path, data=TinyData(batches=0))


def test_a_folder_with_files_is_not_touched_unless_allowed(tmp_path):
    train(tmp_path, seed=1)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        train(tmp_path, seed=2)
    train(tmp_path, seed=2, overwrite=True)
    train(tmp_path / "fresh", seed=2)
    assert outcome(tmp_path) == outcome(tmp_path / "fresh")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with pytest.raises(Interrupted):
        train(tmp_path, data=asking_to_stop_in(3))
    kept = (tmp_path / "last.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("scantling.train.checkpoint.write_container", full)
        with pytest.raises(TrainingError, match="no space left"):
            train(tmp_path, resume=True)
    assert (tmp_path / "last.safetensors").read_bytes() == kept
    assert not list(tmp_path.glob(".*"))


def test_bf16_trains(tmp_path):
    history = train(tmp_path, config=changed(precision="bf16")).history
    exact = train(tmp_path / "fp32").history
    assert history[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.05)
    assert history[0]["loss"] != exact[0]["loss"]


def test_progress_in_plain_lines(tmp_path):
    text = StringIO()
    train(tmp_path, console=Console(file=text, width=500))
    lines = text.getvalue().splitlines()
    assert "step 2/15, epoch 0.40, loss 3." in lines[0]
    assert "images/s" in lines[0]
    assert any("step 15/15, epoch 3.00, bbox/AP -" in line for line in lines)


def test_progress_on_a_terminal(tmp_path):
    text = StringIO()
    train(tmp_path, console=Console(file=text, width=200, force_terminal=True))
    assert "15/15" in text.getvalue()
    assert "images/s" in text.getvalue()
    assert "epoch 3.00, bbox/AP -" in text.getvalue()
