"""The contrast and the queue by hand, and the two encoders."""

from __future__ import annotations

import math
import multiprocessing

import pytest
import torch
from torch import nn
from torch.nn import functional

from scantling.errors import ConfigError
from scantling.models.backbone import Backbone, BackboneConfig
from scantling.pretrain import moco
from scantling.pretrain.moco import MoCo, MocoConfig, contrast, follow, in_parts, with_shuffled
from scantling.pretrain.run import crop_loader, initial_moco


def small(**changes) -> MocoConfig:
    return MocoConfig(**{"backbone": "resnet10t", "embedding": 4, "queue": 5, "momentum": 0.9, **changes})


@pytest.fixture
def model() -> MoCo:
    torch.manual_seed(0)
    return MoCo(small())


@pytest.fixture
def batch(store, config):
    return next(iter(crop_loader(store, config, seed=0).epoch(0)))


def test_the_key_encoder_starts_as_a_copy_that_gets_no_gradient(model):
    pairs = list(zip(model.query.state_dict().values(), model.key.state_dict().values(), strict=True))
    assert all(torch.equal(query, key) and query.data_ptr() != key.data_ptr() for query, key in pairs)
    assert not any(parameter.requires_grad for parameter in model.key.parameters())
    assert all(parameter.requires_grad for parameter in model.query.parameters())


def test_the_contrast_by_hand():
    query, key = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    queue = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    ignored = torch.tensor([[False, False], [True, False]])
    found = contrast(query, key, queue, ignored)
    assert torch.allclose(found, torch.tensor([[0.6, 0.0, -1.0], [1.0, -math.inf, 0.0]]))


def test_info_nce_by_hand(model, batch, monkeypatch):
    """Two queries (1, 0, 0, 0) whose key is (0.6, 0.8, 0, 0), against one key at 90 and one at 180 degrees."""
    pair = type(batch)(
        queries=batch.queries[:2],
        keys=batch.keys[:2],
        crops=torch.tensor([0, 1]),
        image_ids=batch.image_ids[:2],
    )
    monkeypatch.setattr(model, "_queries", lambda _: torch.tensor([[1.0, 0, 0, 0]] * 2))
    monkeypatch.setattr(model, "_keys", lambda _: torch.tensor([[0.6, 0.8, 0, 0]] * 2))
    model.queue[:2] = torch.tensor([[0.0, 1, 0, 0], [-1.0, 0, 0, 0]])
    model.queue_crops[:2] = torch.tensor([7, 1])  # the second is an older key of crop 1
    terms = [math.exp(x / 0.2) for x in (0.6, 0.0, -1.0)]
    first, second = -math.log(terms[0] / sum(terms)), -math.log(terms[0] / sum(terms[:2]))
    assert model.losses(pair)["info_nce"].item() == pytest.approx((first + second) / 2, abs=1e-6)
    assert model.take_accuracy() == 1.0
    assert model.take_accuracy() is None


def test_older_keys_of_a_crop_are_negatives_where_that_is_asked_for(batch, monkeypatch):
    """As published; the two queries of the test above, whose second now has two negatives as well."""
    torch.manual_seed(0)
    model = MoCo(small(own_keys="negatives"))
    pair = type(batch)(
        queries=batch.queries[:2],
        keys=batch.keys[:2],
        crops=torch.tensor([0, 1]),
        image_ids=batch.image_ids[:2],
    )
    monkeypatch.setattr(model, "_queries", lambda _: torch.tensor([[1.0, 0, 0, 0]] * 2))
    monkeypatch.setattr(model, "_keys", lambda _: torch.tensor([[0.6, 0.8, 0, 0]] * 2))
    model.queue[:2] = torch.tensor([[0.0, 1, 0, 0], [-1.0, 0, 0, 0]])
    model.queue_crops[:2] = torch.tensor([7, 1])
    terms = [math.exp(x / 0.2) for x in (0.6, 0.0, -1.0)]
    assert model.losses(pair)["info_nce"].item() == pytest.approx(-math.log(terms[0] / sum(terms)), abs=1e-6)


def test_the_queue_holds_the_last_keys_and_wraps(model):
    keys = functional.normalize(torch.arange(1.0, 33).reshape(8, 4), dim=1)
    model._remember(keys[:3], torch.tensor([10, 11, 12]))
    assert model.queue_crops.tolist() == [10, 11, 12, -1, -1]
    assert model.queue[3:].abs().sum() == 0
    model._remember(keys[3:6], torch.tensor([13, 14, 15]))
    assert model.queue_crops.tolist() == [15, 11, 12, 13, 14]
    assert torch.equal(model.queue[0], keys[5])
    assert torch.equal(model.queue[3:], keys[3:5])
    assert int(model.place) == 1


def test_of_a_batch_longer_than_the_queue_the_last_keys_stay(model):
    model._remember(torch.eye(4).repeat(2, 1), torch.arange(8))
    assert sorted(model.queue_crops.tolist()) == [3, 4, 5, 6, 7]


def test_the_key_encoder_follows_slowly():
    key, query = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.constant_(key.weight, 1.0)
    nn.init.constant_(query.weight, 3.0)
    follow(key, query, 0.75)
    assert key.weight.item() == pytest.approx(1.5)


