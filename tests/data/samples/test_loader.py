"""Which images form which batch: everything an epoch promises, for any number of workers and processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from scantling.data.coco import CocoDataset, read_coco
from scantling.data.io import write_json
from scantling.data.samples.augmentation import AugmentConfig, build_transforms
from scantling.data.samples.dataset import DetectionDataset
from scantling.data.samples.loader import (
    EpochImage,
    LoaderConfig,
    TrainLoader,
    aspect_order,
    batched,
    epoch_order,
    shard,
)
from scantling.data.samples.transforms import Compose
from scantling.errors import DataError

NUM_IMAGES = 9


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Nine small noisy pictures, some upright and some wide, with string and integer ids, listed in any order."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    images, annotations = [], []
    rng = np.random.default_rng(0)
    for i in (4, 1, 8, 0, 7, 3, 6, 2, 5):
        height, width = (60, 40) if i % 3 == 0 else (40, 60)
        cv2.imwrite(
            str(root / "images" / f"{i}.png"), rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        )
        images.append(
            {"id": f"s{i}" if i % 2 else i, "file_name": f"{i}.png", "height": height, "width": width}
        )
        annotations.append(
            {"id": i + 1, "image_id": images[-1]["id"], "category_id": 0, "bbox": [5, 5, 30, 30]}
        )
    write_json(
        root / "all.json",
        {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "a"}]},
    )
    return read_coco(root / "all.json")


MIXING = {"copy_paste": {"probability": 1.0}, "mosaic": {}, "mixup": {"probability": 0.5}}
"""Everything that draws on other images than the one it is about."""


def dataset_of(coco: CocoDataset, seed: int = 1, mixing: Mapping[str, object] = {}) -> DetectionDataset:
    config = AugmentConfig.model_validate(
        {"short_side": (32, 48, 64), "long_side": 96, "brightness": 0.3, "hue": 0.1, **mixing}
    )
    return DetectionDataset(coco, build_transforms(config, coco), seed=seed)


def fingerprint(batches):
    return [
        (
            batch.image_ids,
            tuple(batch.images.shape),
            batch.images.sum().item(),
            batch.instances[0].boxes.sum().item(),
        )
        for batch in batches
    ]


def test_every_image_comes_once_per_repeat_and_repeats_follow_each_other():
    ids = [3, "3", "a", 10, 11]
    order = epoch_order(ids, seed=0, epoch=4, repeats=3)
    assert [entry.repeat for entry in order] == [0] * 5 + [1] * 5 + [2] * 5
    passes = [[entry.position for entry in order[start : start + 5]] for start in (0, 5, 10)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_the_order_is_that_of_the_ids_not_of_the_records():
    ids = [f"image {i}" for i in range(40)]
    shuffled = ids[::-1]
    first = [ids[entry.position] for entry in epoch_order(ids, seed=2, epoch=0)]
    second = [shuffled[entry.position] for entry in epoch_order(shuffled, seed=2, epoch=0)]
    assert first == second != ids
    assert first != [ids[entry.position] for entry in epoch_order(ids, seed=2, epoch=1)]
    assert first != [ids[entry.position] for entry in epoch_order(ids, seed=3, epoch=0)]


def test_permutations_are_uniform():
    """Each of four images is first about equally often."""
    firsts = Counter(epoch_order(["a", "b", "c", "d"], seed=0, epoch=e)[0].position for e in range(2000))
    assert all(abs(count - 500) < 80 for count in firsts.values())  # 4 standard deviations


@given(
    wide=st.lists(st.booleans(), max_size=40),
    size=st.integers(1, 7),
    drop_last=st.booleans(),
)
def test_batches_hold_everything_once_and_one_group_while_full(wide, size, drop_last):
    entries = [EpochImage(position, 0) for position in range(len(wide))]
    batches = batched(entries, size, groups=wide, drop_last=drop_last)
    number = len(wide) // size if drop_last else -(-len(wide) // size)
    assert len(batches) == number
    held = [entry for batch in batches for entry in batch]
    assert len(held) == len(set(held))
    assert set(held) <= set(entries)
    if not drop_last:
        assert set(held) == set(entries)
    assert all(len(batch) == size for batch in batches[: len(wide) // size])
    mixed = sum(len({wide[entry.position] for entry in batch}) > 1 for batch in batches)
    assert mixed <= 1 + (size == 1)  # only what is left over of both groups shares a batch


@given(length=st.integers(1, 20), world=st.integers(1, 6))
def test_shards_are_even_disjoint_and_never_empty(length, world):
    batch = [EpochImage(position, 0) for position in range(length)]
    padding = [EpochImage(100 + position, 0) for position in range(2)]
    parts = [shard(batch, padding, rank=rank, world=world) for rank in range(world)]
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    joined = [entry for part in parts for entry in part]
    assert joined[:length] == batch
    assert len(joined) == max(length, world)


def test_two_processes_together_see_the_batches_of_one(coco):
    dataset = dataset_of(coco)
    single = TrainLoader(dataset, LoaderConfig(batch_size=4, repeats=2)).plan(3)
    halves = [
        TrainLoader(dataset, LoaderConfig(batch_size=2, repeats=2, rank=r, world=2)).plan(3) for r in (0, 1)
    ]
    assert [step.entries for step in single] == [a.entries + b.entries for a, b in zip(*halves, strict=True)]
    assert [len(step.entries) for step in halves[1]] == [2, 2, 2, 2, 1]  # 18 = 4 * 4 + 1 + 1


@pytest.mark.parametrize(
    "settings", [{}, {"group_aspect": True}, {"drop_last": True}, {"world": 2, "rank": 1}]
)
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_steps_per_epoch_is_what_an_epoch_has(coco, settings, batch_size):
    loader = TrainLoader(dataset_of(coco), LoaderConfig(batch_size=batch_size, repeats=2, **settings))
    assert len(loader.plan(0)) == loader.steps_per_epoch


def test_grouping_by_aspect_saves_padding(coco):
    dataset = DetectionDataset(coco, Compose(()))
    unpadded = [
        {hw for hw in batch.sizes_hw}
        for batch in TrainLoader(dataset, LoaderConfig(batch_size=3, group_aspect=True)).epoch(0)
    ]
    assert all(len(sizes) == 1 for sizes in unpadded)


def test_batches_are_the_same_for_any_number_of_workers_and_any_epoch_order(coco):
    reference = TrainLoader(dataset_of(coco, mixing=MIXING), LoaderConfig(batch_size=2, repeats=2))
    expected = {epoch: fingerprint(reference.epoch(epoch)) for epoch in (0, 1)}
    assert expected[0] != expected[1]
    for workers in (1, 2):
        loader = TrainLoader(
            dataset_of(coco, mixing=MIXING), LoaderConfig(batch_size=2, repeats=2, workers=workers)
        )
        assert fingerprint(loader.epoch(1)) == expected[1]
        assert fingerprint(loader.epoch(0)) == expected[0]
        loader.close()


def test_resuming_at_a_step_gives_the_rest_of_the_epoch(coco):
    loader = TrainLoader(dataset_of(coco), LoaderConfig(batch_size=2, workers=1))
    whole = fingerprint(loader.epoch(5))
    assert fingerprint(loader.epoch(5, start_step=3)) == whole[3:]
    assert fingerprint(loader.epoch(5, start_step=len(whole))) == []
    loader.close()


def test_skipped_steps_read_nothing(coco, tmp_path):
    loader = TrainLoader(dataset_of(coco), LoaderConfig(batch_size=3))
    skipped = {entry.position for entry in loader.plan(0)[0].entries}
    records = tuple(
        replace(record, path=tmp_path / "gone.png") if position in skipped else record
        for position, record in enumerate(coco.images)
    )
    crippled = TrainLoader(dataset_of(replace(coco, images=records)), LoaderConfig(batch_size=3))
    assert len(list(crippled.epoch(0, start_step=1))) == 2
    with pytest.raises(DataError, match=r"gone\.png"):
        next(crippled.epoch(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_names_its_file(coco, tmp_path, workers):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(coco.images[0].path.read_bytes()[:200])
    images = (replace(coco.images[0], path=damaged), *coco.images[1:])
    loader = TrainLoader(dataset_of(replace(coco, images=images)), LoaderConfig(workers=workers))
    with pytest.raises(DataError, match=r"damaged\.png") as caught:
        list(loader.epoch(0))
    assert caught.value.findings
    loader.close()


def test_too_few_images_for_one_batch():
    nothing = CocoDataset(file="x.json", image_root=".", images=(), annotations=(), categories=())
    with pytest.raises(DataError, match="0 images"):
        TrainLoader(DetectionDataset(nothing, Compose(())), LoaderConfig())


def test_aspect_order():
    assert aspect_order([(10, 10), (10, 30), (30, 10), (20, 20)]) == [1, 0, 3, 2]
    assert aspect_order([]) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"workers": -2},
        {"batch_size": True},
        {"rank": 2, "world": 2},
        {"size": 3},
        {"repeats": 1.5},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        LoaderConfig(**wrong)
