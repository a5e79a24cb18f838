"""Work done ahead of time in other processes, in order, with failures that say what to do.

Results travel as one pickle plus their large tensors in shared memory: thousands of small tensors would each take a
file descriptor. Faults of the input raised in a worker arrive unchanged; a worker that dies becomes a `TrainingError`.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar, cast

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scantling.errors import ScantlingError, TrainingError

Task = TypeVar("Task")
Answer = TypeVar("Answer")
Packed = tuple[bytes, list[Tensor]]

_SHARED_FROM_ELEMENTS = 1 << 16
_START = "fork" if sys.platform == "linux" else None
"""How processes start; None is the system's way. From Python 3.14 on that is a server of forks on Linux, which a
SIGTERM to all processes of a job would end, and the workers with it."""

_CAUSES = (
    ("shared memory", "shared memory is full", "Use fewer workers or a smaller batch, or enlarge /dev/shm."),
    ("Bus error", "shared memory is full", "Use fewer workers or a smaller batch, or enlarge /dev/shm."),
    (
        "Too many open files",
        "too many files are open",
        "Raise the limit (`ulimit -n 65536`) or use fewer workers.",
    ),
    ("MemoryError", "memory ran out", "Use fewer workers or a smaller batch."),
    ("allocate memory", "memory ran out", "Use fewer workers or a smaller batch."),
    ("Insufficient memory", "memory ran out", "Use fewer workers or a smaller batch."),
    (
        "killed by signal",
        "a process that prepares images was killed from outside, most often because memory ran out",
        "Use fewer workers or a smaller batch; `workers: 0` prepares images in the main process.",
    ),
    (
        "DataLoader worker",
        "a process that prepares images died",
        "`workers: 0` prepares images in the main process and shows the reason.",
    ),
)


class TaskStream(Generic[Task, Answer]):
    """A function applied to tasks, in their order, some tasks ahead of the consumer.

    The processes live from the first `run` to `close` (or the end of a `with`), so that only the first of many runs
    pays for their start. One run at a time: a new one ends an unfinished one.

    Args:
        function: Task -> result; both must be picklable.
        workers: Number of processes; 0 does the work in this process, when the result is asked for.
    """

    def __init__(self, function: Callable[[Task], Answer], workers: int) -> None:
        self._function = function
        self._workers = workers
        self._tasks: _TaskList[Task] = _TaskList()
        self._loader: DataLoader[Packed] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        """Results of the tasks, in order.

        Raises:
            ScantlingError: Whatever the function raised.
            TrainingError: A process died, or memory ran out.
        """
        if self._workers == 0:
            yield from map(self._function, tasks)
        elif tasks:
            yield from self._run_ahead(tasks)

    def close(self) -> None:
        """End the processes; a later `run` starts new ones."""
        self._loader = None

    def _run_ahead(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        self._tasks.items = tasks
        if self._loader is None:
            self._loader = self._start()
        try:
            with worker_failures():
                for packed in self._loader:
                    yield _opened(cast("Answer | _Fault", _unpack(packed)))
        except Exception as error:
            _forget_frames(error)
            self.close()
            raise

    def _start(self) -> DataLoader[Packed]:
        return DataLoader(
            _Mapped(self._function),
            batch_size=None,
            sampler=self._tasks,
            num_workers=self._workers,
            collate_fn=_as_is,
            worker_init_fn=_set_up_worker,
            multiprocessing_context=_START,
            persistent_workers=True,
            generator=torch.Generator(),  # its own, so that workers leave the global random state alone
        )


@contextmanager
def worker_failures() -> Iterator[None]:
    """Turn the death of a worker into a `TrainingError` with cause and remedy.

    torch may report a dead worker at any point of the main process, not only where a result is awaited, so a training
    loop wraps its epoch in this too.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError, EOFError) as error:
        explained = explain_worker_failure(error)
        if explained is None:
            raise
        raise explained from error


def explain_worker_failure(error: Exception) -> TrainingError | None:
    """What to tell the user about an error from the machinery; None when it is not about workers."""
    text = f"{type(error.__cause__ or error).__name__}: {error.__cause__ or error}"
    if isinstance(error, ConnectionError | EOFError):
        text = f"DataLoader worker gone: {text}"
    for sign, cause, remedy in _CAUSES:
        if sign in text:
            return TrainingError(
                f"Preparing the images failed: {cause} ({text.splitlines()[0]})", hint=remedy
            )
    return None


def _forget_frames(error: BaseException | None) -> None:
    """Let go of the old workers' objects, which the error's tracebacks would keep and later processes inherit."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__


@dataclass(slots=True)
class _TaskList(Generic[Task]):
    """The sampler of the DataLoader: the tasks of the present run."""

    items: Sequence[Task] = ()

    def __iter__(self) -> Iterator[Task]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True)
class _Fault:
    """A fault of the input on its way to the main process."""

    error: ScantlingError


class _Mapped(Dataset[Packed]):
    """The data set of the DataLoader, whose indices are tasks."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __getitem__(self, task: Any) -> Packed:  # noqa: ANN401 - the sampler yields tasks of any type
        try:
            return _pack(self._function(task))
        except ScantlingError as error:
            return _pack(_Fault(error))


def _opened(result: Answer | _Fault) -> Answer:
    if isinstance(result, _Fault):
        raise result.error
    return result


def _as_is(packed: Any) -> Any:  # noqa: ANN401 - what torch asks of a collate function
    return packed


def _set_up_worker(_: int) -> None:
    """No threads for the work itself; being stopped from outside is the main process's business."""
    cv2.setNumThreads(0)  # not 1, which would wait for threads that a fork does not copy
    for name in ("SIGINT", "SIGUSR2"):  # the latter where the system has it
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    main_process = multiprocessing.parent_process()
    if main_process and _START == "fork":  # other processes have threads by now, which would take the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for, args=(main_process.pid,), daemon=True).start()


def _end_for(main_process: int) -> None:
    """Obey the SIGTERM of the main process alone.

    Schedulers and `timeout` send it to every process of a job: the main one then finishes its step, which still needs
    what is being prepared, and ends this process itself. A call that holds Python's lock delays that.
    """
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main_process:
        pass
    os._exit(0)


class _Pickler(pickle.Pickler):
    """Keeps large tensors out of the pickle, in `tensors`, and stores small ones as arrays."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []

    def persistent_id(self, obj: object) -> int | None:
        if isinstance(obj, Tensor) and obj.numel() >= _SHARED_FROM_ELEMENTS:
            self.tensors.append(obj)
            return len(self.tensors) - 1
        return None

    def reducer_override(self, obj: object) -> Any:  # noqa: ANN401 - pickle's own protocol
        if type(obj) is Tensor and not obj.requires_grad:
            return torch.from_numpy, (obj.numpy(),)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: Sequence[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: int) -> Tensor:
        return self._tensors[pid]


def _pack(result: object) -> Packed:
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(result)
    return file.getvalue(), pickler.tensors


def _unpack(packed: Packed) -> object:
    pickled, tensors = packed
    return _Unpickler(io.BytesIO(pickled), tensors).load()