def test_a_step_moves_the_query_by_gradient_and_fills_the_queue(store, config):
    torch.manual_seed(0)
    model = initial_moco(config, 0)
    batches = crop_loader(store, config, seed=0).epoch(0)
    first, second = next(batches), next(batches)
    assert model(first)["info_nce"].item() == 0.0  # nothing to contrast with yet
    assert model.queue_crops[:8].tolist() == first.crops.tolist()
    loss = model(second)["info_nce"]
    loss.backward()
    assert [name for name, parameter in model.query.named_parameters() if parameter.grad is None] == []
    assert model.query.backbone.body.conv1[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.key.parameters())
    assert torch.allclose(model.queue.norm(dim=1), torch.ones(16))


@pytest.mark.parametrize(("norm", "deform"), [("gn", (4,)), ("bn", ()), ("frozen_bn", ()), ("sync_bn", (4,))])
def test_any_norm_and_deformable_backbones_learn_and_load_strictly(batch, norm, deform):
    torch.manual_seed(0)
    config = small(backbone="resnet18", norm=norm, deform=deform)
    model = MoCo(config).train()
    for _ in range(2):
        model.queue_crops += 100  # as if other crops had been seen before
        loss = model(batch)["info_nce"]
    loss.backward()
    gradients = {n for n, p in model.query.backbone.named_parameters() if p.grad is not None}
    trainable = {n for n, p in model.query.backbone.named_parameters() if p.requires_grad}
    assert gradients == trainable
    assert any("offset" in name for name in gradients) == bool(deform)
    fresh = Backbone(BackboneConfig(name="resnet18", norm=norm, deform=deform))  # a detector's
    assert fresh.load(model.backbone_tensors()) == []
    views = model.normalise(batch.keys)
    expected = model.eval().query.backbone(views)
    for found, wanted in zip(fresh.eval()(views), expected, strict=True):
        assert torch.equal(found, wanted)


def test_batch_statistics_are_shuffled_where_there_are_any(batch):
    assert MoCo(small(norm="bn")).shuffles
    assert MoCo(small(norm="gn")).shuffles  # the head has some
    assert MoCo(small(norm="bn", head="plain")).shuffles
    assert MoCo(small(norm="sync_bn", head="plain")).shuffles
    assert not MoCo(small(norm="gn", head="plain")).shuffles
    assert not MoCo(small(norm="bn_eval", head="plain")).shuffles
    assert [MoCo(small())._parts_of(batch) for batch in (3, 16, 64, 256)] == [1, 2, 2, 8]
    assert MoCo(small(head="plain"))._parts_of(256) == 1


def test_no_shift_that_all_crops_share_reaches_the_contrast(model, batch):
    """What would separate new keys from old ones without telling crops apart."""
    model.train()
    views = model.normalise(batch.queries)
    expected = model.query(views)
    model.query.head[0].register_forward_hook(lambda _module, _given, out: out + 5.0)
    assert torch.allclose(model.query(views), expected, atol=1e-4)


def test_shuffling_gives_each_view_its_own_key_back_and_mixes_the_statistics():
    seen = []

    def encode(views):
        seen.append(views.flatten().tolist())
        return 10 * views

    torch.manual_seed(1)
    views = torch.arange(12.0).reshape(12, 1)
    found = with_shuffled(views, lambda mine: in_parts(encode, mine, 3))
    assert torch.equal(found, 10 * views)
    assert [len(part) for part in seen] == [4, 4, 4]
    assert sorted(sum(seen, [])) == list(range(12))
    assert seen[0] != [0, 1, 2, 3]


def test_two_processes_shuffle_over_both_and_share_a_queue(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [context.Process(target=two_process_child, args=(rank, tmp_path, answers)) for rank in (0, 1)]
    for child in children:
        child.start()
    found = dict(answers.get(timeout=100) for _ in children)
    for child in children:
        child.join(timeout=60)
    for rank in (0, 1):
        keys, encoded, queue = found[rank]
        assert keys == [[20.0 * rank + 10.0 * place] for place in (0, 1)]
        assert queue == [0, 1, 2, 3, -1]
    assert sorted(found[0][1] + found[1][1]) == [0.0, 1.0, 2.0, 3.0]


def two_process_child(rank: int, folder, answers) -> None:
    """What one of two processes sees: its own keys, what it encoded, and the queue's crops."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    encoded = []

    def encode(views):
        encoded.extend(views.flatten().tolist())
        return 10 * views

    own = torch.tensor([[2.0 * rank], [2.0 * rank + 1]])
    torch.manual_seed(rank)
    keys = with_shuffled(own, encode)
    model = MoCo(small())
    model._remember(
        moco.gathered(functional.normalize(torch.ones(2, 4))), moco.gathered(own.flatten().to(torch.int64))
    )
    answers.put((rank, (keys.tolist(), encoded, model.queue_crops.tolist())))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_what_is_still_auto_is_refused():
    with pytest.raises(ConfigError, match="auto"):
        MoCo(MocoConfig(backbone="resnet10t"))
