"""How often images are shown: factors by hand, frequencies over epochs, and that nothing but (seed, epoch) counts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scantling.data.coco import read_coco
from scantling.data.io import write_json
from scantling.data.samples.dataset import DetectionDataset
from scantling.data.samples.loader import LoaderConfig, TrainLoader, epoch_order
from scantling.data.samples.sampling import Sampler, SamplingConfig, labels_of, repeat_factors
from scantling.data.samples.transforms import Compose

COMMON, RARE, NONE = frozenset({0}), frozenset({0, 1}), frozenset[int]()


def sampler(method: str, labels, *, threshold: float = 0.1, ids=None, seed: int = 0) -> Sampler:
    config = SamplingConfig(method=method, threshold=threshold)
    return Sampler(config, list(range(len(labels))) if ids is None else ids, labels, seed=seed)


def test_repeat_factors_by_hand():
    """Ten images: class 0 in nine, class 1 in one, which is rare below 0.4: sqrt(0.4 / 0.1) = 2 times."""
    labels = [COMMON] * 8 + [RARE, NONE]
    assert repeat_factors(labels, 0.4) == pytest.approx([1] * 8 + [2, 1])
    assert repeat_factors(labels, 0.1) == [1] * 10
    assert repeat_factors([], 0.1) == []
    three = [frozenset({0, 1}), frozenset({0}), frozenset({0, 2}), frozenset({0, 2})]
    assert repeat_factors(three, 1.0) == pytest.approx([2, 1, 2**0.5, 2**0.5])


def test_fractions_are_rounded_up_with_their_own_probability():
    """Sixteen images with a class in one: factor sqrt(0.36 / (1 / 16)) = 2.4, so a sum of 17.4 and passes of 18."""
    one = sampler("repeat_factor", [COMMON] * 15 + [RARE], threshold=0.36)
    assert one.length == 18
    epochs = [one.times(epoch, 0) for epoch in range(2000)]
    assert {sum(times) for times in epochs} == {18}
    rare = Counter(times[15] for times in epochs)
    assert set(rare) == {2, 3}
    scaled = 2.4 * 18 / 17.4
    assert rare[3] / 2000 == pytest.approx(scaled - 2, abs=0.05)  # 4.5 standard deviations
    assert sum(times[0] for times in epochs) / 2000 == pytest.approx(18 / 17.4, abs=0.02)


def test_without_a_rare_class_repeat_factors_change_nothing():
    ids = ["a", 3, "b", 8]
    plain = sampler("repeat_factor", [COMMON] * 4, ids=ids)
    assert epoch_order(ids, seed=0, epoch=5, repeats=2, sampler=plain) == epoch_order(
        ids, seed=0, epoch=5, repeats=2
    )


def test_every_class_is_shown_equally_often():
    """Twelve images, two without objects; class 0 in ten, class 1 in one of these."""
    labels = [COMMON] * 9 + [RARE, NONE, NONE]
    one = sampler("class_aware", labels)
    assert one.length == 12
    for epoch in range(20):
        times = one.times(epoch, 0)
        assert sum(times) == 12
        assert times[10:] == [1, 1]
        assert times[9] in {5, 6}  # five for class 1, and perhaps once for class 0
        assert all(shown in {0, 1} for shown in times[:9])
    shown = [sum(times) for times in zip(*(one.times(epoch, 0) for epoch in range(400)), strict=True)]
    assert all(abs(each - 200) < 45 for each in shown[:9])  # 5 of 10 in each pass, 4.5 standard deviations
    assert sampler("class_aware", [NONE] * 3).times(0, 0) == [1, 1, 1]
    assert sampler("class_aware", [], ids=[]).times(0, 0) == []


@given(
    labels=st.lists(st.frozensets(st.integers(0, 4), max_size=3), min_size=1, max_size=25),
    method=st.sampled_from(["uniform", "repeat_factor", "class_aware"]),
    epoch=st.integers(0, 5),
)
def test_all_passes_are_equally_long_and_entries_are_counted(labels, method, epoch):
    one = sampler(method, labels, threshold=0.7)
    order = epoch_order(range(len(labels)), seed=0, epoch=epoch, repeats=2, sampler=one)
    assert len(order) == 2 * one.length
    assert len(set(order)) == len(order)  # the same image has other augmentations every time
    counts = Counter(entry.position for entry in order)
    for position, times in counts.items():
        assert {entry.repeat for entry in order if entry.position == position} == set(range(times))
    if method == "repeat_factor":
        assert all(counts[position] >= 2 for position in range(len(labels)))


@pytest.mark.parametrize("method", ["repeat_factor", "class_aware"])
def test_the_order_is_that_of_the_ids_not_of_the_records(method):
    labels, ids = [COMMON] * 9 + [RARE, NONE], [f"image {i}" for i in range(11)]

    def shown(labels, ids, seed=2, epoch=0):
        one = sampler(method, labels, ids=ids, seed=seed, threshold=0.5)
        return [ids[entry.position] for entry in epoch_order(ids, seed=seed, epoch=epoch, sampler=one)]

    first = shown(labels, ids)
    assert first == shown(labels[::-1], ids[::-1])
    assert first != shown(labels, ids, epoch=1)
    assert first != shown(labels, ids, seed=3)


@pytest.fixture
def coco(tmp_path):
    """Eight images; the last has a rare class beside the common one, and a crowd of the third class."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 8, "width": 8} for i in range(8)]
    box = {"bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    annotations = [{"id": i + 1, "image_id": i, "category_id": 0, **box} for i in range(8)]
    annotations.append({"id": 20, "image_id": 7, "category_id": 1, **box})
    annotations.append({"id": 21, "image_id": 7, "category_id": 2, **box, "iscrowd": 1})
    categories = [{"id": i, "name": name} for i, name in enumerate("abc")]
    for image in images:
        (tmp_path / image["file_name"]).write_bytes(b"")
    file = tmp_path / "all.json"
    write_json(file, {"images": images, "annotations": annotations, "categories": categories})
    return read_coco(file)


def test_crowds_are_no_objects_of_a_class(coco):
    assert labels_of(coco) == [COMMON] * 7 + [RARE]


@pytest.mark.parametrize(("method", "steps"), [("repeat_factor", 5), ("class_aware", 4)])
def test_two_processes_get_the_batches_of_one(coco, method, steps):
    """With the threshold 0.5 the last image is shown twice, so nine a pass; two passes in batches of four."""
    dataset = DetectionDataset(coco, Compose(()), seed=0)
    settings = {"repeats": 2, "sampling": SamplingConfig(method=method, threshold=0.5)}
    single = TrainLoader(dataset, LoaderConfig(batch_size=4, **settings))
    pair = [TrainLoader(dataset, LoaderConfig(batch_size=2, rank=r, world=2, **settings)) for r in (0, 1)]
    assert {loader.steps_per_epoch for loader in (single, *pair)} == {steps}
    for epoch in range(3):
        plans = [loader.plan(epoch) for loader in (single, *pair)]
        assert {len(plan) for plan in plans} == {steps}
        for whole, first, second in zip(*plans, strict=True):
            assert whole.entries == (*first.entries, *second.entries)
