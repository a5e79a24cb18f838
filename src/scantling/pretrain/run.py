"""A pretraining from its crops to a backbone that `init: FILE` loads.

CropPlan ─► resolve `auto` ─► crop store ─► k-NN of the untrained network ─► fit ─► backbone.safetensors

OUT/pretrain.yaml         every setting, `auto` resolved
OUT/crops/                the crops, decoded once
OUT/train/                state of training, history (metrics.jsonl, metrics.csv)
OUT/metrics.json          k-NN accuracy before and after, queue accuracy, InfoNCE
OUT/backbone.safetensors  the query encoder's backbone
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from torch import nn

from scantling.data.io import atomic_write, read_json, write_json
from scantling.errors import ConfigError, DataError
from scantling.models.backbone import Backbone
from scantling.pretrain.config import CropFacts, PretrainConfig, resolve_auto
from scantling.pretrain.crop_store import DATA_NAME, INDEX_NAME, CropStore, open_store
from scantling.pretrain.crops import CropPlan, stored_pixels
from scantling.pretrain.knn import KnnScore, KnnSplit, held_out_mask, is_held_out, knn_score, knn_split
from scantling.pretrain.moco import MoCo
from scantling.pretrain.summary import BACKBONE, METRICS, PretrainSummary
from scantling.pretrain.views import BuildViews, ViewPairLoader
from scantling.settings import yaml as strict_yaml
from scantling.settings.auto import resolved
from scantling.train.checkpoint import CheckpointMeta, save_checkpoint
from scantling.train.devices import ALONE, Processes, join_processes, require_precision, resolve_device
from scantling.train.history import CSV_NAME, JSONL_NAME
from scantling.train.keeper import BEST_NAME, LAST_NAME, PREVIOUS_NAME
from scantling.train.loop import FitResult, RunInfo, fit, resumable
from scantling.train.rundir import claim_folder

log = logging.getLogger(__name__)

SETTINGS, UNTRAINED = "pretrain.yaml", "untrained.json"
CROPS, TRAIN = "crops", "train"
FILES = (
    BACKBONE,
    SETTINGS,
    METRICS,
    UNTRAINED,
    *(f"{CROPS}/{name}" for name in (DATA_NAME, INDEX_NAME)),
    *(f"{TRAIN}/{name}" for name in (BEST_NAME, LAST_NAME, PREVIOUS_NAME, JSONL_NAME, CSV_NAME)),
)
"""What a pretraining leaves in its folder."""
_FREE = {"workers", "checkpoint_every", "log_every", "skip_invalid", "strict"}
"""Settings that may change between an interruption and the resumption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainRun:
    """The circumstances of a pretraining.

    Attributes:
        seed: Of weights, views, order and held-out images.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        overwrite: Start over in the folder of an earlier pretraining.
        console: Where progress is shown; None means standard error.
    """

    seed: int = 0
    device: str = "auto"
    overwrite: bool = False
    console: Console | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pretraining:
    """A pretraining whose settings are decided."""

    config: PretrainConfig
    out: Path
    run: PretrainRun
    device: torch.device
    processes: Processes

    @property
    def settings(self) -> dict[str, Any]:
        """Seed and every setting, as plain values."""
        return {"seed": self.run.seed, **self.config.model_dump(mode="json")}

    @property
    def settings_sha256(self) -> str:
        """Hash of what decides the result."""
        kept = {key: value for key, value in self.settings.items() if key not in _FREE}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    @property
    def side(self) -> int:
        return int(resolved(self.config.side))


