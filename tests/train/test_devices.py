"""The device of a run, and what a lone process does where several would talk."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scantling.errors import UsageError
from scantling.train.devices import (
    Processes,
    available_devices,
    join_processes,
    require_precision,
    resolve_device,
)


def pretend_gpus(monkeypatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_takes_a_gpu_if_there_is_one(monkeypatch):
    pretend_gpus(monkeypatch, 2)
    assert available_devices() == ["cuda:0", "cuda:1", "cpu"]
    assert resolve_device("auto") == torch.device("cuda:0")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    pretend_gpus(monkeypatch, 0)
    assert resolve_device("auto") == torch.device("cpu")


def test_each_process_of_a_machine_has_its_gpu(monkeypatch):
    pretend_gpus(monkeypatch, 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device("cuda") == resolve_device("auto") == torch.device("cuda:1")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "gpu", "cpu:1", "tpu", ""])
def test_a_device_that_is_not_there_is_refused_with_what_is(monkeypatch, name):
    pretend_gpus(monkeypatch, 0)
    with pytest.raises(UsageError, match=r"is not available here\nAvailable: cpu\."):
        resolve_device(name)


def test_precisions(monkeypatch):
    require_precision("bf16", torch.device("cpu"))
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        require_precision("fp16", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    with pytest.raises(UsageError, match="Old GPU has no bf16"):
        require_precision("bf16", torch.device("cuda:0"))


def test_a_lone_process_keeps_everything_to_itself():
    alone = join_processes(torch.device("cpu"))
    model = nn.Linear(1, 1)
    assert alone == Processes(rank=0, world=1)
    assert alone.is_main
    assert alone.gather("x") == ["x"]
    assert alone.from_main(None) is None
    assert alone.maximum(15, torch.device("cpu")) == 15
    assert alone.distribute(model, torch.device("cpu")) is model
