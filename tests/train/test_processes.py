"""Two processes are one run: same losses and weights as one process with the same global batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scantling.train.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow
FLOAT32_EPS = torch.finfo(torch.float32).eps


def history(out: Path) -> list[dict[str, float]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if value is not None} for line in lines]


def test_every_process_ends_as_it_should(child_runs):
    assert child_runs.report["as_one_and_as_two_processes"]["codes"] == [0, 0, 0, 2, 2, *[0] * 5]


@pytest.mark.parametrize(("kind", "rounding"), [("", 0.0), ("-seesaw", 20 * FLOAT32_EPS)])
def test_losses_and_metrics_equal_those_of_one_process(child_runs, kind, rounding):
    """The logits of Seesaw's classifier are cosines times 20, so their rounding is, too, however small the loss."""
    one, two = history(child_runs.folder / f"one{kind}"), history(child_runs.folder / f"two{kind}")
    assert len(one) == len(two)
    for single, pair in zip(one, two, strict=True):
        assert pair == pytest.approx(single, rel=1e-5, abs=rounding)


@pytest.mark.parametrize("kind", ["", "-seesaw"])
def test_weights_average_and_optimiser_equal_those_of_one_process(child_runs, kind):
    one = load_checkpoint(child_runs.folder / f"one{kind}" / "last.safetensors").tensors
    two = load_checkpoint(child_runs.folder / f"two{kind}" / "last.safetensors").tensors
    assert set(one) == set(two)
    assert any(name.startswith("swa." if kind else "ema.") for name in one)
    assert all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-6) for name in one)


def test_the_classes_that_all_processes_have_seen_are_counted(child_runs):
    """Three epochs of five batches of eight examples, of which the processes get five and three."""
    tensors = load_checkpoint(child_runs.folder / "two-seesaw" / "last.safetensors").tensors
    counts = tensors["model.class_loss.counts"]
    assert int(counts.sum()) == 3 * 5 * 8
    assert (counts > 0).all()
    assert counts[0] > counts[1]


def test_a_fault_on_one_process_stops_both_and_names_its_images(child_runs):
    for rank in (0, 1):
        message = (child_runs.folder / f"spoilt-{rank}.txt").read_text()
        assert "images e0b0i5, e0b0i6, e0b0i7: square nan" in message
        assert "e0b0i0" not in message
    assert load_checkpoint(child_runs.folder / "spoilt" / "last.safetensors").meta.step == 0


def test_statistics_are_averaged_over_the_processes(child_runs):
    for rank in (0, 1):
        assert json.loads((child_runs.folder / f"statistics-{rank}.json").read_text()) == [1, 1, 4]
