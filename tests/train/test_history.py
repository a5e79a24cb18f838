"""The file of entries survives crashes and goes back to where a checkpoint was."""

from __future__ import annotations

import pytest

from scantling.train.history import JSONL_NAME, History, Meter, read_history


def test_entries_come_back_and_what_is_not_finite_is_null(tmp_path):
    history = History(tmp_path)
    history.append({"step": 1, "loss": 0.1 + 0.2})
    history.append({"step": 2, "val/bbox/AP": float("nan"), "val/bbox/APs": None})
    expected = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "val/bbox/AP": None, "val/bbox/APs": None}]
    assert history.entries() == expected
    assert history.lines == 2
    history.write_table()
    table = (tmp_path / "metrics.csv").read_text()
    assert table == "step,loss,val/bbox/AP,val/bbox/APs\n1,0.30000000000000004,,\n2,,,\n"


@pytest.mark.parametrize(("lines", "kept"), [(0, 0), (1, 1), (2, 2), (5, 2)])
def test_opening_keeps_the_first_lines_and_drops_a_torn_one(tmp_path, lines, kept):
    path = tmp_path / JSONL_NAME
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_history(path) == [{"step": 1}, {"step": 2}]
    history = History(tmp_path, lines=lines)
    assert history.lines == kept
    history.append({"step": 9})
    assert [entry["step"] for entry in history.entries()] == [1, 2][:kept] + [9]


def test_no_file_is_an_empty_history(tmp_path):
    assert History(tmp_path, lines=7).entries() == []
    assert read_history(tmp_path / "none.jsonl") == []


def test_meter_counts_each_value_where_it_occurs():
    first, second = Meter(), Meter()
    first.add({"loss": 1.0, "mask": 5.0})
    first.add({"loss": 3.0})
    second.add({"loss": 8.0})
    assert first.means() == {"loss": 2.0, "mask": 5.0}
    assert Meter.merged([first, second]).means() == {"loss": 4.0, "mask": 5.0}
    assert Meter(first.sums, first.counts).means() == first.means()
    assert Meter().means() == {}
