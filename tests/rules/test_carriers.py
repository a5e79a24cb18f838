"""How many types carry a scored box or a truth, and how many places know how two boxes overlap: counted and bounded."""

from __future__ import annotations

import ast
from collections.abc import Iterable

BOXES = {"box", "boxes", "boxes_xywh"}
SCORED = {"structures/instances.py:Instances", "structures/detections.py:Detections"}
"""Columns of scored boxes: of one image as tensors, of a data set as arrays. The third form is a COCO record."""
TRUTHS = {"data/truths.py:Truths"}
"""Columns of annotations; `Instances` without scores are the same of one image."""
DERIVED = {
    "models/box_heads.py:RoiSamples": "what a loss compares with: proposals, not objects",
    "refine/validation.py:JitteredBoxes": "truth with an error that was put in",
    "data/coco/annotations.py:Tables": "the reader at work, before there is a data set",
}
"""Further columns with boxes and labels, which are neither."""

TENSORS = {"ops/boxes.py:pairwise_intersection", "ops/boxes.py:paired_iou"}
COLUMNS = {"ops/overlaps.py:common_areas"}
KERNELS = {
    "ops/soft_nms.py:_iou_with": "one box with all that follow it, fields by rows, without a copy",
    "combine/clusters.py:_iou": "lanes of clusters that move, without a copy",
}
NOT_OF_OBJECTS = {
    "data/coco/geometry.py:_inside": "sides of a box that lie in its image",
}


def fields(node: ast.ClassDef) -> set[str]:
    """Annotated attributes of a class."""
    return {s.target.id for s in node.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)}


def calls(node: ast.AST, names: set[str]) -> bool:
    """Whether something of one of these names is called in it."""
    functions = [each.func for each in ast.walk(node) if isinstance(each, ast.Call)]
    return any(
        (f.attr if isinstance(f, ast.Attribute) else f.id if isinstance(f, ast.Name) else "") in names
        for f in functions
    )


def intersects(function: ast.FunctionDef) -> bool:
    """Whether a length in common is reckoned: the smaller of two ends less the larger of two starts."""
    smaller, larger = {"minimum", "min", "fmin"}, {"maximum", "max", "fmax"}
    return any(
        (
            isinstance(node, ast.BinOp)
            and isinstance(node.op, ast.Sub)
            and calls(node.left, smaller)
            and calls(node.right, larger)
        )
        or (isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Sub) and calls(node.value, larger))
        for node in ast.walk(function)
    )


def told(title: str, names: Iterable[str]) -> None:
    """The count, for `pytest -s`."""
    listed = sorted(names)
    print(f"{title}: {len(listed)} ({', '.join(listed)})")


def classes(modules, *needed: set[str]) -> set[str]:
    """Classes with a field of each set of names."""
    return {
        f"{module.name}:{node.name}"
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and all(fields(node) & names for names in needed)
    }


def test_a_scored_box_has_three_carriers(modules):
    found = classes(modules, BOXES, {"scores"})
    told("columns of scored boxes, beside COCO's records", found)
    assert found == SCORED


def test_truth_becomes_columns_in_one_place(modules):
    found = classes(modules, {"boxes", "boxes_xywh"}, {"labels"}) - SCORED
    told("columns of truth", found - DERIVED.keys())
    assert found - DERIVED.keys() == TRUTHS
    builders = {
        f"{module.name}:{function.name}"
        for module in modules
        for function in module.functions()
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Truths"
    }
    assert builders == {"data/truths.py:truths_of"}


def test_boxes_overlap_in_one_place_for_tensors_and_one_for_columns(modules):
    found = {f"{m.name}:{f.name}" for m in modules for f in m.functions() if intersects(f)}
    told("box overlaps", found - NOT_OF_OBJECTS.keys() - KERNELS.keys())
    told("kernels", KERNELS)
    assert found == TENSORS | COLUMNS | KERNELS.keys() | NOT_OF_OBJECTS.keys()


def test_detections_are_matched_with_truths_in_one_place(modules):
    """Whoever gives truths away has to remember which are taken."""
    found = {m.name for m in modules for f in m.functions() if "is_taken" in {a.arg for a in f.args.args}}
    takers = classes(modules, {"is_taken"})
    told("matchers by COCO's rules", takers)
    assert (takers, found) == ({"evaluate/pairs.py:_Matcher"}, set())


def test_an_overlap_is_recognised_however_it_is_written():
    spelled = (
        "def f(a, b): return np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])",
        "def f(a, b): return (torch.minimum(a, b) - torch.maximum(a, b)).clamp(min=0)",
        "def f(a, b):\n    inter = np.minimum(a[2], b[2])\n    inter -= np.maximum(a[0], b[0])",
        "def f(a, b): return max(0, min(a.x2, b.x2) - max(a.x1, b.x1))",
    )
    for text in (*spelled, "def f(a, b): return max(a) - min(b)"):
        (function,) = ast.parse(text).body
        assert isinstance(function, ast.FunctionDef)
        assert intersects(function) == (text in spelled), text
