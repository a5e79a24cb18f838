"""Predicting in shards: the plan is made or found, then every shard that is missing is done.

    source, model ──► plan (once, by whoever comes first) ──► shards of this part ── engines ──► FOLDER/shards

On several machines each does every so many-th shard of the same folder; nothing else is said between them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import torch
from rich.console import Console

from scantling.data.coco import Category
from scantling.data.findings import tell
from scantling.data.io import is_temporary, replacing
from scantling.errors import UsageError
from scantling.predict.listing import list_source
from scantling.run.engines.choice import ONE_AFTER_THE_OTHER, Engine, do_with, require_installed
from scantling.run.pipeline import available_for
from scantling.run.predictions import OwnCategories
from scantling.run.shards.folder import open_shards
from scantling.run.shards.model import ChosenModel
from scantling.run.shards.plan import (
    IMAGES,
    OWN_NAMES,
    PLAN,
    ListedImages,
    ShardPlan,
    plan_for,
    read_plan,
    refuse_difference,
    write_images,
    write_plan,
)
from scantling.run.shards.stages import PredictContext, shards_of
from scantling.run.shards.summary import ShardSummary, summary_of
from scantling.settings.shards import DEFAULT_SIZE, Shards
from scantling.train.devices import join_processes, resolve_device
from scantling.train.rundir import FolderInUseError, claim_folder

_WAIT_SECONDS = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRequest:
    """What a person asks for.

    Attributes:
        shards: Where it goes, and how it is shared out.
        source: What to look at; None: what was planned.
        model: What predicts; None: what was planned.
        skip_invalid: As in `predict_source`.
    """

    shards: Shards
    source: str | None
    model: ChosenModel | None
    skip_invalid: bool = False


def predict_in_shards(
    request: ShardRequest, *, device: str = "auto", engine: Engine = ONE_AFTER_THE_OTHER
) -> ShardSummary:
    """Predict what is missing of a prediction in shards.

    Args:
        request: What to predict, with what, where to.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        engine: Who does the shards.

    Raises:
        ScantlingError: The engine, the source, the model, a setting or the folder cannot be used, or the folder holds
            another prediction. A shard that fails is noted in the outcome.
        Interrupted: SIGINT or SIGTERM arrived; the shards that are done stay.
    """
    require_installed(engine.unshared("predict"))
    shards, chosen = request.shards, resolve_device(device)
    if join_processes(chosen).world > 1:
        raise UsageError(
            "prediction in shards does not go with torchrun, whose processes do one thing together",
            hint="Start it with --jobs N, or on each machine with --shard I/N.",
        )
    model = _chosen_model(request)
    predictor = model.load(str(chosen))  # whatever is wrong with it is told before anything is written
    plan = open_plan(replace(request, model=model), predictor.categories)
    tell(plan.findings, log)
    context = PredictContext(
        root=shards.folder,
        device=chosen,
        devices=available_for(device, chosen),
        console=Console(stderr=True, quiet=not log.isEnabledFor(logging.INFO)),
        plan=plan,
        model=model.wherever(),
        part=shards.part,
        loaded=predictor if engine == ONE_AFTER_THE_OTHER else None,
    )
    del predictor
    log.info("%s: %d images in %d shards", plan.source, plan.num_images, plan.num_shards)
    with open_shards(shards, plan) as folder:
        if engine != ONE_AFTER_THE_OTHER and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()  # other processes need it
        do_with(engine, context, folder, shards_of)
        return summary_of(shards, plan, folder.failures, folder.bugs)


def _chosen_model(request: ShardRequest) -> ChosenModel:
    """What predicts: as given, or as planned in the folder.

    Raises:
        UsageError: The folder cannot be used, or nothing is given and nothing planned.
    """
    folder = request.shards.folder
    _check_folder(folder)
    if not (folder / PLAN).is_file():
        if request.source is None or request.model is None:
            hint = "Begin with SOURCE, and --run DIR or --checkpoint FILE."
            raise UsageError(f"{folder}: there is no prediction to go on with", hint=hint)
        return request.model
    plan = read_plan(folder)
    settings = tuple(plan.identity["settings"])
    model = request.model or ChosenModel(
        run=_path(plan.model.get("run")), checkpoint=_path(plan.model.get("checkpoint")), settings=settings
    )
    if request.shards.resume and not model.settings:
        model = replace(model, settings=settings)
    skips = request.skip_invalid or plan.identity["skip_invalid"]
    asked = replace(plan, identity={**model.identity, "skip_invalid": skips})
    refuse_difference(folder, plan, asked, resume=request.shards.resume)
    return model


def open_plan(request: ShardRequest, found: Sequence[Category]) -> ShardPlan:
    """The plan of a folder: that which is there, if it is what is asked for, or a new one.

    Args:
        request: With a model; with a source where there is no plan yet.
        found: The categories of the predictor, which the data set must have.

    Raises:
        UsageError: Another prediction was begun there, or the data set lacks a category.
    """
    folder, size = request.shards.folder, request.shards.size
    if not (folder / PLAN).is_file():
        is_new = not folder.exists()
        try:
            _make_or_await(folder, request, found)
        except BaseException:
            if is_new:
                with suppress(OSError):  # another process has begun to use it
                    folder.rmdir()
            raise
    plan = read_plan(folder)
    asked = replace(plan, shard_size=size or plan.shard_size)
    if not request.shards.resume and request.source is not None:
        asked = _listed(request, asked.shard_size, cast("BinaryIO", _Nowhere()))
        plan = replace(plan, root=asked.root)  # where the images are on this machine
    refuse_difference(folder, plan, asked, resume=request.shards.resume)
    return plan


def _make_or_await(folder: Path, request: ShardRequest, found: Sequence[Category]) -> None:
    """Write the plan, or wait for it where another process is about to."""
    waited = False
    while not (folder / PLAN).is_file():
        try:
            with claim_folder(folder, resume=True):
                if not (folder / PLAN).is_file():
                    _write_plan(folder, request, found)
        except FolderInUseError:
            if not waited:
                log.info("%s: another process lists the images", folder)
            waited = True
            time.sleep(_WAIT_SECONDS)


def _write_plan(folder: Path, request: ShardRequest, found: Sequence[Category]) -> None:
    with replacing(folder / IMAGES) as temporary, temporary.open("wb") as stream:
        plan = _listed(request, request.shards.size or DEFAULT_SIZE, stream)
        OwnCategories.of(plan.source, plan.declared, found, skip_unknown=request.skip_invalid)
    write_plan(folder, plan)


def _listed(request: ShardRequest, size: int, stream: BinaryIO) -> ShardPlan:
    source, model = str(request.source), request.model or ChosenModel()
    listing = list_source(source, skip_invalid=request.skip_invalid)
    images: ListedImages = write_images(listing.images, size, stream)
    named = {name: str(path.absolute()) for name, path in model.paths.items()}
    identity = {**model.identity, "skip_invalid": request.skip_invalid}
    return plan_for(listing, images, source=source, model=named, identity=identity, size=size)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _check_folder(folder: Path) -> None:
    """Refuse a place where a prediction in shards cannot be; nothing is created.

    Raises:
        UsageError: It is a file, or a folder that holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; shards need a folder", hint="Choose another --shards.")
    if folder.is_dir():
        names = {entry.name for entry in folder.iterdir()}
        others = sorted(name for name in names if name not in OWN_NAMES and not is_temporary(name))
        if others and not (folder / PLAN).is_file():  # in this order: another process may write it now
            found = f"it holds {', '.join(others[:3])} and is no prediction in shards"
            raise UsageError(f"{folder}: {found}", hint="Nothing was changed. Choose another --shards.")


class _Nowhere:
    """A stream that forgets."""

    def write(self, data: bytes) -> int:
        """Forget it."""
        return len(data)
