"""The gate: opens where refining was shown to help, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from refine.conftest import TINY
from scantling.data.detections import detections_of
from scantling.evaluate.coco_eval import evaluate_results
from scantling.refine import gate_tuning as gate_module
from scantling.refine.apply import ApplyConfig, refine_results
from scantling.refine.bbrefinement import Refiner, RefinerConfig
from scantling.refine.gate import GateCell, GateConfig, RefineGate, size_of
from scantling.refine.gate_tuning import meant_for, tune_gate
from scantling.settings import yaml as strict_yaml
from scantling.structures.detections import Detections

CONFIG = GateConfig(min_matches=6, min_images=3, bootstrap=200, bands=(0.5,))


@pytest.fixture(scope="module")
def many(painted):
    return painted(12, per_image=3, seed=4)


@pytest.fixture(scope="module")
def refiner():
    return Refiner(RefinerConfig.model_validate(TINY), ("slab", "plate")).eval()


def grown(dataset, by: float, score: float = 0.9) -> list[dict]:
    """Every label as a detection whose sides are longer by a share."""
    ids = dataset.category_ids
    results = []
    for image, labelled in zip(dataset.images, dataset.annotations, strict=True):
        for a in labelled:
            x, y, w, h = a.box_xywh
            box = [x - w * by / 2, y - h * by / 2, w * (1 + by), h * (1 + by)]
            results.append({"image_id": image.id, "category_id": ids[a.label], "bbox": box, "score": score})
    return results


def pretend(monkeypatch, shrink_by: dict[int, float]) -> None:
    """Replace refining: the sides of a category's boxes are divided by a factor."""

    def refine(results, dataset, refiner, config, *, gate=None):
        changed = []
        for result in results:
            factor = shrink_by.get(result["category_id"])
            if factor is None:
                changed.append(result)
                continue
            x, y, w, h = result["bbox"]
            cx, cy, w, h = x + w / 2, y + h / 2, w / factor, h / factor
            changed.append({**result, "bbox": [cx - w / 2, cy - h / 2, w, h]})
        return changed, {}

    monkeypatch.setattr(gate_module, "refine_results", refine)


def measured(results, dataset, refiner, config=CONFIG) -> RefineGate:
    return tune_gate(results, dataset, refiner, config, ApplyConfig(), refiner_sha="abc")


def open_cells(gate: RefineGate) -> set[tuple[str, float]]:
    return {(cell.category, cell.band[0]) for cell in gate.cells if cell.open}


def test_it_opens_where_boxes_get_better_and_stays_closed_where_they_get_worse(many, refiner, monkeypatch):
    pretend(monkeypatch, {3: 1.4, 9: 0.8})  # slabs come back exact, plates grow further
    gate = measured(grown(many, 0.4), many, refiner)
    assert open_cells(gate) == {("slab", 0.5)}
    assert {cell.category for cell in gate.cells} == {"slab", "plate"}
    slab = next(cell for cell in gate.cells if cell.open)
    assert slab.gain == pytest.approx((1 - 1 / 1.96,) * 3, abs=0.01)
    assert slab.ap_gain[1] > 0
    assert gate.ap["gated"] > gate.ap["before"] + 0.2


def test_exact_boxes_keep_it_closed(many, refiner, monkeypatch):
    pretend(monkeypatch, {3: 1.02, 9: 0.98})
    gate = measured(grown(many, 0.0), many, refiner)
    assert open_cells(gate) == set()
    assert gate.ap["gated"] == gate.ap["before"] == 1.0


def test_too_little_evidence_keeps_it_closed(many, refiner, monkeypatch):
    pretend(monkeypatch, {3: 1.4, 9: 1.4})
    results = grown(many, 0.4)
    few = [result for result in results if result["image_id"] <= 2]
    assert open_cells(measured(few, many, refiner)) == set()
    strict = CONFIG.model_copy(update={"min_matches": 1000})
    assert open_cells(measured(results, many, refiner, strict)) == set()
    assert len(open_cells(measured(results, many, refiner))) == 2


def too_few_each(results, dataset) -> GateConfig:
    """A configuration under which no category has enough results, and both together do."""
    size = size_of(detections_of(results, dataset).boxes)
    largest = max(np.bincount(size))
    per_category = max(
        np.bincount(size[detections_of(results, dataset).labels == label]).max() for label in (0, 1)
    )
    assert per_category < largest
    return CONFIG.model_copy(update={"min_matches": int(per_category) + 1})


