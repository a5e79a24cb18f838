"""Neighbours that vote, and crops held out by image."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from scantling.pretrain.knn import held_out_mask, judge, knn_labels, knn_split


def test_votes_weigh_by_similarity():
    """Two neighbours of category 1 at cosine 0.6 against one of category 0 at cosine 1: e^(5.7) > 2."""
    known = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8], [-1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 1])
    asked = torch.tensor([[2.0, 0.0]])
    assert math.exp(0.4 / 0.07) > 2
    assert knn_labels(known, labels, asked, neighbours=3, num_classes=2).tolist() == [0]
    assert knn_labels(known[1:], labels[1:], asked, neighbours=20, num_classes=2).tolist() == [1]


def test_accuracy_counts_crops_and_balanced_accuracy_categories():
    score = judge(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 2]))
    assert (score.accuracy, score.balanced, score.majority) == pytest.approx((0.75, 0.5, 0.75))


def test_no_image_has_crops_on_both_sides(store):
    split = knn_split(store, share=0.4, seed=0, most=1000)
    known, asked = ({store.images[i] for i in side} for side in (split.known, split.asked))
    assert known.isdisjoint(asked)
    assert len(split.known) + len(split.asked) == len(store)
    fewer = knn_split(store, share=0.4, seed=0, most=20)
    assert len(fewer.known) + len(fewer.asked) == 20


def test_the_share_of_images_is_held_out(store):
    many = replace(store, images=tuple(f"{i}.png" for i in range(len(store))))
    masks = [held_out_mask(many, 0.25, seed) for seed in range(20)]
    assert 0.2 < np.mean(masks) < 0.3
    assert not all(np.array_equal(masks[0], mask) for mask in masks)


def test_where_there_is_nothing_to_tell_there_is_no_score(store):
    unlabelled = replace(store, labels=np.full(len(store), -1))
    one = replace(store, labels=np.zeros(len(store), dtype=np.int64))
    assert knn_split(unlabelled, share=0.4, seed=0, most=1000) is None
    assert knn_split(one, share=0.4, seed=0, most=1000) is None
