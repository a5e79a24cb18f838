"""A member, or one fold of it: its training, and everything it sees in the images that are predicted.

A detector leaves candidates, a segmenter score maps.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from scantling.data.coco import CocoDataset
from scantling.data.findings import name_some
from scantling.data.io import sha256_of
from scantling.data.samples.augmentation import build_transforms, closing_of, uses_masks
from scantling.data.samples.dataset import DetectionDataset
from scantling.data.samples.loader import LoaderConfig, TrainLoader
from scantling.data.score_maps import save_score_maps
from scantling.errors import CheckpointError, ConfigError
from scantling.evaluate.coco_eval import evaluate_results, limits_up_to
from scantling.evaluate.inputs import IouType
from scantling.evaluate.semantic import evaluate_score_maps
from scantling.models.contract import Detector, Segmenter
from scantling.models.segmenters import KIND as SEGMENTER
from scantling.models.segmenters import build_segmenter, check_segmenter
from scantling.models.zoo import INIT_PRETRAIN, ModelConfig, build_model, check_initial_weights
from scantling.predict.candidates import find_candidates
from scantling.predict.loaded import KIND as DETECTOR
from scantling.predict.score_maps import as_score_maps, find_score_maps
from scantling.predict.whole_set import predict_dataset
from scantling.recipe.recipe import MemberConfig
from scantling.run.context import RunContext, TrainingJob, seed_of
from scantling.run.stage import Inputs, Resources, Stage, hash_of
from scantling.run.stages.pretraining import initial_weights
from scantling.settings.auto import resolved
from scantling.train.checkpoint import CheckpointMeta, load_checkpoint, load_weights, weights_in
from scantling.train.devices import require_precision
from scantling.train.history import CSV_NAME, JSONL_NAME
from scantling.train.keeper import BEST_NAME, LAST_NAME, PREVIOUS_NAME
from scantling.train.loop import RunInfo, fit, resumable

log = logging.getLogger(__name__)


def check_detectors(context: RunContext, *, begun: bool) -> None:
    """Find what cannot work before anything is written.

    Args:
        context: Of the run.
        begun: Compare with what an earlier run left in the folder.

    Raises:
        CheckpointError: A file of initial weights is missing or damaged.
        ConfigError: A model cannot be built, a file of weights does not fit it, a category is unknown, or the folder
            holds training of other settings or data.
        UsageError: The device cannot compute in the precision that is asked for.
    """
    for name in dict.fromkeys(unit.member for unit in context.units()):
        try:
            _check_member(context, name)
        except (ConfigError, CheckpointError) as error:
            raise type(error)(f"members.{name}: {error.message}", hint=error.hint) from error
    for unit in context.units():
        if begun and initial_weights(context, unit.member).is_known:
            train_stage(context, unit).is_done(context.root)  # refuses


def _check_member(context: RunContext, name: str) -> None:
    member, class_names = context.member(name), context.data.train.class_names
    require_precision(member.train.precision, context.device)
    uses_masks(member.augmentation, context.data.train)
    if member.segmenter is not None:
        check_segmenter(member.segmenter, len(class_names))
    else:
        member.predict.suppress.thresholds(class_names)
        check_initial_weights(member.detector, len(class_names))
    if member.augmentation.close_epochs:
        closing_of(member.augmentation, resolved(member.train.epochs), context.data.train)


def train_stage(context: RunContext, unit: TrainingJob) -> Stage:
    """Train a unit; its settings of prediction are no inputs, so changing them keeps the weights."""
    weights = initial_weights(context, unit.member).path
    return Stage(
        folder=unit.folder,
        name="train",
        inputs=partial(_learned_from, context, unit),
        needs=() if weights is None else (context.relative(weights),),
        outputs=tuple(f"{unit.folder}/{file}" for file in (BEST_NAME, JSONL_NAME, CSV_NAME)),
        working_files=tuple(f"{unit.folder}/{file}" for file in (LAST_NAME, PREVIOUS_NAME)),
        action=partial(_train, context, unit),
        costly=True,
        resources=Resources(gpus=1, processes=None),
    )


def _learned_from(context: RunContext, unit: TrainingJob) -> Inputs:
    member, data = context.member(unit.member), context.data
    inputs: dict[str, Any] = {
        "seed": context.recipe.seed,
        "classes": list(data.train.class_names),
        "data": data.learned_hashes,
        "segmenter" if member.gives_maps else "model": member.network.model_dump(mode="json"),
        "augment": member.augmentation.model_dump(mode="json"),
        "train": member.train.result_settings(),
        "initial_weights": initial_weights(context, unit.member).sha256,
    }
    if member.sampling.method != "uniform":
        inputs["sampling"] = member.sampling.model_dump(mode="json")
    if unit.fold is not None:
        inputs |= {"data": {"train": data.hashes["train"]}, "fold": [unit.fold, len(context.folds)]}
    return inputs


def predict_stage(context: RunContext, unit: TrainingJob) -> Stage:
    """See with a unit's best weights what is in the images; suppression is no input beyond what it never sees."""
    predict, splits = context.member(unit.member).predict, context.splits_of(unit)
    settings = predict.model_dump(mode="json", exclude={"workers", "suppress"})
    seen = predict.suppress.model_dump(mode="json", include={"score_threshold", "max_candidates"})
    return Stage(
        folder=unit.folder,
        name="predict",
        inputs=lambda: {
            "weights": sha256_of(context.root / unit.weights),
            "predict": {**settings, **seen},
            "data": {split: _hash_of(context, split) for split in splits},
        },
        needs=(unit.weights,),
        outputs=tuple(unit.candidates(split) for split in splits),
        action=partial(_predict, context, unit),
        resources=Resources(gpus=1, processes=None),
    )