def pretrain(
    plan: CropPlan, config: PretrainConfig, out: Path | str, *, run: PretrainRun | None = None
) -> PretrainSummary:
    """Learn a backbone from crops; an interrupted pretraining in the same folder goes on.

    Args:
        plan: What to cut out of which images.
        config: May hold `auto`.
        out: Folder; created if need be.
        run: Seed, device, where progress goes.

    Raises:
        DataError: There are fewer than two crops, or an image cannot be read.
        UsageError: The folder holds other files or is in use, or the device is not there.
        ConfigError: The backbone cannot be built, or the folder holds a pretraining with other settings.
        CheckpointError: It was begun with other crops, or its state is damaged.
        Interrupted: SIGINT or SIGTERM arrived; everything is saved.
    """
    run, out = run or PretrainRun(), Path(out)
    device = resolve_device(run.device)
    require_precision(config.precision, device)
    processes = join_processes(device)
    with torch.device("meta"):  # refuses what cannot be built; nothing is allocated
        Backbone(config.backbone_config())
    config, reasons = resolve_auto(config, measure_crops(plan, config, run.seed, device, processes))
    work = _Pretraining(config=config, out=out, run=run, device=device, processes=processes)
    begun = processes.on_main(lambda: (out / SETTINGS).is_file() and not run.overwrite)
    claim = claim_folder(out, resume=begun, overwrite=run.overwrite, known=FILES)
    with claim if processes.is_main else nullcontext():
        processes.on_main(partial(_begin, work, reasons, begun=begun))
        store = _open(work, plan)
        metrics = _train(work, store, left_out=plan.left_out)
        processes.on_main(partial(write_json, out / METRICS, metrics, indent=2))
    return PretrainSummary(out=out, metrics=metrics)


