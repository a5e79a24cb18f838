"""Learning curves out of logs, whole or damaged."""

from __future__ import annotations

import json

from scantling.report.history import history_from_records, read_history

RECORDS = [
    {"step": 10, "epoch": 0, "lr": 0.1, "loss": 3.0, "loss/rpn": 1.0},
    {"step": 20, "epoch": 0, "lr": 0.1, "loss": float("nan"), "loss/rpn": 0.5},
    {"step": 20, "epoch": 0, "val/bbox/AP": 0.25, "val/bbox/ARs": 0.1, "val/bbox/APl": None},
    {"step": 30, "epoch": 1, "loss": 2.0, "loss/rpn": 0.25},
]


def test_losses_and_metrics_come_apart():
    history = history_from_records("cascade", RECORDS)
    assert {series.name: series.points for series in history.losses} == {
        "total": ((10, 3.0), (30, 2.0)),
        "rpn": ((10, 1.0), (20, 0.5), (30, 0.25)),
    }
    assert history.losses[0].name == "total"
    assert [(series.name, series.points) for series in history.metrics] == [("bbox/AP", ((20, 0.25),))]


def test_after_a_resume_the_later_record_of_a_step_counts():
    history = history_from_records(
        "m", [{"step": 10, "loss": 3.0}, {"step": 5, "loss": 4.0}, {"step": 10, "loss": 2.0}]
    )
    assert history.losses[0].points == ((5, 4.0), (10, 2.0))


def test_a_cut_off_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": 1.5}) + "\n[1]\n" + '{"step": 2, "lo', encoding="utf-8")
    assert read_history(path, "m").losses[0].points == ((1, 1.5),)


def test_no_log_no_curves(tmp_path):
    history = read_history(tmp_path / "metrics.jsonl", "m")
    assert (history.losses, history.metrics) == ((), ())
