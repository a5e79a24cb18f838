"""One table over several data sets: means, half-sums and intervals by hand, and what is missing."""

from __future__ import annotations

import numpy as np
import pytest

from scantling.evaluate.bootstrap import draw_weights
from scantling.evaluate.over_sets import (
    Measured,
    SetResult,
    SetRow,
    mean_iou_table,
    mean_over_sets,
    table_over_sets,
)

NAN = float("nan")


def row(name: str, precision: list[float], recall: list[float], part: str = "members") -> SetRow:
    return SetRow(
        name=name, part=part, average_precision=np.array(precision), average_recall=np.array(recall)
    )


def result(name: str, *rows: SetRow, **more) -> SetResult:
    return SetResult(name=name, iou_type="segm", split="val", num_images=3, rows=rows, **more)


PAPER = {"HTC": (47.20, 61.14, 54.17), "R50": (40.17, 50.03, 45.10)}
"""mAP, mAR and (mAP + mAR) / 2 of two rows of the paper's Table 2; below the fourteen numbers they come from."""
NUMBERS = {
    "HTC": (
        [42.7, 54.4, 28.2, 27.7, 59.1, 36.2, 30.2, 44.0, 43.8, 81.5, 93.9, 23.0, 58.3, 38.2],
        [56.1, 69.8, 45.2, 44.4, 72.1, 55.9, 54.1, 58.0, 56.9, 86.9, 96.1, 39.0, 69.4, 52.1],
    ),
    "R50": (
        [31.6, 41.5, 21.4, 10.7, 54.4, 21.6, 23.0, 40.0, 38.6, 80.3, 92.7, 18.5, 55.7, 32.4],
        [41.4, 52.1, 34.5, 23.4, 63.7, 32.6, 37.5, 55.1, 50.0, 85.1, 94.9, 26.4, 62.8, 40.9],
    ),
}


def test_the_means_are_those_that_the_paper_prints():
    results = [
        result(f"set {at}", *(row(name, [p[at] / 100], [r[at] / 100]) for name, (p, r) in NUMBERS.items()))
        for at in range(14)
    ]
    table = table_over_sets(results, "members")
    assert [one.name for one in table.rows] == ["HTC", "R50"]
    for one in table.rows:
        found = [100 * one.mean[metric].value for metric in table.metrics]
        assert found == pytest.approx(PAPER[one.name], abs=0.051)  # the paper's are of unrounded numbers
        assert one.num_sets == dict.fromkeys(table.metrics, 14)
        assert {cell.interval for cell in one.mean.values()} == {None}
    assert table.rows[0].sets["half-sum"]["set 0"] == Measured(pytest.approx((0.427 + 0.561) / 2))


def test_what_is_undefined_or_failed_is_in_no_mean_and_is_counted():
    results = [
        result("a", row("x", [0.2], [0.4]), row("y", [NAN], [NAN])),
        result("b", row("x", [0.6], [0.8]), row("y", [0.5], [0.7]), row("z", [0.1], [0.1])),
        SetResult(name="c", failure="broken"),
    ]
    x, y, z = table_over_sets(results, "members").rows
    assert x.mean["mAP"].value == pytest.approx(0.4)
    assert x.mean["half-sum"].value == pytest.approx((0.2 + 0.4 + 0.6 + 0.8) / 4)
    assert (y.mean["mAP"].value, y.num_sets["mAP"], y.sets["mAP"]["a"]) == (0.5, 1, Measured(None))
    assert (x.num_sets["mAP"], z.num_sets["mAR"]) == (2, 1)
    assert x.sets["mAP"].keys() == {"a", "b"}
    lines = table_over_sets(results, "members").to_text().splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[3:-1]] == ["a", "b", "c", "mean"]
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == (
        ["x", "mAP", "0.200", "0.600", "-", "0.400 (2 sets)"]
    )
    assert [cell.strip() for cell in lines[5].split("|")[1:-1]] == (
        ["y", "mAP", "-", "0.500", "-", "0.500 (1 sets)"]
    )
    nothing = table_over_sets([SetResult(name="c", failure="broken")], "members")
    assert (nothing.rows, nothing.sets) == ((), ("c",))
    assert table_over_sets([], "steps").to_text().count("\n") == 1


def test_rows_of_one_part_are_in_its_table_alone():
    both = [result("a", row("x", [0.2], [0.4]), row("x", [0.3], [0.5], "steps"))]
    members, steps = (table_over_sets(both, part).rows for part in ("members", "steps"))
    assert [members[0].mean["mAP"].value, steps[0].mean["mAP"].value] == pytest.approx([0.2, 0.3])


def means_of_draws(values: np.ndarray, resamples: int = 4000) -> np.ndarray:
    """The mean of some images' values: of all, then of each draw."""
    weights = draw_weights(len(values), resamples)
    return np.concatenate([[values.mean()], values @ weights / len(values)])


def test_draws_of_sets_are_independent_though_the_same_images_are_drawn():
    values = np.random.default_rng(5).random(40)
    own = means_of_draws(values)
    variance = values.var() / len(values)  # of a mean of draws with replacement
    alike, opposite = means_of_draws(values), means_of_draws(-values)
    assert own[1:].var() == pytest.approx(variance, rel=0.1)
    assert mean_over_sets({"a": own, "b": alike})[1:].var() == pytest.approx(variance / 2, rel=0.1)
    assert mean_over_sets({"a": own, "b": opposite})[1:].var() == pytest.approx(variance / 2, rel=0.1)
    (found,) = table_over_sets(
        [result("a", row("x", list(own), list(own))), result("b", row("x", list(alike), list(alike)))],
        "members",
    ).rows
    low, high = found.mean["mAP"].interval
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(variance / 2), rel=0.1)
    assert found.mean["mAP"].value == pytest.approx(values.mean())
    assert low < values.mean() < high


def test_rows_of_a_set_stay_together():
    first, second = (means_of_draws(np.random.default_rng(seed).random(10), 50) for seed in (0, 1))
    before = mean_over_sets({"a": first, "b": second})
    after = mean_over_sets({"a": first + 0.1, "b": second + 0.3})
    np.testing.assert_allclose(after - before, 0.2)


def test_sets_with_unequal_or_undefined_draws():
    mean = mean_over_sets({"a": np.array([0.2, 0.3, 0.3]), "b": np.array([0.6, NAN])})
    np.testing.assert_allclose(mean, [0.4, 0.3])
    assert np.isnan(mean_over_sets({})).all()


def test_score_maps_are_averaged_over_the_sets_that_have_some():
    table = mean_iou_table(
        [
            result("a", mean_iou={"light": 0.5, "other": None}),
            result("b", mean_iou={"light": 0.7}),
            SetResult(name="c", failure="broken"),
        ]
    )
    light, other = table.rows
    assert light.mean["mIoU"] == Measured(pytest.approx(0.6))
    assert (light.num_sets["mIoU"], other.num_sets["mIoU"], other.mean["mIoU"].value) == (2, 0, None)
    assert light.sets["mIoU"] == {"a": Measured(0.5), "b": Measured(0.7)}
