"""What a cell's gain is expected to be, when cells borrow from each other (partial pooling).

A cell with few results says little by itself. Its expected gain therefore lies between its own mean and that of its
category, which lies between its own mean and that of all: the nearer to its own, the more the cells differ beyond
chance, and the more images the cell has.

    gains of results ─► mean of each cell and image ─► cell's mean, variance v = s² / m
    spread of cells about their category (t²) ─► expected = b · own + (1 - b) · category's,   b = t² / (t² + v)
    the same once more for categories about the mean of all

N: results, C: cells with a result, K: their categories, m: images of a cell.
Source: Efron and Morris 1975 (shrinkage towards a common mean); DerSimonian and Laird 1986 (spread by moments).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SMALLEST = 1e-12
"""Variance where all gains are equal."""


def expected_gains(gains: Floats, images: Ints, cells: Ints, cells_per_category: int) -> dict[int, float]:
    """Expected gain of every cell that has a result.

    Args:
        gains: (N,) of each result, none NaN; N may be 0.
        images: (N,) image of each result; results of one image count as one observation of a cell.
        cells: (N,) number of each result's cell.
        cells_per_category: Cell numbers from k times this on are category k's.
    """
    if not len(gains):
        return {}
    num_images = int(images.max()) + 1
    pairs, member = np.unique(cells * num_images + images, return_inverse=True)
    seen = np.bincount(member, weights=gains) / np.bincount(member)
    found, cell_of = np.unique(pairs // num_images, return_inverse=True)
    counts = np.bincount(cell_of)
    own = np.bincount(cell_of, weights=seen) / counts
    variances = _variance_of_one(seen, own[cell_of], len(found)) / counts

    categories, category_of = np.unique(found // cells_per_category, return_inverse=True)
    spread = _spread(own, variances, category_of)
    weights = 1 / (variances + spread)
    totals = np.bincount(category_of, weights=weights)
    by_category = np.bincount(category_of, weights=weights * own) / totals
    among = _spread(by_category, 1 / totals, np.zeros(len(categories), dtype=np.int64))
    common = np.average(by_category, weights=1 / (1 / totals + among))
    share = among / (among + 1 / totals)
    by_category = share * by_category + (1 - share) * common

    share = spread / (spread + variances)
    expected = share * own + (1 - share) * by_category[category_of]
    return dict(zip(found.tolist(), expected.tolist(), strict=True))


def _variance_of_one(seen: Floats, means: Floats, num_cells: int) -> float:
    """Variance of a single observation about its cell's mean; about the mean of all where no cell has two."""
    if len(seen) > num_cells:
        return max(_SMALLEST, float(((seen - means) ** 2).sum()) / (len(seen) - num_cells))
    return max(_SMALLEST, float(seen.var()))


def _spread(means: Floats, variances: Floats, groups: Ints) -> float:
    """Variance of the true means about those of their groups: what their own variances (all above 0) do not explain."""
    weights = 1 / variances
    totals = np.bincount(groups, weights=weights)
    centres = np.bincount(groups, weights=weights * means) / totals
    degrees = len(means) - len(totals)
    scale = weights.sum() - (np.bincount(groups, weights=weights**2) / totals).sum()
    if degrees == 0 or scale <= 0:
        return 0.0
    excess = float((weights * (means - centres[groups]) ** 2).sum()) - degrees
    return max(0.0, excess / float(scale))
