"""Tiny trainings in processes of their own; run as a program, prints what became of them as JSON.

A fresh process that loads torch once and forks before using it: every run is a child that can die by SIGKILL without
any clean-up, at a chosen file operation, at a random moment, with a limit on the size of files, or together with
another one as torchrun would start it.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401 - loaded here so that the children need not
import torch
from tiny_training import CONFIG, TinyBatch, TinyData, TinyModel, outcome, run_info, train
from torch import Tensor, nn

from scantling.errors import Interrupted, ScantlingError
from scantling.models.class_losses import SeesawLoss, make_classifier
from scantling.train import checkpoint
from scantling.train.devices import join_processes
from scantling.train.loop import fit, resumable

SHORT = CONFIG.model_copy(update={"epochs": 1, "checkpoint_every": 1, "log_every": 1})
BATCHES = 2
WRITER = "write_container"
MOST_OPERATIONS = 500
OPERATIONS: tuple[tuple[Any, str], ...] = (
    (Path, "open"),
    (Path, "replace"),
    (Path, "hardlink_to"),
    (os, "truncate"),
    (checkpoint, WRITER),
)


def in_child(job: Callable[[], object]) -> int:
    """Start a child for the job and return its process id; it exits as the command line would."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        job()
        code = 0
    except Interrupted as stop:
        code = 128 + stop.signum
    except ScantlingError as error:
        sys.stderr.write(f"{error}\n")
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def finish(pid: int) -> int:
    """Wait for a child; minus the signal's number if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def go_on(out: Path, **arguments: Any) -> None:
    resume = resumable(out)
    train(out, resume=resume, overwrite=not resume, **arguments)


def die_at(number: int) -> None:
    """Arrange for SIGKILL before the file operation of that number, within a write after a part of it."""
    count = 0

    def doomed(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                if original.__name__ == WRITER:
                    arguments[0].write(b"half a header")
                    arguments[0].flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return wrapper

    for owner, name in OPERATIONS:
        setattr(owner, name, doomed(getattr(owner, name)))


def at_every_operation(root: Path) -> dict[str, Any]:
    """Kill at operation 1, 2, 3, ... until a run survives; go on after each; compare."""
    finish(in_child(lambda: train(root / "whole", config=SHORT, data=TinyData(BATCHES))))
    whole = outcome(root / "whole")
    wrong = []
    for number in range(1, MOST_OPERATIONS):
        out = root / f"killed-{number}"

        def doomed_run(number: int = number, out: Path = out) -> None:
            die_at(number)
            train(out, config=SHORT, data=TinyData(BATCHES))

        if finish(in_child(doomed_run)) == 0:
            return {"kills": number - 1, "wrong": wrong}
        code = finish(in_child(lambda out=out: go_on(out, config=SHORT, data=TinyData(BATCHES))))
        leftovers = [path.name for path in out.iterdir() if path.name.startswith(".")]
        if code or leftovers or outcome(out) != whole:
            wrong.append([number, code, leftovers])
    raise RuntimeError(f"no run got through in {MOST_OPERATIONS} attempts")


def slowly(_number: int, batch: TinyBatch) -> TinyBatch:
    time.sleep(0.02)
    return batch


def at_random_moments(root: Path) -> dict[str, Any]:
    """Kill one run again and again until it gets through."""
    finish(in_child(lambda: train(root / "unkilled")))
    moments = random.Random(0)
    kills = 0
    while True:
        pid = in_child(lambda: go_on(root / "killed", data=TinyData(before=slowly)))
        time.sleep(
            moments.uniform(0.05, 0.2) * (1 + kills / 4)
        )  # ever longer, so that a slow machine gets through
        os.kill(pid, signal.SIGKILL)
        if finish(pid) == 0:
            return {"kills": kills, "equal": outcome(root / "killed") == outcome(root / "unkilled")}
        kills += 1


def by_signals(root: Path) -> dict[str, Any]:
    """Stop a run politely, twice."""
    out = root / "asked"
    codes = []
    for signum in (signal.SIGTERM, signal.SIGINT):

        def strike(
            number: int, batch: TinyBatch, at: int = 4 + 3 * len(codes), signum: int = signum
        ) -> TinyBatch:
            if number == at:
                os.kill(os.getpid(), signum)
            return batch

        codes.append(finish(in_child(lambda strike=strike: go_on(out, data=TinyData(before=strike)))))
    codes.append(finish(in_child(lambda: go_on(out))))
    return {"codes": codes, "equal": outcome(out) == outcome(root / "unkilled")}


def on_a_full_disk(root: Path) -> dict[str, Any]:
    """Forbid files as large as a checkpoint from some step on, then allow them again."""
    out = root / "full"

    def fill(number: int, batch: TinyBatch) -> TinyBatch:
        if number == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        return batch

    code = finish(in_child(lambda: train(out, data=TinyData(before=fill))))
    step = checkpoint.load_checkpoint(out / "last.safetensors").meta.step
    files = sorted(path.name for path in out.iterdir())
    again = finish(in_child(lambda: go_on(out)))
    equal = outcome(out) == outcome(root / "unkilled")
    return {"code": code, "step": step, "files": files, "again": again, "equal": equal}


class Share(TinyData):
    """One process' part of every batch, the first of two has the larger one; the last part may be spoilt."""

    def __init__(self, rank: int, world: int, *, spoilt: bool) -> None:
        super().__init__()
        cuts = [0, 8] if world == 1 else [0, 5, 8]
        self._part = slice(cuts[rank], cuts[rank + 1])
        self._spoilt = spoilt and rank == world - 1

    def epoch(self, epoch: int, start_step: int) -> Iterator[TinyBatch]:
        for batch in super().epoch(epoch, start_step):
            targets = batch.targets * float("nan") if self._spoilt else batch.targets
            inputs, ids = batch.inputs[self._part], batch.image_ids[self._part]
            yield replace(batch, inputs=inputs, targets=targets[self._part], image_ids=ids)


