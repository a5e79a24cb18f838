"""Votes of masks: derived by hand, and against dense arrays."""

from __future__ import annotations

import numpy as np
import pytest

from scantling.errors import DataError
from scantling.ops.mask_votes import vote_masks
from scantling.ops.rle import rle_decode, rle_encode


def voted(rows, votes, threshold=0.5):
    """What masks of one row of pixels make together."""
    masks = [rle_encode(np.array([row])) for row in rows]
    (found,) = vote_masks(masks, np.array(votes), np.zeros(len(rows), dtype=np.int64), threshold)
    return rle_decode(found)[0].astype(int).tolist()


def test_values_derived_by_hand():
    one, two, three = [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0]
    assert voted([one, two, three], [1, 1, 1]) == [0, 1, 1, 0, 0]  # two of three
    assert voted([one, two, three], [3, 1, 1]) == [1, 1, 0, 0, 0]  # 3 of 5 outvote the others
    assert voted([one, two], [1, 1]) == [1, 1, 1, 0, 0]  # a half is enough
    assert voted([one, two], [1, 1], 0.6) == [0, 1, 0, 0, 0]
    assert voted([one, two, three], [0.1, 0.2, 0.3]) == [
        0,
        1,
        1,
        1,
        0,
    ]  # 0.1 + 0.2 of 0.6, whatever the rounding
    assert voted([one, two, three], [1, 1, 1], 1.0) == [0, 0, 0, 0, 0]


def test_as_the_sum_of_dense_masks():
    rng = np.random.default_rng(0)
    for _ in range(40):
        count = int(rng.integers(1, 9))
        dense = rng.random((count, 6, 7)) < 0.5
        dense[0] |= rng.random() < 0.3  # full height and width
        votes, num = rng.integers(1, 4, count) / 4, int(rng.integers(1, count + 1))
        clusters = rng.permutation(np.concatenate([np.arange(num), rng.integers(0, num, count - num)]))
        found = vote_masks([rle_encode(mask) for mask in dense], votes, clusters, 0.5)
        assert len(found) == num
        for cluster, mask in enumerate(found):
            own = clusters == cluster
            total = (dense[own] * votes[own][:, None, None]).sum(axis=0)
            assert mask == rle_encode(total >= votes[own].sum() / 2)


def test_nothing_and_what_does_not_belong_together():
    assert vote_masks([], np.zeros(0), np.zeros(0, dtype=np.int64)) == []
    with pytest.raises(DataError, match="one size"):
        vote_masks(
            [rle_encode(np.ones((2, 3))), rle_encode(np.ones((3, 2)))], np.ones(2), np.zeros(2, dtype=int)
        )
