"""Several processes that do one thing together, each on a GPU of its own: what `torchrun` does, with our exit codes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from scantling.errors import Interrupted, TrainingError, UsageError
from scantling.train.devices import available_devices

T = TypeVar("T")

_LOST = 1
"""Exit code where a process was ended by something else than itself or a request."""


def check_launch(number: int, device: str) -> None:
    """Refuse more processes than there are GPUs.

    Args:
        number: Of processes.
        device: As it was asked for; on `cpu` any number share the processors.

    Raises:
        UsageError: There are too few, or one GPU is named for all.
    """
    if device == "cpu":
        return
    if device not in ("auto", "cuda"):
        raise UsageError(f"--gpus {number} --device {device}: each process takes a GPU of its own")
    there = [name for name in available_devices() if name.startswith("cuda")]
    if len(there) < number:
        found = f"there are {len(there)}" if there else "there is none here"
        hint = "Give a smaller number, or --device cpu to try it out without any."
        raise UsageError(f"--gpus {number}: {found}", hint=hint)


def launch(number: int, command: Sequence[str]) -> int:
    """Run a command in several processes of this machine that find one another, and wait for them.

    A signal to this process goes to all of them. When one fails, the others are ended.

    Args:
        number: Of processes; each finds its place among them in its environment, as `torchrun` writes it.
        command: What each does: arguments of this Python.

    Returns:
        The exit code of the command: 0, that of the first process that failed, or 128 and the signal.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // number)))
    try:
        _launcher(number, sys.executable)(*command)
    except ChildFailedError as error:
        codes = [failure.exitcode for _, failure in sorted(error.failures.items())]
        own = [code for code in codes if code > 0]
        if own:
            return own[0]
        return 128 - codes[0] if codes[0] in (-signal.SIGINT, -signal.SIGTERM) else _LOST
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def call_together(number: int, function: Callable[..., T], *arguments: object) -> list[T]:
    """Call a function in several processes of this machine that find one another, and wait for them.

    Args:
        number: Of processes, as in `launch`.
        function: Of a module; it must return, whatever happens.
        arguments: What can be sent to another process.

    Returns:
        What it returned, by rank.

    Raises:
        TrainingError: A process ended without a word.
        Interrupted: A signal arrived here, and has ended all of them.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        returned = _launcher(number, function)(*arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        hint = "Most often memory ran out. The same command goes on where this one stopped."
        told = f"process {rank} of {number} ended with exit code {failure.exitcode}"
        raise TrainingError(told, hint=hint) from error
    except SignalException as error:
        raise Interrupted(int(error.sigval), "interrupted") from error
    return [returned[rank] for rank in range(number)]


def _launcher(number: int, entry: Any) -> Callable[..., Any]:  # noqa: ANN401 - a program, or a function
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    elastic = logging.getLogger("torch.distributed.elastic")
    elastic.setLevel(logging.CRITICAL)  # the processes say it themselves
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
    )
    return elastic_launch(config, entry)