class Plain(TinyModel):
    """Without what depends on how a batch is split: dropout, batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.norm = nn.Identity(), nn.Identity()


class Classifier(Plain):
    """Learns by Seesaw loss which of two classes an example is, or neither; the second class is rare."""

    def __init__(self) -> None:
        super().__init__()
        self.head = make_classifier("normalised", 6, 4)
        self.class_loss = SeesawLoss(2)

    def predict(self, inputs: Tensor) -> Tensor:
        return self.class_loss.probabilities(self.head(self.backbone(inputs)))[:, 0]

    def forward(self, batch: TinyBatch) -> dict[str, Tensor]:
        labels = torch.bucketize(batch.targets, torch.tensor([0.5, 1.5]))
        return self.class_loss.losses(self.head(self.backbone(batch.inputs)), labels)


def train_share(out: Path, *, kind: type[TinyModel] = Plain, spoilt: bool = False) -> None:
    """Train on this process' share."""
    processes = join_processes(torch.device("cpu"))
    model = kind()
    if processes.rank == 1:
        model.head.weight.data.zero_()  # the main process' weights must count
    data = Share(processes.rank, processes.world, spoilt=spoilt)
    average = {"ema": None, "swa": 2} if kind is Classifier else {}
    config = CONFIG.model_copy(update={"accumulate": 2, **average})
    try:
        fit(model, data, config, out=out, run=run_info())
    except ScantlingError as error:
        out.with_name(f"{out.name}-{processes.rank}.txt").write_text(str(error))
        raise


def as_torchrun_would(job: Callable[[], object], world: int) -> list[int]:
    """Run a job in several processes that know of each other; return their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}

    def member(rank: int) -> None:
        os.environ.update(
            address | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
        )
        job()

    return [finish(pid) for pid in [in_child(lambda rank=rank: member(rank)) for rank in range(world)]]


def average_statistics(root: Path) -> None:
    """Means 0 and 2 of two processes, which have seen 4 batches each."""
    processes = join_processes(torch.device("cpu"))
    layer = nn.BatchNorm1d(1)
    layer.running_mean.fill_(2 * processes.rank)
    layer.num_batches_tracked.fill_(4)
    processes.average_buffers([layer])
    told = [layer.running_mean.item(), layer.running_var.item(), layer.num_batches_tracked.item()]
    (root / f"statistics-{processes.rank}.json").write_text(json.dumps(told))


def as_one_and_as_two_processes(root: Path) -> dict[str, Any]:
    """Train the same in one process and in two, and once with bad data on the second one."""
    codes = [finish(in_child(lambda: train_share(root / "one")))]
    codes += as_torchrun_would(lambda: train_share(root / "two"), 2)
    codes += as_torchrun_would(lambda: train_share(root / "spoilt", spoilt=True), 2)
    codes.append(finish(in_child(lambda: train_share(root / "one-seesaw", kind=Classifier))))
    codes += as_torchrun_would(lambda: train_share(root / "two-seesaw", kind=Classifier), 2)
    codes += as_torchrun_would(lambda: average_statistics(root), 2)
    return {"codes": codes}


def load_what_is_slow_to_load() -> None:
    """Load in the parent what torch loads only on first use."""
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.SGD([weight]).step()


if __name__ == "__main__":
    load_what_is_slow_to_load()
    folder = Path(sys.argv[1])
    jobs = (at_every_operation, at_random_moments, by_signals, on_a_full_disk, as_one_and_as_two_processes)
    sys.stdout.write(json.dumps({job.__name__: job(folder) for job in jobs}))