def test_categories_that_hold_too_little_are_judged_together(many, refiner, monkeypatch):
    pretend(monkeypatch, {3: 1.4, 9: 1.4})
    results = grown(many, 0.4)
    config = too_few_each(results, many)
    gate = measured(results, many, refiner, config)
    opened = [cell for cell in gate.cells if cell.open]
    assert {cell.category for cell in opened} == {"slab", "plate"}
    assert all(cell.pooled for cell in opened)
    assert "together with others" in gate.to_text()
    assert gate.ap["gated"] > gate.ap["before"]
    alone = measured(results, many, refiner, config.model_copy(update={"pool": False}))
    assert open_cells(alone) == set()
    by_themselves = [
        cell for cell in measured(results, many, refiner).cells if cell.matches >= CONFIG.min_matches
    ]
    assert by_themselves
    assert not any(cell.pooled for cell in by_themselves)


def test_a_category_that_gets_worse_does_not_go_with_the_others(painted, refiner, monkeypatch):
    pretend(monkeypatch, {3: 1.4, 9: 0.97})  # the gain of all is sure, but plates lose a little
    more = painted(40, per_image=3, seed=4)
    results = grown(more, 0.4)
    gate = measured(results, more, refiner, too_few_each(results, more))
    assert {cell.category for cell in gate.cells if cell.open} == {"slab"}
    assert all(cell.gain[0] < 0 for cell in gate.cells if cell.category == "plate")


def test_a_cell_without_a_match_stays_closed(painted, refiner, monkeypatch):
    pretend(monkeypatch, {3: 1.4, 9: 1.4})
    more = painted(40, per_image=3, seed=4)
    results = [
        {**result, "bbox": [0, 0, 2, 2]} if result["category_id"] == 9 else result
        for result in grown(more, 0.4)
    ]
    gate = measured(results, more, refiner, too_few_each(results, more))
    unmatched = [cell for cell in gate.cells if not cell.matches]
    assert {cell.category for cell in unmatched} == {"plate"}
    assert not any(cell.open for cell in unmatched)


def replaced_boxes(monkeypatch, share_of) -> None:
    """Replace refining: `share_of(image id, category id)` of the width and height is cut off, around the middle."""

    def refine(results, dataset, refiner, config, *, gate=None):
        changed = []
        for result in results:
            x, y, w, h = result["bbox"]
            cut = share_of(result["image_id"], result["category_id"])
            box = [x + w * cut / 2, y + h * cut / 2, w * (1 - cut), h * (1 - cut)]
            changed.append({**result, "bbox": box})
        return changed, {}

    monkeypatch.setattr(gate_module, "refine_results", refine)


def test_cells_that_are_undecided_by_themselves_open_when_all_together_gain_surely(
    painted, refiner, monkeypatch
):
    """Three images in five are better and two worse, others for plates than for slabs."""
    more = painted(40, per_image=3, seed=4)

    def share_of(image: int, category: int) -> float:
        worse = image % 5 in ((0, 1) if category == 3 else (2, 3))
        return -1.6 if worse else 0.27

    replaced_boxes(monkeypatch, share_of)
    results = grown(more, 0.4)
    gate = measured(results, more, refiner)
    held = [cell for cell in gate.cells if cell.matches > 25]
    assert {cell.category for cell in held} == {"slab", "plate"}
    assert all(cell.gain[1] < 0 < cell.gain[0] for cell in held)
    assert all(cell.open and cell.pooled for cell in held)
    assert gate.ap["gated"] > gate.ap["before"] + 0.1
    alone = measured(results, more, refiner, CONFIG.model_copy(update={"pool": False}))
    assert open_cells(alone) == set()


def shaken(dataset, rng: np.random.Generator) -> list[dict]:
    """Every label as a detection that lies up to 15 % of its sides elsewhere."""
    results = grown(dataset, 0.0)
    moves = rng.uniform(-0.15, 0.15, (len(results), 2)).tolist()
    for result, (right, down) in zip(results, moves, strict=True):
        x, y, w, h = result["bbox"]
        result["bbox"] = [x + right * w, y + down * h, w, h]
    return results


def test_where_refining_changes_nothing_on_average_few_cells_open(painted, refiner, monkeypatch):
    """Refined boxes are as wrong as those before, in other ways; about one cell in forty opens by chance."""
    rng, more = np.random.default_rng(0), painted(40, per_image=3, seed=5)
    cells = []
    for _ in range(24):
        other = shaken(more, rng)
        monkeypatch.setattr(gate_module, "refine_results", lambda *_, found=other, **__: (found, {}))
        cells += measured(shaken(more, rng), more, refiner).cells
    assert len(cells) == 96
    assert sum(cell.open for cell in cells) <= 5