def initial_moco(config: PretrainConfig, seed: int) -> MoCo:
    """Both encoders and the queue before training; they depend on the settings and the seed only."""
    digest = hashlib.sha256(f"{seed} pretraining weights".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        return MoCo(config)


def measure_crops(
    plan: CropPlan, config: PretrainConfig, seed: int, device: torch.device, processes: Processes
) -> CropFacts:
    """Facts for the rules; no image is read.

    Raises:
        DataError: There is nothing to contrast.
    """
    kept = [
        window
        for image in plan.images
        if config.learn_held_out or not is_held_out(image.name, config.held_out, seed)
        for window in image.windows
    ]
    if len(kept) < 2 * processes.world:
        left_out = f", {plan.left_out} objects were left out" if plan.left_out else ""
        raise DataError(
            f"{len(kept)} crops: there is nothing to tell one from another{left_out}",
            hint="Lower crops.min_side, or take parts of the images with source=random.",
        )
    boxes = np.array([window.box for window in kept])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return CropFacts(
        num_crops=len(kept),
        usual_side=math.sqrt(float(np.median(areas))),
        device=device.type,
        cpu_count=max(1, (os.cpu_count() or 1) // processes.on_machine),
        processes=processes.world,
    )


def _begin(work: _Pretraining, reasons: tuple[str, ...], *, begun: bool) -> None:
    """Record the settings, or find that they are the recorded ones.

    Raises:
        ConfigError: They are others.
    """
    path = work.out / SETTINGS
    if begun:
        found = strict_yaml.parse(path.read_text(encoding="utf-8"), file=str(path)).value
        now = work.settings
        changes = [
            f"{key}: was {found.get(key)!r}, is now {now[key]!r}"
            for key in now
            if key not in _FREE and found.get(key) != now[key]
        ]
        if changes:
            raise ConfigError(
                "\n  ".join([f"{work.out} holds a pretraining with other settings:", *changes]),
                hint="Nothing was changed. Choose another --out, or start over with --overwrite.",
            )
        return
    for reason in reasons:
        log.info("%s", reason)
    atomic_write(path, strict_yaml.dump(work.settings))


def _open(work: _Pretraining, plan: CropPlan) -> CropStore:
    """The crop store, made by the main process."""
    config = work.config
    opened = partial(
        open_store,
        work.out / CROPS,
        plan,
        config.crops,
        max_pixels=stored_pixels(work.side, config.augment.min_scale),
        workers=int(resolved(config.workers)),
    )
    store = work.processes.on_main(opened)
    log.info("%d crops, %.1f MB, of %d images", len(store), store.ends[-1] / 1e6, len(plan.images))
    return store


def _train(work: _Pretraining, store: CropStore, *, left_out: int) -> dict[str, Any]:
    """Train, export the backbone, and say what came out."""
    config, processes = work.config, work.processes
    model = initial_moco(config, work.run.seed).to(work.device)
    split = knn_split(store, share=config.held_out, seed=work.run.seed, most=config.max_judged)
    untrained = processes.on_main(partial(_untrained_score, work, store, split, model))
    result = _fit(work, store, split, model)
    final = processes.from_main(_final_values(result) if processes.is_main else {})
    processes.on_main(partial(_export, work, store, model, final))
    trained = processes.on_main(partial(_score, work, store, split, model))
    return {
        "crops": len(store),
        "objects_left_out": left_out,
        "epochs": config.epochs,
        "info_nce": final["info_nce"],
        "queue_accuracy": final["queue_accuracy"],
        "knn_untrained": untrained,
        "knn": asdict(trained) if trained else None,
    }


def _fit(work: _Pretraining, store: CropStore, split: KnnSplit | None, model: MoCo) -> FitResult:
    config, run, out = work.config, work.run, work.out / TRAIN
    begun = work.processes.from_main(resumable(out))
    log.info("pretraining%s", " goes on" if begun else "")
    meta = CheckpointMeta(
        kind="pretraining",
        class_names=store.class_names,
        model=config.model_dump(mode="json", exclude=_FREE),
        recipe_hash=work.settings_sha256,
        data_hash=store.sha256,
    )
    info = RunInfo(
        seed=run.seed,
        meta=meta,
        device=str(work.device),
        resume=begun,
        overwrite=not begun,
        validate=partial(_validate, work, store, split),
        console=run.console,
    )
    loader = crop_loader(store, config, seed=run.seed, processes=work.processes)
    try:
        return fit(model, loader, config.train_config(), out=out, run=info)
    finally:
        loader.close()


def crop_loader(
    store: CropStore, config: PretrainConfig, *, seed: int, processes: Processes = ALONE
) -> ViewPairLoader:
    """The batches of a pretraining.

    Args:
        store: Its crops.
        config: Without `auto`.
        seed: Of order and views.
        processes: Those that train together.
    """
    build = BuildViews(store=store, side=int(resolved(config.side)), config=config.augment, seed=seed)
    crops = np.arange(len(store), dtype=np.int64)
    if not config.learn_held_out:
        crops = crops[~held_out_mask(store, config.held_out, seed)]
    return ViewPairLoader(
        build,
        crops,
        int(resolved(config.batch_size)),
        workers=int(resolved(config.workers)),
        rank=processes.rank,
        world=processes.world,
    )


def _validate(
    work: _Pretraining, store: CropStore, split: KnnSplit | None, model: nn.Module
) -> dict[str, float | None]:
    moco = cast("MoCo", model)
    score = work.processes.on_main(partial(_score, work, store, split, moco))
    return {
        "queue_accuracy": moco.take_accuracy(),
        "knn_accuracy": score.accuracy if score else None,
        "knn_balanced_accuracy": score.balanced if score else None,
    }


@torch.no_grad()
def _score(work: _Pretraining, store: CropStore, split: KnnSplit | None, model: MoCo) -> KnnScore | None:
    if split is None:
        return None
    model.eval()
    return knn_score(
        store,
        split,
        model.features,
        side=work.side,
        neighbours=work.config.neighbours,
        device=work.device,
    )


def _untrained_score(
    work: _Pretraining, store: CropStore, split: KnnSplit | None, model: MoCo
) -> dict[str, float] | None:
    """The score of random weights, measured once for a folder."""
    path = work.out / UNTRAINED
    if not path.is_file():
        score = _score(work, store, split, model)
        write_json(path, asdict(score) if score else None)
    return cast("dict[str, float] | None", read_json(path))


def _final_values(result: FitResult) -> dict[str, Any]:
    """The last InfoNCE and queue accuracy of the history."""
    last: dict[str, Any] = {}
    for entry in result.history:
        last |= entry
    return {
        "info_nce": last["loss/info_nce"],
        "queue_accuracy": last["val/queue_accuracy"],
        "step": last["step"],
    }


def _export(work: _Pretraining, store: CropStore, model: MoCo, final: Mapping[str, Any]) -> None:
    """Write the backbone as a checkpoint of its own."""
    meta = CheckpointMeta(
        kind="backbone",
        model=work.config.backbone_config().model_dump(mode="json"),
        recipe_hash=work.settings_sha256,
        data_hash=store.sha256,
        step=final["step"],
        epoch=int(resolved(work.config.epochs)),
        metrics={"queue_accuracy": final["queue_accuracy"]},
    )
    tensors = {f"model.{name}": tensor for name, tensor in model.backbone_tensors().items()}
    save_checkpoint(work.out / BACKBONE, tensors, meta)