def initial_model(context: RunContext, unit: TrainingJob) -> nn.Module:
    """A unit before training; its random weights depend on the seed and the unit's name only."""
    class_names = context.data.train.class_names
    member = context.member(unit.member)
    name = unit.member if unit.fold is None else f"{unit.member} fold {unit.fold}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(context.recipe.seed, f"{name} weights"))
        start = initial_weights(context, unit.member)
        if member.segmenter is not None:
            return build_segmenter(start.applied_to(member.segmenter), len(class_names), class_names)
        return build_model(start.applied_to(member.detector), len(class_names), class_names)


def _hash_of(context: RunContext, split: str) -> str:
    return context.data.hashes.get(split, context.data.hashes["train"])


def _from_random(member: MemberConfig) -> ModelConfig:
    return member.detector.model_copy(update={"init": "random"})


def _train(context: RunContext, unit: TrainingJob) -> None:
    member, data, out = context.member(unit.member), context.data, context.root / unit.folder
    train, held_out = context.train_and_held_out(unit)
    begun = context.processes.from_main(resumable(out))
    log.info("%s: %s", unit.title, "training goes on" if begun else "training")
    network = member.network
    saved = network if network.init != INIT_PRETRAIN else network.model_copy(update={"init": "random"})
    meta = CheckpointMeta(
        kind=SEGMENTER if member.gives_maps else DETECTOR,
        class_names=data.train.class_names,
        category_ids=data.train.category_ids,
        model=saved.model_dump(mode="json"),
        predict=member.predict.model_dump(mode="json"),
        recipe_hash=hash_of(_learned_from(context, unit)),
        data_hash=data.hashes["train"],
        white=data.white,
    )
    run = RunInfo(
        seed=context.recipe.seed,
        meta=meta,
        device=str(context.device),
        resume=begun,
        overwrite=not begun,
        validate=None if held_out is None else partial(_validate, context, member, held_out),
        console=context.console,
    )
    loader = _loader(context, member, train)
    try:
        fit(initial_model(context, unit), loader, member.train, out=out, run=run)
    finally:
        loader.close()
        if loader.left_out:
            names = name_some(list(loader.left_out))
            log.warning("%s: %d images could not be read: %s", unit.title, len(loader.left_out), names)


