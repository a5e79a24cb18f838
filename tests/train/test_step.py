"""One update: accumulation, clipping, precision, and what stops it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from scantling.errors import TrainingError
from scantling.train.config import TrainConfig
from scantling.train.devices import Processes
from scantling.train.optim import build_optimizer
from scantling.train.state import Parts, step_seed
from scantling.train.step import Stepper, explained_failures, refuse_endless_skips

PLAIN = {"epochs": 1, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": None}


class Numbers:
    """A batch of plain numbers."""

    is_padding = False

    def __init__(self, *values: float) -> None:
        self.values = torch.tensor(values)
        self.image_ids = list(values)

    def to(self, device: torch.device) -> Numbers:
        return self


class Slope(nn.Module):
    """Loss weight x mean(values): its gradient is the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, batch: Numbers) -> dict[str, Tensor]:
        return {"slope": self.weight * batch.values.mean()}


def stepper(model: nn.Module, **settings) -> Stepper:
    config = TrainConfig(**PLAIN | settings)
    scaler = GradScaler("cpu", init_scale=1024.0, enabled=config.precision == "fp16")
    parts = Parts(model=model, optimizer=build_optimizer(model, config), average=None, scaler=scaler)
    return Stepper(model, parts, config, Processes(rank=0, world=1), seed=1)


def test_accumulated_batches_count_as_one_batch():
    model = Slope()
    done = stepper(model).update([Numbers(1.0, 3.0), Numbers(6.0, 8.0)], step=0, lr=0.1)
    assert model.weight.item() == pytest.approx(1 - 0.1 * 4.5)  # the mean of the four
    assert done.values == pytest.approx({"loss": 4.5, "loss/slope": 4.5, "grad_norm": 4.5})
    assert (done.images, done.skipped) == (4, False)
    assert model.weight.grad is None


class Table(nn.Module):
    """Values read again and again, whose gradients several threads add up."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(7))
        draws = torch.Generator().manual_seed(0)
        self.rows = torch.randint(0, 7, (200_000,), generator=draws)
        self.weights = torch.randn(200_000, generator=draws)

    def forward(self, batch: Numbers) -> dict[str, Tensor]:
        return {"sum": (self.values[self.rows] * self.weights).sum() * batch.values.mean()}


def test_several_threads_give_the_same_weights_to_the_last_bit():
    """Without `repeatable`, ten updates give ten results."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = set()
        for _ in range(10):
            model = Table()
            stepper(model).update([Numbers(1.0)], step=0, lr=0.1)
            found.add(tuple(model.values.tolist()))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
    assert not torch.are_deterministic_algorithms_enabled()


def test_clipping_limits_the_update_and_reports_the_whole_norm():
    model = Slope()
    done = stepper(model, clip_norm=0.5).update([Numbers(20.0)], step=0, lr=0.1)
    assert done.values["grad_norm"] == pytest.approx(20.0)
    assert model.weight.item() == pytest.approx(1 - 0.1 * 0.5, abs=1e-5)


def test_randomness_belongs_to_the_step_not_to_what_ran_before():
    class Random(Slope):
        def forward(self, batch: Numbers) -> dict[str, Tensor]:
            drawn.append(torch.rand(1).item())
            return super().forward(batch)

    drawn: list[float] = []
    runner = stepper(Random())
    pair = [Numbers(1.0), Numbers(1.0)]
    for step in (0, 1, 0):
        runner.update(pair, step=step, lr=0.1)
    assert drawn[:2] == drawn[4:]
    assert len(set(drawn[:4])) == 4
    ranks = {step_seed(1, 0, rank) for rank in range(8)}
    assert len(ranks) == 8
    assert all(-(2**63) <= seed < 2**63 for seed in ranks)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_bad_loss_names_its_batch_and_leaves_the_weights(precision):
    model = Slope()
    with pytest.raises(
        TrainingError, match=r"step 8, learning rate 0.1: [^\n]*\n  images inf: slope inf\n"
    ) as caught:
        stepper(model, precision=precision).update([Numbers(5.0), Numbers(math.inf)], step=7, lr=0.1)
    assert "images 5.0" not in str(caught.value)
    assert model.weight.item() == 1.0


def test_fp16_skips_an_update_whose_gradient_overflows_and_lowers_the_scale():
    """The loss 1 x 3000 is fine, its gradient times the scale 1024 is beyond half precision."""

    class Half(Slope):
        def forward(self, batch: Numbers) -> dict[str, Tensor]:
            return {"slope": (self.weight.half() * batch.values.half().mean()).float()}

    model = Half()
    runner = stepper(model, precision="fp16")
    done = runner.update([Numbers(3000.0)], step=0, lr=0.1)
    assert done.skipped
    assert "grad_norm" not in done.values
    assert model.weight.item() == 1.0
    for step in range(1, 12):
        done = runner.update([Numbers(3000.0)], step=step, lr=0.1)
        if not done.skipped:
            break
    assert done.values["grad_norm"] == pytest.approx(3000.0)
    assert model.weight.item() == pytest.approx(1 - 0.1 * 3000.0)


def test_endless_skips_end_the_run():
    refuse_endless_skips(31, step=40)
    with pytest.raises(TrainingError, match="step 41: the fp16 gradients overflowed 32 times in a row"):
        refuse_endless_skips(32, step=41)


def test_running_out_of_gpu_memory_says_what_to_do():
    with (
        pytest.raises(TrainingError, match=r"GPU ran out of memory at step 4\nLower batch_size"),
        explained_failures(3),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_a_dead_loader_process_says_what_to_do():
    with pytest.raises(TrainingError, match="workers"), explained_failures(3):
        raise RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed.")
    with pytest.raises(RuntimeError, match="a bug"), explained_failures(3):
        raise RuntimeError("a bug")
