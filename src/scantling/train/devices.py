"""Where a run computes, and how its processes talk to each other.

Accelerate's `PartialState` starts or joins the process group that `torchrun` describes in the environment. Precision
and the gradient exchange use PyTorch directly: `Accelerator` is a process-wide singleton whose precision cannot
change, and one pipeline trains members of different precision one after the other.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scantling.errors import Interrupted, PeerFailed, UsageError

T = TypeVar("T")

_PATIENCE = timedelta(hours=1)
"""How long processes wait for the main one, which evaluates and reports alone; a death is noticed at once."""
_LAST_WORDS_SECONDS = 5.0
"""How long a process outlives one that failed: a launcher ends all as soon as the first is gone."""


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


def describe_device(device: torch.device) -> str:
    """Such as `cuda:0 (NVIDIA H100)`."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def require_precision(precision: str, device: torch.device) -> None:
    """Refuse a number format that the device cannot compute in.

    Args:
        precision: `fp32`, `bf16` or `fp16`.
        device: The device that the model runs on.

    Raises:
        UsageError: fp16 away from a GPU, or bf16 on a GPU without it.
    """
    if precision == "fp16" and device.type != "cuda":
        raise UsageError(f"precision fp16 needs a GPU, the device is {device}", hint="Use fp32 or bf16.")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UsageError(f"{torch.cuda.get_device_name(device)} has no bf16", hint="Use fp32 or fp16.")


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """On a CPU, the same input gives the same gradients to the last bit every time, with several threads, too.

    With as many threads, that is: sums of two are not those of one. Threads of PyTorch otherwise add the gradients of
    values that were read several times by index in the order in which they get there. It costs nothing measurable
    (bench/README.md); on a GPU it would, and not all kernels have such a version.
    """
    if device.type != "cpu":
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    memory: Any = torch.utils.deterministic  # a module that mypy knows without its setting
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that train one model together; most often there is only one.

    Attributes:
        rank: Number of this process.
        world: Number of processes that train together.
        on_machine: Number of them that share this machine.
    """

    rank: int
    world: int
    on_machine: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Collect one picklable value of every process, in order of rank, on every process."""
        if self.world == 1:
            return [value]
        values = [value] * self.world
        with in_contact():
            dist.all_gather_object(values, value)
        return values

    def gather_on_main(self, value: T) -> list[T]:
        """Like `gather`, for values that are large: the other processes get an empty list."""
        if self.world == 1:
            return [value]
        values = [value] * self.world if self.is_main else None
        with in_contact():
            dist.gather_object(value, values)
        return values or []

    def from_main(self, value: T) -> T:
        """Give every process the main process' value."""
        if self.world == 1:
            return value
        values = [value if self.is_main else None]
        with in_contact():
            dist.broadcast_object_list(values)
        (found,) = values
        return found  # type: ignore[return-value]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that each process does for itself: if one fails, all stop after it, and that one says why.

        The processes must not exchange anything within the block.

        Raises:
            PeerFailed: The work of another process failed.
        """
        failure: Exception | None = None
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:
            if self.world == 1:
                raise
            failure = error
        messages = self._gather_failures(failure)
        if failure is not None:
            raise failure
        failed = [f"process {rank}: {message}" for rank, message in enumerate(messages) if message]
        if failed:
            with suppress(Interrupted):
                time.sleep(_LAST_WORDS_SECONDS)
            raise PeerFailed("\n".join(["another process failed", *failed]))

    def _gather_failures(self, failure: Exception | None) -> list[str | None]:
        try:
            return self.gather(None if failure is None else str(failure) or type(failure).__name__)
        except PeerFailed:
            if failure is not None:
                raise failure from None
            raise

    def on_main(self, work: Callable[[], T]) -> T:
        """Let the main process do some work; every process gets its result.

        Raises:
            PeerFailed: On the other processes, if it failed.
        """
        value: T | None = None
        with self.together():
            if self.is_main:
                value = work()
        return self.from_main(value)  # type: ignore[return-value]

    def shares(self, images: Sequence[int], device: torch.device) -> Tensor:
        """Weights with which the mean over the processes becomes the mean over all images.

        Args:
            images: For each batch of a step the images on this process.
            device: Where the weights are needed.

        Returns:
            For each batch its images on this process over the mean of all processes.
        """
        own = torch.tensor(images, dtype=torch.float32, device=device)
        if self.world == 1:
            return torch.ones_like(own)
        total = own.clone()
        with in_contact():
            dist.all_reduce(total)
        return own * self.world / total

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the main process' running statistics, so that all predict with what is saved."""
        if self.world > 1:
            with in_contact():
                for buffer in model.buffers():
                    dist.broadcast(buffer, src=0)

    def average_buffers(self, layers: Iterable[nn.Module]) -> None:
        """Give the floating-point buffers of some layers, the same on every process, their mean over all."""
        if self.world == 1:
            return
        with in_contact():
            for buffer in (buffer for layer in layers for buffer in layer.buffers(recurse=False)):
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer.div_(self.world)

    def maximum(self, value: int, device: torch.device) -> int:
        """Return the largest value any process has; cheap enough for every step."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, device=device)
        with in_contact():
            dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared.item())

    def distribute(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Wrap a model so that gradients are averaged over the processes; a lone process gets it back as it is."""
        if self.world == 1:
            return model
        device_ids: Sequence[torch.device] | None = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=device_ids, find_unused_parameters=True)


ALONE = Processes(rank=0, world=1)


@contextmanager
def in_contact() -> Iterator[None]:
    """Tell a lost connection to another process from every other failure.

    Raises:
        PeerFailed: Another process is gone.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        hint = "Its own message is above, if it had time for one."
        raise PeerFailed("another process of this run is gone", hint=hint) from error


def join_processes(device: torch.device) -> Processes:
    """Join the process group the launcher describes (`torchrun`), or be the only process.

    Args:
        device: The device that this process computes on; GPUs exchange gradients over NCCL, CPUs over gloo.
    """
    from accelerate import PartialState

    if device.type == "cuda":
        torch.cuda.set_device(device)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    state = PartialState(cpu=device.type != "cuda", **({"timeout": _PATIENCE} if world > 1 else {}))
    on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if state.num_processes > 1 else 1
    if state.num_processes > 1:
        atexit.unregister(_leave_group)
        atexit.register(_leave_group)
    return Processes(rank=state.process_index, world=state.num_processes, on_machine=on_machine)


def _leave_group() -> None:
    """End gloo's threads before the interpreter goes, or it may abort; NCCL could wait for a lost process here."""
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def without_exchange(model: nn.Module) -> AbstractContextManager[None]:
    """Within this context gradients pile up locally; what accumulation uses for all batches but the last."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