def test_a_gain_of_overlap_without_a_gain_of_ap_is_not_enough(many, refiner, monkeypatch):
    """IoU rises from 0.961 to 1, past no threshold of AP."""
    pretend(monkeypatch, {3: 1.02, 9: 1.02})
    gate = measured(grown(many, 0.02), many, refiner)
    assert all(cell.gain[1] > 0 for cell in gate.cells if cell.matches > 6)
    assert open_cells(gate) == set()


def test_a_mixture_of_gains_and_losses_is_beyond_doubt_neither(many, refiner, monkeypatch):
    """Every second image gets as much worse as the others get better."""
    results = grown(many, 0.3)

    def refine(results, dataset, refiner, config, *, gate=None):
        changed = []
        for result in results:
            x, y, w, h = result["bbox"]
            shift = 0.1 if result["image_id"] % 2 else -0.13
            changed.append(
                {**result, "bbox": [x + w * shift / 2, y + h * shift / 2, w * (1 - shift), h * (1 - shift)]}
            )
        return changed, {}

    monkeypatch.setattr(gate_module, "refine_results", refine)
    gate = measured(results, many, refiner)
    assert open_cells(gate) == set()
    assert any(cell.gain[1] < 0 < cell.gain[2] for cell in gate.cells)


def test_allowed_rows_are_those_of_open_cells():
    cells = (
        GateCell(category="slab", size="small", band=(0.5, 1), open=True, matches=9, images=9),
        GateCell(category="slab", size="medium", band=(0, 0.5), open=True, matches=9, images=9),
        GateCell(category="plate", size="small", band=(0.5, 1), open=False, matches=9, images=9),
    )
    gate = RefineGate(refiner="", apply=ApplyConfig(), cells=cells)
    small, medium = [0, 0, 32, 32], [0, 0, 32, 33]
    rows = [  # label, score, box, allowed
        (1, 0.5, small, True),
        (1, 1.0, small, True),
        (1, 0.49, small, False),
        (1, 0.49, medium, True),
        (1, 0.5, medium, False),
        (0, 0.9, small, False),
    ]
    labels, scores, boxes, allowed = zip(*rows, strict=True)
    detections = Detections(
        images=np.zeros(6, np.int64),
        labels=np.array(labels),
        scores=np.array(scores),
        boxes=np.array(boxes, float),
    )
    assert gate.allows(detections, ("plate", "slab")).tolist() == list(allowed)
    assert not gate.allows(detections, ("a", "b")).any()
    assert size_of(np.array([[0, 0, 96.0, 96], [0, 0, 96, 97]])).tolist() == [1, 2]


def test_results_are_meant_for_the_label_of_their_category_that_they_overlap_most(many):
    detections = detections_of(grown(many, 0.1), many)
    assert meant_for(detections, many, 0.5).tolist() == list(range(len(detections)))
    swapped = Detections(
        images=detections.images,
        labels=1 - detections.labels,
        scores=detections.scores,
        boxes=detections.boxes,
    )
    assert (meant_for(swapped, many, 0.5) == -1).all()
    assert (meant_for(detections, many, 0.9) == -1).all()  # 1 / 1.21


def test_it_is_written_and_read_as_an_equal_object_and_obeyed(many, monkeypatch):
    refiner = Refiner(RefinerConfig.model_validate({**TINY, "padding": 0.5}), ("slab", "plate")).eval()
    edge = torch.full((2,), (1 - 0.5 / 1.4) / 2)  # always 1 / 1.4 of the box it is given
    refiner.output.bias.data = torch.logit(torch.cat([edge, 1 - edge]))
    results = grown(many, 0.4)
    gate = measured(results, many, refiner, CONFIG.model_copy(update={"min_matches": 3}))
    again = RefineGate.model_validate(strict_yaml.parse(gate.to_yaml(), file="gate.yaml").value)
    assert again == gate
    assert open_cells(gate)
    found, counts = refine_results(results, many, refiner, ApplyConfig(), gate=again)
    assert counts["refined"] > 0
    assert evaluate_results(many, found).metrics["AP"] == pytest.approx(gate.ap["gated"], abs=1e-9)
    text = gate.to_text()
    assert text.splitlines()[0] == f"{sum(c.open for c in gate.cells)} of {len(gate.cells)} cells are open"


def test_bands_must_rise():
    with pytest.raises(ValidationError, match="must rise"):
        GateConfig(bands=(0.6, 0.3))
