"""The table of variants: the numbers of single evaluations, differences to the named base, one set of draws."""

from __future__ import annotations

import pytest

from scantling.errors import UsageError
from scantling.evaluate.coco_eval import evaluate_results
from scantling.evaluate.compare import compare_results
from scantling.evaluate.variants import Variant, compare_variants


@pytest.fixture
def variants(random_case):
    dataset, results = random_case(3)
    return dataset, [
        Variant(name="all", results=results),
        Variant(name="half", results=results[::2], base="all", group="fewer"),
        Variant(name="none", results=[], base="half", group="fewer"),
    ]


def test_rows_hold_what_single_evaluations_and_comparisons_say(variants):
    dataset, given = variants
    table = compare_variants(dataset, given, bootstrap=100)
    for row, variant in zip(table.rows, given, strict=True):
        alone = evaluate_results(dataset, variant.results, bootstrap=100)
        assert row.metrics["AP"] == pytest.approx(alone.metrics["AP"], abs=1e-9)
        assert row.metrics["APm"] == pytest.approx(alone.metrics["APm"], abs=1e-9)
        assert row.interval == pytest.approx(alone.intervals["AP"], abs=1e-6)
    paired = compare_results(dataset, given[0].results, given[1].results, bootstrap=100).overall[0]
    assert table.rows[0].difference is None
    assert table.rows[1].difference == paired
    assert table.rows[2].difference.difference == -table.rows[1].metrics["AP"]


def test_the_text_has_a_table_for_each_group_and_says_what_is_undefined(variants):
    dataset, given = variants
    lines = compare_variants(dataset, given, bootstrap=0).to_text().splitlines()
    assert [line for line in lines if line.startswith("**")] == ["**fewer**"]
    (none,) = (line for line in lines if line.startswith("| none"))
    cells = [cell.strip() for cell in none.strip("|").split("|")]
    assert cells[1:4] == ["0.000", "-", "0.000"]
    assert cells[-2].startswith("-0.")
    assert cells[-1] == "-"
    assert compare_variants(dataset, []).to_text() == ""


def test_names_must_be_clear(variants):
    dataset, given = variants
    with pytest.raises(UsageError, match="2 variants are called 'all'"):
        compare_variants(dataset, [given[0], given[0]])
    with pytest.raises(UsageError, match="0 variants are called 'half'"):
        compare_variants(dataset, [given[2]])
