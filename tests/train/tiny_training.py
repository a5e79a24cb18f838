"""A model, data and settings so small that whole runs take milliseconds, with everything that makes resuming hard.

Dropout draws random numbers in every step, batch normalisation keeps buffers, the optimiser has momentum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from scantling.train.checkpoint import CheckpointMeta, load_checkpoint
from scantling.train.config import TrainConfig
from scantling.train.loop import FitResult, RunInfo, fit

BATCHES = 5
META = CheckpointMeta(
    kind="tiny",
    class_names=("scratch", "dent"),
    category_ids=(1, 7),
    model={"name": "tiny", "width": 6},
    recipe_hash="recipe",
    data_hash="data",
)
CONFIG = TrainConfig(
    epochs=3,
    lr=0.02,
    ema=0.9,
    warmup_steps=4,
    checkpoint_every=2,
    log_every=2,
    milestones=[2],
    monitor="bbox/AP",
)


@dataclass(frozen=True)
class TinyBatch:
    inputs: Tensor
    targets: Tensor
    image_ids: list[int | str]
    is_padding: bool = False

    def to(self, device: torch.device) -> TinyBatch:
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


class TinyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(6, 1)

    def predict(self, inputs: Tensor) -> Tensor:
        return self.head(self.dropout(leaky_relu(self.norm(self.backbone(inputs)), 0.3))).squeeze(1)

    def forward(self, batch: TinyBatch) -> dict[str, Tensor]:
        error = self.predict(batch.inputs) - batch.targets
        return {"square": error.square().mean(), "absolute": 0.1 * error.abs().mean()}


def examples(name: str, count: int = 8) -> tuple[Tensor, Tensor]:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little")
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return inputs, inputs @ torch.tensor([1.0, -2.0, 0.5, 0.0])


class TinyData:
    """Batches that depend on epoch and position only; `before` may do mischief before a batch is handed out."""

    def __init__(
        self, batches: int = BATCHES, before: Callable[[int, TinyBatch], TinyBatch] | None = None
    ) -> None:
        self.steps_per_epoch = batches
        self._before = before

    def epoch(self, epoch: int, start_step: int) -> Iterator[TinyBatch]:
        for position in range(start_step, self.steps_per_epoch):
            batch = TinyBatch(
                *examples(f"{epoch}/{position}"), [f"e{epoch}b{position}i{i}" for i in range(8)]
            )
            number = epoch * self.steps_per_epoch + position
            yield self._before(number, batch) if self._before else batch


def validate(model: nn.Module) -> dict[str, float | None]:
    """Minus the error on held-out examples, so that larger is better."""
    inputs, targets = examples("validation", 32)
    return {"bbox/AP": -(model.predict(inputs) - targets).square().mean().item(), "bbox/APs": None}


def run_info(**changes: Any) -> RunInfo:
    values = {"seed": 3, "meta": META, "device": "cpu", "validate": validate, "console": Console(quiet=True)}
    return RunInfo(**values | changes)


def train(out: Path, *, config: TrainConfig = CONFIG, data: TinyData | None = None, **run: Any) -> FitResult:
    return fit(TinyModel(), data or TinyData(), config, out=out, run=run_info(**run))


def outcome(out: Path) -> dict[str, Any]:
    """Everything a run leaves that must not depend on how often it was stopped."""
    last, best = load_checkpoint(out / "last.safetensors"), load_checkpoint(out / "best.safetensors")
    return {
        "last": {name: tensor.numpy().tobytes() for name, tensor in last.tensors.items()},
        "last_meta": last.meta,
        "best": {name: tensor.numpy().tobytes() for name, tensor in best.tensors.items()},
        "best_meta": best.meta,
        "history": (out / "metrics.jsonl").read_text(),
        "table": (out / "metrics.csv").read_text(),
    }
