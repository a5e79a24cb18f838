"""Where a run computes, and how its processes talk to each other.

Accelerate's `PartialState` starts or joins the process group that `torchrun` describes in the environment. Precision
and the gradient exchange use PyTorch directly: `Accelerator` is a process-wide singleton whose precision cannot
change, and one pipeline trains members of different precision one after the other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scantling.errors import UsageError

T = TypeVar("T")


def available_devices() -> list[str]:
    """Name the devices of this machine, best first: `cuda:0`, ..., `mps`, `cpu`."""
    gpus = (
        [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    apple = ["mps"] if torch.backends.mps.is_available() else []
    return [*gpus, *apple, "cpu"]


def resolve_device(name: str = "auto") -> torch.device:
    """Turn a device option into a device of this machine; never fall back silently.

    Args:
        name: `auto` (a GPU if there is one), `cpu`, `cuda` (this process' GPU), `cuda:1`, `mps`.

    Raises:
        UsageError: There is no such device; the message lists those there are.
    """
    available = available_devices()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = "cuda" if available[0].startswith("cuda") else "cpu"
    wanted = f"cuda:{local_rank}" if name == "cuda" else name
    if wanted not in available:
        raise UsageError(f"device {name!r} is not available here", hint=f"Available: {', '.join(available)}.")
    return torch.device(wanted)


def require_precision(precision: str, device: torch.device) -> None:
    """Refuse a number format that the device cannot compute in.

    Args:
        precision: `fp32`, `bf16` or `fp16`.
        device: Where the model runs.

    Raises:
        UsageError: fp16 away from a GPU, or bf16 on a GPU without it.
    """
    if precision == "fp16" and device.type != "cuda":
        raise UsageError(f"precision fp16 needs a GPU, the device is {device}", hint="Use fp32 or bf16.")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UsageError(f"{torch.cuda.get_device_name(device)} has no bf16", hint="Use fp32 or fp16.")


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that train one model together; most often there is only one.

    Attributes:
        rank: Number of this process.
        world: How many there are.
    """

    rank: int
    world: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Collect one picklable value of every process, in order of rank, on every process."""
        if self.world == 1:
            return [value]
        values = [value] * self.world
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: T) -> T:
        """Give every process the main process' value."""
        return self.gather(value)[0]

    def maximum(self, value: int, device: torch.device) -> int:
        """Return the largest value any process has; cheap enough for every step."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, device=device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared.item())

    def distribute(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Wrap a model so that gradients are averaged over the processes; a lone process gets it back as it is."""
        if self.world == 1:
            return model
        device_ids: Sequence[torch.device] | None = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=device_ids, find_unused_parameters=True)


def join_processes(device: torch.device) -> Processes:
    """Join the process group the launcher describes (`torchrun`), or be the only process.

    Args:
        device: What this process computes on; GPUs exchange gradients over NCCL, CPUs over gloo.
    """
    from accelerate import PartialState

    if device.type == "cuda":
        torch.cuda.set_device(device)
    state = PartialState(cpu=device.type != "cuda")
    return Processes(rank=state.process_index, world=state.num_processes)


def without_exchange(model: nn.Module) -> AbstractContextManager[None]:
    """Within this context gradients pile up locally; what accumulation uses for all batches but the last."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