def _loader(context: RunContext, member: MemberConfig, train: CocoDataset) -> TrainLoader:
    augment = member.augmentation
    config = LoaderConfig(
        batch_size=resolved(member.train.batch_size),
        repeats=resolved(member.train.repeats),
        sampling=member.sampling,
        workers=resolved(member.train.workers),
        rank=context.processes.rank,
        world=context.processes.world,
    )
    dataset = DetectionDataset(
        train,
        build_transforms(augment, train),
        seed=context.recipe.seed,
        closing=closing_of(augment, resolved(member.train.epochs), train),
        masks=member.draws_masks or member.gives_maps or uses_masks(augment, train),
        skip_invalid=context.recipe.data.skip_invalid,
    )
    loader = TrainLoader(dataset, config)
    if member.sampling.method != "uniform":
        log.info("sampling %s: %s", member.sampling.method, loader.sampler.to_text())
    return loader


def _validate(
    context: RunContext, member: MemberConfig, held_out: CocoDataset, model: nn.Module
) -> dict[str, float | None]:
    if isinstance(model, Segmenter):
        maps = find_score_maps(model, member.predict, held_out, context.device, context.processes)
        return context.processes.on_main(lambda: evaluate_score_maps(as_score_maps(maps), held_out).metrics)
    results = predict_dataset(
        cast("Detector", model), member.predict, held_out, context.device, context.processes
    )
    config = context.recipe.evaluate
    limits = limits_up_to(config.max_dets)
    kinds: tuple[IouType, ...] = ("segm", "bbox") if member.draws_masks else ("bbox",)

    def judge() -> dict[str, float | None]:
        found = [
            evaluate_results(held_out, results, iou_type=kind, backend=config.backend, max_detections=limits)
            for kind in kinds
        ]
        return {f"{each.iou_type}/{key}": value for each in found for key, value in each.metrics.items()}

    return context.processes.on_main(judge)


def _predict(context: RunContext, unit: TrainingJob) -> None:
    member = context.member(unit.member)
    model = load_trained(context.root / unit.weights, member, len(context.data.target.class_names))
    for split, dataset in context.splits_of(unit).items():
        log.info("%s: predicting the %d images of %s", unit.title, len(dataset), split)
        found = find_candidates(model, member.predict, dataset, context.device, context.processes)
        context.processes.on_main(partial(found.save, context.root / unit.candidates(split)))


def score_maps_stage(context: RunContext, unit: TrainingJob) -> Stage:
    """Score with a segmenter's best weights every pixel of what its member predicts."""
    predict, splits = context.member(unit.member).predict, context.splits_of(unit)
    return Stage(
        folder=unit.folder,
        name="score",
        inputs=lambda: {
            "weights": sha256_of(context.root / unit.weights),
            "predict": predict.model_dump(mode="json", exclude={"workers", "suppress"}),
            "data": {split: _hash_of(context, split) for split in splits},
        },
        needs=(unit.weights,),
        outputs=tuple(unit.score_maps(split) for split in splits),
        action=partial(_score, context, unit),
        resources=Resources(gpus=1, processes=None),
    )


def _score(context: RunContext, unit: TrainingJob) -> None:
    member = context.member(unit.member)
    model = trained_segmenter(context.root / unit.weights, member, len(context.data.target.class_names))
    for split, dataset in context.splits_of(unit).items():
        log.info("%s: scoring the pixels of the %d images of %s", unit.title, len(dataset), split)
        maps = find_score_maps(model, member.predict, dataset, context.device, context.processes)
        context.processes.on_main(partial(save_score_maps, maps, context.root / unit.score_maps(split)))


def trained_segmenter(path: Path, member: MemberConfig, num_classes: int) -> Segmenter:
    """A segmenter with the weights of its training; arguments as of `load_trained`."""
    if member.segmenter is None:
        raise TypeError("this member is no segmenter that is trained here")
    model = build_segmenter(member.segmenter.model_copy(update={"init": "random"}), num_classes)
    load_weights(model, weights_in(load_checkpoint(path).tensors), source=path)
    return model


def load_trained(path: Path, member: MemberConfig, num_classes: int) -> Detector:
    """A member with the weights of its training.

    Args:
        path: Its best checkpoint.
        member: Its settings.
        num_classes: K.
    """
    model = build_model(_from_random(member), num_classes)
    load_weights(model, weights_in(load_checkpoint(path).tensors), source=path)
    return model
